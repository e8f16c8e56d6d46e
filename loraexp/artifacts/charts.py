"""A sweep's values as bars, histograms and points: the panels of a picture."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from loraexp.artifacts.figure import (
    Drawn,
    Line,
    Panel,
    axis,
    banded,
    report_for,
    runs_of,
    spread,
    style_of,
)
from loraexp.records.reading import number
from loraexp.results.units import printed, symbol

# --------------------------------------------------------------------------------------------------
# bars, histograms


def bars(drawn: Drawn) -> list[Panel]:
    """One bar for each row, a panel for each column; the published value as a mark."""
    sweep, plot, panels = drawn.sweep, drawn.plot, []
    for column in drawn.columns:
        name, report = sweep.columns[column].label, report_for(sweep, plot.y, column)
        lines = []
        for row in drawn.rows:
            values = values_of(drawn, row, column, plot.y)
            if values:
                drawn.seeds.add(len(values))
            else:
                drawn.lacks(
                    row,
                    name,
                    drawn.results.places[row, column].reason or f"no {plot.y} in the record",
                )
            mean, half = statistics.fmean(values) if values else math.nan, spread(values, "std")
            said = (
                sweep.published.get(row, {}).get(column)
                if plot.y in (None, sweep.columns[column].value)
                else None
            )
            line = Line(
                label=sweep.label_of(row), style=style_of(sweep, row), kind="bar", x=[0.0], y=[mean]
            )
            if len(values) > 1:
                line = dataclasses.replace(line, low=[mean - half], high=[mean + half])
            lines.append(
                dataclasses.replace(
                    line, published=number(said[0] if isinstance(said, list) else said)
                )
            )
        if all(math.isnan(line.y[0]) for line in lines):
            lines = []
        label = (
            axis(plot.y, report, plot.y_label) if plot.y else plot.y_label or symbol(report) or name
        )
        panels.append(
            Panel(title=name, x_label=label, y_label="", x_scale=plot.y_scale, lines=lines)
        )
    return panels


def histograms(drawn: Drawn) -> list[Panel]:
    """How a value is distributed over all finished runs of each row, a panel for each column."""
    sweep, plot, panels = drawn.sweep, drawn.plot, []
    for column in drawn.columns:
        name, report = sweep.columns[column].label, report_for(sweep, plot.y, column)
        lines = []
        for row in drawn.rows:
            place = drawn.results.places[row, column]
            read = [
                run.value(plot.y) if plot.y else place.read(run)
                for run in place.runs
                if run.status == "finished"
            ]
            sample = [printed(value, report) for value in read if value is not None]
            if sample:
                label = f"{sweep.label_of(row)}, {len(sample)} runs"
                lines.append(
                    Line(label=label, style=style_of(sweep, row), kind="histogram", x=[], y=sample)
                )
            else:
                drawn.lacks(row, name, place.reason or f"no {plot.y} in the record")
        x_label = axis(plot.y or sweep.columns[column].value or "", report, plot.x_label)
        panels.append(drawn.panel(name, x_label, plot.y_label or "runs", lines))
    return panels


# --------------------------------------------------------------------------------------------------
# one against another


def values_of(drawn: Drawn, row: str, column: str, path: str | None) -> list[float]:
    """A value over the seeds of the chosen point, as printed; `path` may be another column's name,
    or null for the column's own."""
    sweep = drawn.sweep
    if path is not None and path in sweep.columns:
        return [
            printed(value, sweep.report_of(path))
            for value in drawn.results.places[row, path].values.values()
        ]
    place = drawn.results.places[row, column]
    values = (
        place.values
        if path is None
        else dataclasses.replace(place, path=path, epoch=None).by_seed(runs_of(place))
    )
    return [printed(value, report_for(sweep, path, column)) for value in values.values()]


def scatter(drawn: Drawn) -> list[Panel]:
    """`x` against `y`: paths of the record or names of columns; a panel for each column, unless
    both are columns."""
    sweep, plot = drawn.sweep, drawn.plot
    x = plot.x or "cost/train_peak_bytes"
    named = x in sweep.columns and plot.y in sweep.columns
    panels = []
    for column in [str(plot.y)] if named else [name for name in drawn.columns if name != x]:
        title = "" if named else sweep.columns[column].label
        reports = [
            sweep.report_of(path) if path in sweep.columns else report_for(sweep, path, column)
            for path in (x, plot.y)
        ]
        lines = []
        for row in drawn.rows:
            xs, ys = values_of(drawn, row, column, x), values_of(drawn, row, column, plot.y)
            if not xs or not ys:
                place = drawn.results.places[row, column]
                drawn.lacks(
                    row,
                    title,
                    place.reason or f"no {x if not xs else plot.y or place.path} in the record",
                )
                continue
            drawn.seeds.add(len(ys))
            point = banded(
                sweep.label_of(row), style_of(sweep, row), [(statistics.fmean(xs), ys)], "std"
            )
            lines.append(dataclasses.replace(point, kind="points", x_error=[spread(xs, "std")]))
        labels: list[str] = []
        paths = (x, plot.y or sweep.columns[column].value or column)
        for path, report, said in zip(paths, reports, (plot.x_label, plot.y_label), strict=True):
            better = {"min": ", less is better", "max": ", more is better", "none": ""}[report.goal]
            label = sweep.columns[path].label if path in sweep.columns else None
            labels.append(axis(path, report, said, label) + better)
        ends = front(lines, reports[0].goal, reports[1].goal)
        panels.append(drawn.panel(title, labels[0], labels[1], [*ends, *lines]))
    return panels


def front(lines: Sequence[Line], x_goal: str, y_goal: str) -> list[Line]:
    """The points that no other is at least as good as in both values and better in one, joined;
    none where a value has no goal."""
    if "none" in (x_goal, y_goal):
        return []
    signs = [1 if goal == "max" else -1 for goal in (x_goal, y_goal)]
    at = [(line.x[0], line.y[0]) for line in lines]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        gains = [sign * (one - other) for sign, one, other in zip(signs, a, b, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    best = sorted({point for point in at if not any(beats(other, point) for other in at)})
    return (
        [Line(label="Pareto front", kind="front", x=[x for x, _ in best], y=[y for _, y in best])]
        if len(best) > 1
        else []
    )
