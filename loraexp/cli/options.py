"""What the verbs' arguments share: one-line complaints, checked formats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from loraexp.config import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line of ours, with exit status 2."""

    def error(self, message: str) -> Any:
        raise ConfigError(
            f"{self.prog.removeprefix('loraexp ')}: {message}; see {self.prog} --help"
        )


def one_of(option: str, word: str, choices: Sequence[str]) -> list[str]:
    """The words of a list separated by commas, each one of the choices."""
    words = [part.strip() for part in word.split(",") if part.strip()]
    for part in words or [word]:
        if part not in choices:
            raise ConfigError(
                f"{option} {part}: expected some of {', '.join(choices)}; {nearest(part, choices)}"
            )
    return words
