"""What was found out before, a line a fact, in a file that many processes read and add to.

A line is `CHECK KEY VALUE`: a check sum of the rest, a hash of all that the value follows from, and
the value as JSON. A line is added by one write at the end of the file; one that is torn, damaged or
of another format has no right sum and counts for nothing. A key that holds the state of a file, or
of the program (`code`), never meets a value of another state. So a file of notes may be deleted, or
damaged, at any time: what it held is found out anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import loraexp
from loraexp.machine.files import replace

LONGEST = 2**21  # bytes of a file after which it begins anew


class Notes:
    """The facts in a file, and those to be added to it."""

    def __init__(self, path: Path, longest: int = LONGEST) -> None:
        self.path, self.longest = path, longest
        self.new: dict[str, bytes] = {}
        self.used: dict[str, bytes] = {}

    @cached_property
    def lines(self) -> dict[bytes, bytes]:
        """The sound lines by key."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return {}
        found = {}
        for line in content.split(b"\n"):
            check, _, rest = line.partition(b" ")
            if check == sum_of(rest):
                key, _, value = rest.partition(b" ")
                found[key] = value
        return found

    def get(self, key: str) -> Any:
        """The value of a key; None where it is not known."""
        value = self.new.get(key) or self.lines.get(key.encode())
        if value is None:
            return None
        self.used[key] = value
        return json.loads(value)

    def add(self, key: str, value: object) -> None:
        """Note a value; `keep` writes it."""
        self.new[key] = json.dumps(value, separators=(",", ":")).encode()

    def keep(self, *, whole: bool = False) -> None:
        """Write what was added; with `whole`, nothing but what was asked for or added, where that
        is less than half of what is there.

        A file that cannot be written is nobody's loss.
        """
        if not self.new:
            return
        text = b"".join(map(line_of, self.new, self.new.values()))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if whole and len(self.lines) > 2 * len(self.used | self.new):
                kept = self.used | self.new
                replace(self.path, b"".join(map(line_of, kept, kept.values())))
            elif self.path.exists() and self.path.stat().st_size > self.longest:
                replace(self.path, text)
            else:
                append(self.path, text)
        except OSError:
            return
        self.lines.update({key.encode(): value for key, value in self.new.items()})
        self.new.clear()


def append(path: Path, text: bytes) -> None:
    """Add to a file by one write, so that what others add meanwhile stays whole; after a line that
    was torn, on a line of its own."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(handle, b"\n" + text)
    finally:
        os.close(handle)


def line_of(key: str, value: bytes) -> bytes:
    rest = key.encode() + b" " + value
    return sum_of(rest) + b" " + rest + b"\n"


def sum_of(rest: bytes) -> bytes:
    return b"%08x" % zlib.crc32(rest)


def hashed(*facts: object) -> str:
    """A key for whatever follows from these facts."""
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def code() -> str:
    """What tells this program's code from any other: every file's name, time and size, and
    Python's version."""
    root = str(Path(loraexp.__file__).parent)
    return hashed(sys.version, root, sorted(stamps(root)))


def stamps(folder: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from stamps(entry.path)
            elif entry.name.endswith(".py"):
                seen = entry.stat()
                yield entry.path, seen.st_mtime_ns, seen.st_size
