"""Durations, reasons and paths as one says them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from loraexp.machine.escapes import printable

MIB, GIB = 2.0**20, 2.0**30  # bytes of what is measured; sizes of files are said in powers of ten


def spoken(seconds: float | None) -> str:
    """A duration as one says it: 45.0 s, 12.3 min, 3.4 h; a dash for none."""
    if seconds is None:
        return "—"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def first_line(said: object) -> str:
    """The first line of an error, or of a text, that says something."""
    return next(
        (line.strip() for line in printable(str(said)).splitlines() if line.strip()), "no message"
    )


def message_of(error: BaseException) -> str:
    """The first line of an error, or its type where it says nothing."""
    return first_line(str(error) or type(error).__name__)


def one_line(said: object, most: int = 200) -> str:
    """A text of several lines that belong together, as a line that is not endless."""
    return " ".join(printable(str(said)).split())[:most]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, what that came from, …"""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def shorten(folder: Path) -> str:
    """A path as the user would type it from here."""
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("../..") else relative


def size(number: float) -> str:
    """Bytes as one says them: 812.0 kB, 13.2 GB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= one:
            return f"{number / one:.1f} {unit}"
    return f"{number:.0f} B"


def from_home(folder: str | Path) -> str:
    """A path with `~` for the home folder."""
    home = os.path.expanduser("~")
    return (
        f"~{str(folder).removeprefix(home)}" if f"{folder}/".startswith(f"{home}/") else str(folder)
    )


class SourceError(ValueError):
    """A model or a data set is not where it was looked for; one line says where, and the two ways
    to provide it.
    """
