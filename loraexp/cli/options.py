"""What the verbs' arguments share: a run, overrides, one-line complaints, checked words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from loraexp.config import ConfigError, nearest

# argparse's own sentences about a value
VALUE = re.compile(r"argument (\S+): invalid (\w+) value: '(.*)'")
CHOICE = re.compile(r"argument \S+: invalid choice: '(.*)' \(choose from (.*)\)")
NUMBERS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line of ours, with exit status 2."""

    def add_run(self) -> None:
        self.add_argument("run", metavar="RUN", help="run folder or run id")

    def add_overrides(self, what: str) -> None:
        """Any number of them, none as well; `parse_intermixed_args` takes them anywhere."""
        self.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=what)

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix("loraexp ")
        if found := VALUE.fullmatch(message):
            option, kind, value = found.groups()
            raise ConfigError(f"{option} {value}: expected {NUMBERS.get(kind, kind)}")
        if found := CHOICE.fullmatch(message):
            value, choices = found.groups()
            raise ConfigError(f"{verb} {value}: {expected(value, re.findall(r'[a-z]+', choices))}")
        raise ConfigError(f"{verb}: {message}; see {self.prog} --help")


def one_of(option: str, word: str, choices: Sequence[str]) -> list[str]:
    """The words of a list separated by commas, each one of the choices."""
    words = [part.strip() for part in word.split(",") if part.strip()]
    for part in words or [word]:
        if part not in choices:
            raise ConfigError(f"{option} {part}: {expected(part, choices, 'some of ')}")
    return words


def expected(word: str, choices: Iterable[str], which: str = "") -> str:
    """What there is in place of a word, and what of it was meant, where one is near."""
    near = nearest(word, choices := list(choices))
    told = f"; {near}" if near.startswith("nearest") else ""
    return f"expected {which}{', '.join(choices)}{told}"
