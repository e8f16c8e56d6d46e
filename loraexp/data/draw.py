"""Choices of rows by a hash of their content: the same in every run, version and machine, whatever
the run's seed."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

# Of a training set without a part that selects: one row in ten, at most a thousand.
HELD_OUT_FRACTION, HELD_OUT_MOST = 10, 1000


def number(content: str) -> int:
    """A number in 0 … 2^64 − 1 that orders rows at random: neither a seed nor a library's generator
    moves it."""
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def limit(draw: NDArray[np.uint64], most: int | None) -> NDArray[np.intp] | None:
    """The `most` rows with the lowest draw, in the order of the file, so that smaller limits are
    parts of larger ones.

    None: all of them.
    """
    if most is None or most >= len(draw):
        return None
    return np.sort(np.argsort(draw, kind="stable")[:most])


def divide(draw: NDArray[np.uint64], rows: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """`(the rows with the lowest draw, the rest)`, both in the order of the file.

    The first part has `rows` rows, or fewer: equal content shares a draw and always stays on the
    same side.
    """
    if rows >= len(draw):
        return np.arange(len(draw)), np.empty(0, dtype=np.intp)
    first = draw < np.sort(draw)[rows]
    return np.flatnonzero(first), np.flatnonzero(~first)


def note(kept: int, of: int, what: str) -> str:
    """What the record says of a limit; `what` is hashed."""
    return f"{kept} of {of} rows, drawn by a hash of their {what}, in the order of the file"
