"""Configurations that the checks have accepted before: what only reads runs need not ask again.

A check asks the function behind every `_target_`, for which torch and half of this package are
imported: two thirds of the time of `loraexp table`. What it says follows from the configuration and
from the code alone, so what was accepted is noted in a file of the cache under a hash of both. A
mistake is never noted, so it is said anew each time; a function of another package is always
asked, for nobody here knows when it changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loraexp import config
from loraexp.config import Plain
from loraexp.config.check import placed, still
from loraexp.machine.notes import Notes, code, hashed

NAME = "accepted-configurations"
TRAINS, STILL = "trains", "still"


class Accepted:
    """Checks that are made once, whichever command asks."""

    def __init__(self) -> None:
        self.notes: dict[Path, Notes] = {}  # by the root of the cache

    def checked(self, composed: Plain) -> Plain:
        """The plain configuration that `config.checked` returns; raises ConfigError as it does."""
        plain = placed(composed)
        # whether vllm is there is no matter of code
        vllm = (plain.get("evaluate") or {}).get("backend") == "vllm"
        if vllm or not all(ours(plain.get(group)) for group in ("task", "init", "optimizer")):
            return config.checked(composed)[1]
        root = Path(str(plain["cache_root"]))
        notes = self.notes.setdefault(root, Notes(root / NAME))
        key = hashed(code(), plain)
        known = notes.get(key)
        if known in (TRAINS, STILL):
            return plain if known == TRAINS else still(plain)
        result = config.checked(composed)[1]
        notes.add(key, TRAINS if result == plain else STILL)
        return result

    def keep(self) -> None:
        for notes in self.notes.values():
            notes.keep()


def ours(node: object) -> bool:
    """Whether the function behind a node is of this package, whose code is part of the hash."""
    return isinstance(node, Mapping) and str(node.get("_target_", "")).startswith("loraexp.")
