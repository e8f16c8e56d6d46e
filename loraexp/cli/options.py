"""What the verbs' arguments share: one-line complaints, NAME with overrides, checked formats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from loraexp.config import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line of ours, with exit status 2."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog.removeprefix('loraexp ')}: {message}; see {self.prog} --help")


def sweep_options(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """NAME, --variant and what the parser has besides; and the overrides, wherever they stand."""
    parser.add_argument("name", help="a sweep (loraexp list sweeps), or a yaml file of your own")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of every run, after those of the sweep")
    parser.add_argument("--variant", help="the same artifact under other means, such as smoke")
    options = parser.parse_intermixed_args(arguments)
    for word in options.overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word}: expected KEY=VALUE")
    return options, options.overrides


def one_of(option: str, word: str, choices: Sequence[str]) -> list[str]:
    """The words of a list separated by commas, each one of the choices."""
    words = [part.strip() for part in word.split(",") if part.strip()]
    for part in words or [word]:
        if part not in choices:
            raise ConfigError(f"{option} {part}: expected some of {', '.join(choices)}; {nearest(part, choices)}")
    return words
