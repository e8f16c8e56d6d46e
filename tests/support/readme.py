"""What stands in the pages of the repository: its commands, in blocks and between backticks."""

from __future__ import annotations

import re
import shlex

from tests.support.helpers import REPOSITORY

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a page."""
    return BLOCK.findall((REPOSITORY / page).read_text())


def line_with(page: str, word: str) -> list[str]:
    """The words of the one command in a page's blocks that has `word` in it."""
    text = "\n".join(body for _, body in blocks(page)).replace("\\\n", " ")
    [line] = [line for line in text.splitlines() if word in line]
    return shlex.split(line.removeprefix("$ "), comments=True)
