"""What stands in the pages of the repository: its commands, in blocks and between backticks, and
what is shown that they print."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from tests.support.helpers import REPOSITORY

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
DURATION = re.compile(r"\b\d+(\.\d+)? (s|min|h)\b")


class Shown(NamedTuple):
    """A command in a block, and the lines under it, where `…` stands for any that are left out."""

    page: str
    command: str
    output: list[str]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command, comments=True)[1:]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a page."""
    return BLOCK.findall((REPOSITORY / page).read_text())


def line_with(page: str, word: str) -> list[str]:
    """The words of the one command in a page's blocks that has `word` in it."""
    text = "\n".join(body for _, body in blocks(page)).replace("\\\n", " ")
    [line] = [line for line in text.splitlines() if word in line]
    return shlex.split(line.removeprefix("$ "), comments=True)


def shown(page: str) -> list[Shown]:
    """The commands of a page behind a `$`, in their order, each with the output under it."""
    found: list[Shown] = []
    for _, body in blocks(page):
        open_here = False
        for line in body.splitlines():
            if line.startswith("$ "):
                found.append(Shown(page, line.removeprefix("$ "), []))
                open_here = True
            elif open_here:
                found[-1].output.append(line)
    return found


def like(wanted: str, line: str, tolerance: float) -> bool:
    """Whether a line is as it is shown: its words, and its numbers within `tolerance`; times are
    any."""

    def parts(text: str) -> tuple[str, list[float]]:
        text = " ".join(DURATION.sub("TIME", text).split())
        return NUMBER.sub("NUMBER", text), [float(word) for word in NUMBER.findall(text)]

    (words, numbers), (own_words, own_numbers) = parts(wanted), parts(line)
    near = len(numbers) == len(own_numbers) and all(
        abs(a - b) <= tolerance for a, b in zip(numbers, own_numbers, strict=True)
    )
    return words == own_words and near


def missing(wanted: list[str], lines: list[str], tolerance: float = 0.02) -> list[str]:
    """The lines that are shown and are not there, in their order; without a `…` between them they
    stand one under the other."""
    at, free = 0, False
    for number, line in enumerate(wanted):
        if line == "…":
            free = True
            continue
        places = range(at, len(lines)) if free else range(at, min(at + 1, len(lines)))
        found = next((i for i in places if like(line, lines[i], tolerance)), None)
        if found is None:
            return wanted[number:]
        at, free = found + 1, False
    return [] if free or at == len(lines) or not wanted else lines[at:]
