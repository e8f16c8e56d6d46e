"""What a sweep without runs leaves beside its record: named values, and curves and surfaces by
panel, in `series.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from loraexp.config import Plain
from loraexp.machine.files import Damaged, write_json
from loraexp.machine.notation import read_json

SERIES = "series.json"
Values: TypeAlias = dict[str, float | list[float]]  # by name; a list has one for each seed


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a panel, its band where there are several seeds, and where it ended early if it
    diverged."""

    panel: str
    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    # line | points | trajectory (start and end marked) | level (a horizontal line at y[0]) |
    # histogram (y: the sample)
    kind: str = "line"
    diverged_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A function of two variables on a grid, drawn as contours under the curves of the same panel:
    z is (len(y), len(x))."""

    panel: str
    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Sequence[float]]
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Computed:
    """The result: values by name (a list has one for each seed), curves and surfaces by panel, and
    how axes are called."""

    values: Values
    curves: list[Curve] = field(default_factory=list)
    surfaces: list[Surface] = field(default_factory=list)
    axes: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # panel → {"x": label with unit, "y": …, "x_scale": "log", "y_scale": "log"}
    data: Plain = field(default_factory=dict)  # what was read: rows, fingerprint, source


def write(folder: Path, result: Computed) -> None:
    """Write the curves, surfaces and axes of a result."""
    series = dataclasses.asdict(result)
    write_json(folder / SERIES, {key: series[key] for key in ("curves", "surfaces", "axes")})


def read(folder: Path, values: Values, data: Plain) -> Computed:
    """The result of which these values stand in the record.

    Raises: Damaged, or OSError, where its curves cannot be read.
    """
    series: Plain = read_json(folder / SERIES, dict)
    try:
        return Computed(
            values=values,
            curves=[Curve(**curve) for curve in series["curves"]],
            surfaces=[Surface(**surface) for surface in series["surfaces"]],
            axes=series["axes"],
            data=data,
        )
    except (KeyError, TypeError) as error:
        raise Damaged(f"{folder / SERIES}: holds no curves ({error})") from None
