"""What the verbs' arguments share: a run, overrides, one-line complaints, checked words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from loraexp.config import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line of ours, with exit status 2."""

    def add_run(self) -> None:
        self.add_argument("run", metavar="RUN", help="run folder or run id")

    def add_overrides(self, what: str) -> None:
        """Any number of them, none as well; `parse_intermixed_args` takes them anywhere."""
        self.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=what)

    def error(self, message: str) -> NoReturn:
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
