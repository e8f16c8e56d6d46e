"""The curves and surfaces that a computed sweep returned, as the panels of a picture.

What diverged would stretch an axis until nothing else is seen: it is drawn to where it leaves the
view of what did not, and marked there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from loraexp.artifacts.figure import Line, Panel, Picture
from loraexp.config import ConfigError
from loraexp.records.curves import Curve
from loraexp.results.gather import Results
from loraexp.sweep.schema import Plot

STRETCH = 2.0  # times as long as without what diverged, an axis is still left to it


def of_computed(results: Results, plot: Plot, picture: Picture) -> Picture:
    """The curves and surfaces that a computed sweep returned, by panel."""
    made = results.computed
    if made is None:
        return picture
    there = list(
        dict.fromkeys(
            [curve.panel for curve in made.curves] + [surface.panel for surface in made.surfaces]
        )
    )
    for name in plot.panels or []:
        if name not in there:
            where = f"{results.sweep.path.name}: plot {plot.name}: panels"
            raise ConfigError(
                f"{where}: {name}: the result has no such panel; choices: {', '.join(there)}"
            )
    shown = plot.panels or there
    labels = list(
        dict.fromkeys(
            curve.label for curve in made.curves if curve.kind != "level" and curve.panel in shown
        )
    )
    panels = []
    for name in shown:
        axes = made.axes.get(name, {})
        own = [curve for curve in made.curves if curve.panel == name]
        panels.append(
            Panel(
                title=name,
                x_label=plot.x_label or axes.get("x", ""),
                y_label=plot.y_label or axes.get("y", ""),
                x_scale=axes.get("x_scale", plot.x_scale),
                y_scale=axes.get("y_scale", plot.y_scale),
                lines=[of_curve(curve, labels) for curve in own],
                surfaces=[surface for surface in made.surfaces if surface.panel == name],
            )
        )
    clipped = [within(panel) for panel in panels]
    notes = about_curves(panels, clipped=clipped != panels)
    return dataclasses.replace(picture, panels=clipped, notes=notes)


def of_curve(curve: Curve, labels: Sequence[str]) -> Line:
    """A computed curve as a line of a picture; the same label looks the same in every panel."""
    fields = ("label", "x", "y", "kind", "low", "high", "diverged_at")
    return Line(
        style=labels.index(curve.label) if curve.label in labels else 0,
        **{name: getattr(curve, name) for name in fields},
    )


def about_curves(panels: Sequence[Panel], *, clipped: bool) -> list[str]:
    """What the marks of computed curves mean."""
    lines = [line for panel in panels for line in panel.lines]
    notes = (
        ["ring: start of a trajectory · star: its end"]
        if any(line.kind == "trajectory" for line in lines)
        else []
    )
    diverged = dict.fromkeys(
        f"{line.label} at {line.diverged_at:g}" for line in lines if line.diverged_at is not None
    )
    cross = "× diverged" + (" (drawn to where it leaves the view)" if clipped else "")
    return [*notes, *([f"{cross}: {', '.join(diverged)}"] if diverged else [])]


# --------------------------------------------------------------------------------------------------
# what diverged

Range = tuple[float, float]


def within(panel: Panel) -> Panel:
    """The panel with its diverged lines as far as the view of everything else and of their starts,
    where they would stretch an axis to more than twice that."""
    wild = [line for line in panel.lines if line.diverged_at is not None]
    calm = [line for line in panel.lines if line.diverged_at is None]
    if not wild or not (panel.surfaces or any(line.x for line in calm)):
        return panel
    started = [start(line) for line in wild]
    bands = [part for line in calm for part in (line.low, line.high) if part]
    view = (
        spanned([*(s.x for s in panel.surfaces), *(line.x for line in [*calm, *started])]),
        spanned([*(s.y for s in panel.surfaces), *(line.y for line in [*calm, *started]), *bands]),
    )
    whole = (spanned([view[0], *(w.x for w in wild)]), spanned([view[1], *(w.y for w in wild)]))
    scales = (panel.x_scale, panel.y_scale)
    lengths = [
        (length(outer, scale), length(inner, scale))
        for outer, inner, scale in zip(whole, view, scales, strict=True)
    ]
    if all(outer <= STRETCH * inner for outer, inner in lengths):
        return panel
    lines = [line if line in calm else clipped(line, view, scales) for line in panel.lines]
    return dataclasses.replace(panel, lines=lines)


def start(line: Line) -> Line:
    """The first point of a line."""
    return dataclasses.replace(line, x=line.x[:1], y=line.y[:1])


def spanned(values: Iterable[Sequence[float]]) -> Range:
    """The least and the greatest of the finite values."""
    finite = [float(v) for part in values for v in part if v is not None and math.isfinite(v)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def measure(value: float, scale: str) -> float:
    """Where a value stands on an axis; below a logarithmic one, at its foot."""
    if scale != "log":
        return float(value)
    return math.log(value) if value > 0 else -math.inf


def length(span: Range, scale: str) -> float:
    low, high = (measure(end, scale) for end in span)
    return high - low


def clipped(line: Line, view: tuple[Range, Range], scales: tuple[str, str]) -> Line:
    """A line to where it first leaves the view, its last point on the edge."""
    points = list(zip(line.x, line.y, strict=True))
    inside = next((i for i, p in enumerate(points) if not holds(view, p)), len(points))
    if inside in (0, len(points)):
        return line
    at = [tuple(map(measure, point, scales)) for point in points[inside - 1 : inside + 1]]
    share = 1.0
    for a, b, span, scale in zip(*at, view, scales, strict=True):
        edge = measure(span[b > a], scale)  # that it goes towards
        if a != b and min(a, b) <= edge <= max(a, b):
            share = min(share, (edge - a) / (b - a))
    crossing = [
        math.exp(a + share * (b - a)) if scale == "log" else a + share * (b - a)
        for a, b, scale in zip(*at, scales, strict=True)
    ]
    drawn = [*points[:inside], tuple(crossing)]
    return dataclasses.replace(
        line,
        x=[p[0] for p in drawn],
        y=[p[1] for p in drawn],
        low=line.low and [max(v, view[1][0]) for v in line.low[: inside + 1]],
        high=line.high and [min(v, view[1][1]) for v in line.high[: inside + 1]],
    )


def holds(view: tuple[Range, Range], point: tuple[float, float]) -> bool:
    """Whether a point is in the view; one that has no number is no way out of it."""
    return all(
        value is None or not math.isfinite(value) or low <= value <= high
        for value, (low, high) in zip(point, view, strict=True)
    )
