"""Units: records hold fractions, seconds and bytes, tables and figures print what the paper
prints."""

from __future__ import annotations

from loraexp.machine.words import GIB, MIB
from loraexp.sweep.schema import Report

SCALES = {
    "percent": 1 / 100,
    "minutes": 60.0,
    "hours": 3600.0,
    "MiB": MIB,
    "GiB": GIB,
    "million": 1e6,
}
SYMBOLS = {
    "percent": "%",
    "seconds": "s",
    "minutes": "min",
    "hours": "h",
    "million": "millions",
    "ratio": "×",
}
BARE = ("count", "fraction")  # numbers that stand without a unit


def printed(value: float, report: Report) -> float:
    """A value of a record in the unit that is printed; units without a scale are printed as they
    are."""
    return value / SCALES.get(report.unit, 1.0)


def symbol(report: Report) -> str:
    """The unit as it stands behind a number or in a heading; nothing where a number has none."""
    return "" if report.unit in BARE else SYMBOLS.get(report.unit, report.unit)


def text(value: float, report: Report) -> str:
    """A value of a record with the digits that are printed."""
    return f"{printed(value, report):.{report.digits}f}"
