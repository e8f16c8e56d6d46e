"""A figure as data: panels of lines, bands, bars and surfaces, made from what a sweep measured.

Nothing here draws: `drawing.py` does, and tests read the numbers of a picture without looking at
it.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraexp.records.curves import Surface
from loraexp.results.significance import half_width
from loraexp.results.units import symbol
from loraexp.sweep.schema import Plot, Report, Sweep

if TYPE_CHECKING:
    from loraexp.results.gather import Results
    from loraexp.results.matching import Run
    from loraexp.results.places import Place

NAMES = {
    "step": "optimizer step",
    "lr": "learning rate",
    "loss": "training loss",
    "grad_norm": "gradient norm",
    "cost/init_seconds": "time of the initialisation",
    "cost/init_processor_seconds": "processor's time of the initialisation",
    "cost/train_processor_seconds": "processor's time of the training",
    "cost/init_peak_bytes": "peak memory of the initialisation",
    "cost/train_seconds": "time of the training",
    "cost/train_peak_bytes": "peak memory of the training",
    "cost/adapter_bytes": "size of the adapter",
    "parameters/trainable": "trainable parameters",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One labelled thing of a panel; `style` gives its colour, line style and marker, the same in
    every panel."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    # line | points | trajectory | level | histogram (y: the sample) | bar (y: one length) | front
    kind: str = "line"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    x_error: Sequence[float] | None = None
    published: float | None = None
    diverged_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    surfaces: list[Surface] = field(default_factory=list)
    x_scale: str = "linear"
    y_scale: str = "linear"
    ticks: list[float] | None = None  # the values of a grid key that were run


@dataclass(frozen=True, kw_only=True)
class Picture:
    name: str
    title: str
    subtitle: str
    panels: list[Panel]
    share: bool = False  # the panels are of one quantity and have one scale
    notes: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not any(panel.lines or panel.surfaces for panel in self.panels)


class Drawn:
    """A picture in the making: its sweep, plot, rows and panels, how many seeds it shows, and what
    it lacks and why."""

    def __init__(self, results: Results, plot: Plot) -> None:
        self.results, self.plot, self.sweep = results, plot, results.sweep
        self.rows = plot.rows or list(self.sweep.rows)
        # A panel for each column; a mean of columns has no runs of its own, only a value.
        chosen = plot.columns or list(self.sweep.columns)
        self.columns = [
            name
            for name in chosen
            if plot.kind == "bar" or self.sweep.columns[name].mean_of is None
        ]
        self.seeds: set[int] = set()
        self.lacking: dict[tuple[str, str], list[str]] = {}  # (panel, reason) → rows
        self.said: list[str] = []

    def lacks(self, row: str, panel: str, reason: str) -> None:
        reason = textwrap.shorten(reason, 160, placeholder=" …")
        self.lacking.setdefault((panel, reason), []).append(self.sweep.label_of(row))

    def panel(
        self,
        title: str,
        x_label: str,
        y_label: str,
        lines: list[Line],
        ticks: list[float] | None = None,
    ) -> Panel:
        x_scale, y_scale = self.plot.x_scale, self.plot.y_scale
        return Panel(
            title=title,
            x_label=x_label,
            y_label=y_label,
            x_scale=x_scale,
            y_scale=y_scale,
            lines=lines,
            ticks=ticks,
        )

    def notes(self, panels: Sequence[Panel], spreads: str | None) -> list[str]:
        """What stands under the picture."""
        found = list(self.said)
        if self.seeds and spreads is not None:
            low, high = min(self.seeds), max(self.seeds)
            many = f"{low} seed{'s' * (low > 1)}" if low == high else f"{low} to {high} seeds"
            found.insert(
                0, f"{spreads} {many}" if high > 1 else "one seed: the spread is not known"
            )
        together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (panel, reason), rows in self.lacking.items():
            together.setdefault((reason, tuple(dict.fromkeys(rows))), []).append(panel)
        for (reason, labels), where in together.items():
            everywhere = {panel.title for panel in panels} <= {*where, ""}
            place = "" if everywhere else f" in {', '.join(where)}"
            found.append(f"not drawn{place}: {', '.join(labels)} ({reason})")
        return found


def point_label(point: Mapping[str, object]) -> str:
    """A grid point as a reader takes it in: `learning rate 5e-5`."""
    return ", ".join(
        f"{NAMES.get(key, key)} {plain(value) if isinstance(value, (int, float)) else value}"
        for key, value in point.items()
    )


def plain(value: float) -> str:
    """Small numbers with an exponent, `2e-4`; others as they are."""
    if value == 0 or not abs(value) < 0.01:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def style_of(sweep: Sweep, row: str) -> int:
    """A row looks the same in every picture of its sweep, whichever others are drawn."""
    return list(sweep.rows).index(row)


def report_for(sweep: Sweep, path: str | None, column: str) -> Report:
    """The unit of a value: the column's own, or that of another column with this path, or what the
    path's name tells."""
    own = sweep.report_of(column)
    if path is None or path == sweep.columns[column].value:
        return own
    for name, other in sweep.columns.items():
        if other.value == path:
            return sweep.report_of(name)
    if path.startswith("parameters/"):
        return Report(unit="million", goal="min")
    if path.startswith("cost/"):
        unit = (
            "seconds"
            if path.endswith("_seconds")
            else "GiB"
            if path.endswith("_bytes")
            else "count"
        )
        return Report(unit=unit, goal="max" if path.endswith("per_second") else "min")
    return (
        own
        if "/" in path and own.unit in ("percent", "fraction")
        else Report(unit="fraction", goal="none")
    )


def axis(
    path: str, report: Report | None = None, said: str | None = None, label: str | None = None
) -> str:
    """An axis label with its unit: `dev accuracy (%)`; what a plot says itself (`x_label`) stays as
    it is, a column's label gets its unit."""
    words = path.replace("/", " ").replace("_", " ").replace(".", " ")
    name = said or label or NAMES.get(path) or words
    shown = symbol(report) if report is not None and not said else ""
    return f"{name} ({shown})" if shown else name


def runs_of(place: Place) -> list[Run]:
    """The runs at the grid point that validation chose."""
    from loraexp.results.places import choose

    return choose(place.runs, place.select)[1] if place.runs else []


# --------------------------------------------------------------------------------------------------
# spreads


def spread(values: Sequence[float], band: str) -> float:
    """Half the height of a band: standard deviation over seeds (n − 1), or t_{0.975, n−1} · std /
    √n; 0 of one value."""
    if len(values) < 2 or band == "none":
        return 0.0
    return statistics.stdev(values) if band == "std" else half_width(values)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and the width − 1 before it; of those that there are, at the start."""
    return [statistics.fmean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def banded(
    label: str,
    style: int,
    samples: Iterable[tuple[float, Sequence[float]]],
    band: str,
    scale: str = "linear",
) -> Line:
    """A line through the means of (x, values over seeds), with its band; on a logarithmic scale
    both are of the logarithms."""
    samples = [(x, list(values)) for x, values in samples]
    log = scale == "log" and all(value > 0 for _, values in samples for value in values)
    read, write = (math.log, math.exp) if log else (float, float)
    found = []
    for x, values in samples:
        mean, half = (
            statistics.fmean(map(read, values)),
            spread([read(value) for value in values], band),
        )
        found.append((x, write(mean), write(mean - half), write(mean + half)))
    several = band != "none" and any(len(values) > 1 for _, values in samples)
    return Line(
        label=label,
        style=style,
        x=[x for x, *_ in found],
        y=[mean for _, mean, *_ in found],
        low=[low for *_, low, _ in found] if several else None,
        high=[high for *_, high in found] if several else None,
    )
