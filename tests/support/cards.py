"""A real card: where the host waits for it."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch


class Waits(list[str]):
    """The line of ours that asked for each wait."""

    def lines(self) -> Counter[str]:
        return Counter(self)


class Watched:
    """What `tests.support.pretend.counted` reads."""

    def __init__(self) -> None:
        self.waits = Waits()


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Within: CUDA tells of every call that waits, and who made it is kept."""
    found = Watched()
    tell: Any = warnings._showwarnmsg  # type: ignore[attr-defined]

    def note(said: Any) -> None:
        if "synchronizing CUDA operation" not in str(said.message):
            tell(said)
            return
        frames = [f for f in traceback.extract_stack() if "/loraexp/" in f.filename]
        found.waits.append(f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?")

    # below what `catch_warnings` puts in its own place, for a run that keeps what it is warned of
    with (
        warnings.catch_warnings(),
        mock.patch.object(warnings, "_showwarnmsg", note),
    ):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
