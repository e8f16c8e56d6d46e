"""The collector of cycles while a command starts: imports make a million objects that all stay, and
to look at them again and again is a sixth of a start."""

from __future__ import annotations

import gc

RESTING = 200_000  # objects between two looks


class Usual:
    """What the process had before."""

    threshold: tuple[int, ...] | None = None


def rest() -> None:
    """It looks seldom from here on, until `work`."""
    if Usual.threshold is None:
        Usual.threshold = gc.get_threshold()
        gc.set_threshold(RESTING, *Usual.threshold[1:])


def work() -> None:
    """It looks as often as before, where it was resting: what a run makes holds memory of the
    device."""
    if Usual.threshold is not None:
        gc.set_threshold(*Usual.threshold)
        Usual.threshold = None
