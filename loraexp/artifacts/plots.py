"""The figures of a sweep from its records: each kind of plot makes the panels of a picture; curves,
and values against a key, are here, the others in `charts`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from loraexp.artifacts.charts import bars, histograms, scatter
from loraexp.artifacts.figure import (
    NAMES,
    Drawn,
    Line,
    Panel,
    Picture,
    axis,
    banded,
    plain,
    point_label,
    report_for,
    running_mean,
    runs_of,
    style_of,
)
from loraexp.artifacts.series import of_computed
from loraexp.config import ConfigError
from loraexp.results.gather import Results
from loraexp.results.matching import Run
from loraexp.results.places import Place, points
from loraexp.results.units import printed
from loraexp.sweep.cells import lookup
from loraexp.sweep.schema import Plot, Sweep

OF_COMPUTED = ("series", "surface", "histogram", "curve")
SPREADS = {
    "std": "mean ± standard deviation over",
    "ci95": "mean and 95 % t interval over",
    "none": "mean over",
}


def make(results: Results, plot: Plot) -> Picture:
    """The picture that an entry of a sweep's `plots` describes, of what there is; `empty` where
    there is nothing."""
    sweep = results.sweep
    about = sweep.place
    picture = Picture(name=plot.name, title=plot.title or sweep.title, subtitle=about, panels=[])
    if sweep.compute is not None and plot.kind in OF_COMPUTED:
        return of_computed(results, plot, picture)
    if plot.kind not in MAKERS:
        raise ConfigError(
            f"{sweep.path.name}: plot {plot.name}: kind {plot.kind} is for computed sweeps;"
            f" expected {', '.join(MAKERS)}"
        )
    drawn = Drawn(results, plot)
    panels = MAKERS[plot.kind](drawn)
    spreads = (
        None
        if plot.kind == "histogram"
        else SPREADS["std" if plot.kind in ("bar", "scatter") else plot.band]
    )
    if spreads is not None and plot.y_scale == "log" and plot.kind in ("curve", "against"):
        spreads = f"geometric {spreads}"
    share = plot.kind == "curve" and not plot.best_only
    notes = drawn.notes(panels, spreads)
    if len(panels) == 1:  # its title would only repeat that of the picture, or a column's name
        panels = [dataclasses.replace(panels[0], title="")]
    return dataclasses.replace(picture, panels=panels, share=share, notes=notes)


# --------------------------------------------------------------------------------------------------
# curves


def curves(drawn: Drawn) -> list[Panel]:
    """A logged value against step or epoch: a panel for each column, or with `best_only: false` for
    each grid point of it."""
    plot, panels, seen = drawn.plot, [], []
    for column in drawn.columns:
        own = drawn.sweep.columns[column]
        path = plot.y or own.value or "loss"
        for point in [None] if plot.best_only else grid_points(drawn, column):
            runs = {row: runs_at(drawn.results.places[row, column], point) for row in drawn.rows}
            same = [
                path,
                {row: sorted(run.cell.run_id for run in found) for row, found in runs.items()},
            ]
            if same in seen:  # columns that read the same runs at several epochs
                continue
            seen.append(same)
            words = [own.label] * (point is None or len(drawn.columns) > 1) + [
                point_label(point or {})
            ] * bool(point)
            title = ", ".join(words)
            lines = [
                line
                for row, found in runs.items()
                if (line := curve(drawn, row, column, found, path, title)) is not None
            ]
            y_label = axis(path, report_for(drawn.sweep, path, column), plot.y_label)
            panels.append(
                drawn.panel(title, axis(plot.x or "step", None, plot.x_label), y_label, lines)
            )
    if plot.smooth > 1:
        drawn.said.append(f"running mean over {plot.smooth} logged values")
    if plot.best_only:
        drawn.said += chosen_points(drawn)
    return panels


def grid_points(drawn: Drawn, column: str) -> list[dict[str, object]]:
    """Every grid point but for the seed that some row of a column has, in order."""
    runs = [run for row in drawn.rows for run in drawn.results.places[row, column].runs]
    keys = list(dict.fromkeys(key for run in runs for key in run.cell.point if key != "seed"))
    return [point for point, _ in points(runs, keys)]


def runs_at(place: Place, point: Mapping[str, object] | None) -> list[Run]:
    """The runs of a place at a grid point; at the chosen one without."""
    if point is None:
        return runs_of(place)
    return [
        run
        for run in place.runs
        if {key: value for key, value in run.cell.point.items() if key != "seed"} == point
    ]


def curve(
    drawn: Drawn, row: str, column: str, runs: list[Run], path: str, title: str
) -> Line | None:
    """One row's mean over seeds of a logged value, at the steps that all its seeds logged; None,
    and a note, where there is none."""
    place, plot = drawn.results.places[row, column], drawn.plot
    if not plot.best_only and not runs and place.runs:
        return None  # this row's grid has no such point
    report = report_for(drawn.sweep, path, column)
    histories: list[dict[float, float]] = []
    for run in (run for run in runs if run.status == "finished"):
        steps, epochs, values = run.history(path)
        if values:
            smoothed = running_mean([printed(value, report) for value in values], plot.smooth)
            histories.append(
                dict(zip(epochs if plot.x == "epoch" else steps, smoothed, strict=True))
            )
    if not histories:
        ended = any(run.status == "finished" for run in runs)
        reasons = "; ".join(dict.fromkeys(run.reason for run in runs)) or place.reason or "missing"
        drawn.lacks(row, title, f"nothing is logged as {path}" if ended else reasons)
        return None
    drawn.seeds.add(len(histories))
    shared = sorted(set(histories[0]).intersection(*histories[1:]))
    if any(len(history) > len(shared) for history in histories):
        drawn.said.append(
            f"{drawn.sweep.label_of(row)}, {title}: at the {len(shared)} steps that all seeds"
            " logged"
        )
    samples = [(x, [history[x] for history in histories]) for x in shared]
    return banded(
        drawn.sweep.label_of(row), style_of(drawn.sweep, row), samples, plot.band, plot.y_scale
    )


def chosen_points(drawn: Drawn) -> list[str]:
    """At which grid point each row is drawn, where there was a choice; a long list is left to the
    table."""
    said, count, select = [], 0, drawn.sweep.select
    for row in drawn.rows:
        at: dict[str, list[str]] = {}
        for column in drawn.columns:
            place = drawn.results.places[row, column]
            if place.chosen and place.mean is not None and any(n > 1 for n in place.tried.values()):
                point = ", ".join(
                    plain(v) if isinstance(v, (int, float)) else str(v)
                    for v in place.chosen.values()
                )
                at.setdefault(point, []).append(drawn.sweep.columns[column].label)
        count += len(at)
        words = (
            list(at)
            if len(at) == 1
            else [f"{point} ({', '.join(columns)})" for point, columns in at.items()]
        )
        said += [f"{drawn.sweep.label_of(row)} {', '.join(words)}"] * bool(at)
    what = ", ".join(NAMES.get(key, key) for key in select.over)
    which = "; ".join(said) if count <= 12 else "one for each row and panel, as in the table"
    return [f"{what} chosen by {select.by}: {which}"] if said else []


# --------------------------------------------------------------------------------------------------
# against a key


def against(drawn: Drawn) -> list[Panel]:
    """The cells' values against a grid key, or a key that rows or columns set: a panel for each
    column, or one for all."""
    sweep, plot, key = drawn.sweep, drawn.plot, drawn.plot.x or "lr"
    found = {
        (row, column): positions(drawn, row, column, key)
        for row in drawn.rows
        for column in drawn.columns
    }
    within = any(len({x for x, _ in samples}) > 1 for samples in found.values())
    across = not within and any(
        len({x for column in drawn.columns for x, _ in found[row, column]}) > 1
        for row in drawn.rows
    )
    labels = series_labels(sweep, alone=within or across)
    order = list(dict.fromkeys(labels.values()))
    panels = []
    for group in [drawn.columns] if across else [[column] for column in drawn.columns]:
        path = plot.y or sweep.columns[group[0]].value or ""
        report = report_for(sweep, path, group[0])
        samples: dict[str, list[tuple[float, list[float]]]] = {}
        for row in drawn.rows:
            for column in group:
                measured = [(x, values) for x, values in found[row, column] if values]
                drawn.seeds |= {len(values) for _, values in measured}
                place = drawn.results.places[row, column]
                if not measured or place.failed:
                    drawn.lacks(row, sweep.columns[column].label, place.reason or failures(place))
                samples.setdefault(labels[row], []).extend(
                    (x, [printed(value, report) for value in values]) for x, values in measured
                )
        lines = [
            banded(label, order.index(label), sorted(at), plot.band, plot.y_scale)
            for label, at in samples.items()
            if at
        ]
        ticks = sorted({x for line in lines for x in line.x})
        title = "" if across else sweep.columns[group[0]].label
        panels.append(
            drawn.panel(
                title, axis(key, None, plot.x_label), axis(path, report, plot.y_label), lines, ticks
            )
        )
    return panels


def failures(place: Place) -> str:
    """Of a place that has a value, the runs that have none."""
    return "; ".join(
        dict.fromkeys(
            f"{point_label(run.cell.point)} {run.reason}"
            for run in place.runs
            if run.status == "failed"
        )
    )


def series_labels(sweep: Sweep, *, alone: bool) -> dict[str, str]:
    """Which line each row belongs to: its own; or, where rows differ in the key itself, that of the
    rows of its label or of its group."""
    if alone:
        return {row: sweep.label_of(row) for row in sweep.rows}
    labels = [own.label for own in sweep.rows.values()]
    shared = len(set(labels)) < len(labels)
    return {row: own.label if shared else own.group or own.label for row, own in sweep.rows.items()}


def positions(drawn: Drawn, row: str, column: str, key: str) -> list[tuple[float, list[float]]]:
    """(value of the key, values over seeds) of one place, in the record's units."""
    place = drawn.results.places[row, column]
    if drawn.plot.y is not None:
        place = dataclasses.replace(place, path=drawn.plot.y)
        place.report(place.by_seed(runs_of(place)))
    if place.runs and key in place.runs[0].cell.point:
        return [(x, list(values.values())) for x, values in place.against(key)]
    if key == "epoch" and place.epoch is not None:
        return [(place.epoch, list(place.values.values()))]
    if not place.runs:
        return []
    x = lookup(place.runs[0].cell.plain, key)
    if not isinstance(x, (int, float)):
        raise ConfigError(
            f"{drawn.sweep.path.name}: plot {drawn.plot.name}: x: {key}={x}: expected a key whose"
            " values are numbers"
        )
    return [(x, list(place.values.values()))]


MAKERS: dict[str, Callable[[Drawn], list[Panel]]] = {
    "curve": curves,
    "against": against,
    "bar": bars,
    "scatter": scatter,
    "histogram": histograms,
}
