"""What the runs of a sweep measured: a record for every cell, the chosen grid point, and the
numbers of every place.

Values stay in the record's units (fractions, seconds, bytes); `units.printed` turns them into what
the paper prints.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraexp.config import ConfigError
from loraexp.records import reading
from loraexp.records.reading import Found, number
from loraexp.results import edges, matching
from loraexp.results.matching import Run, describe
from loraexp.results.units import printed
from loraexp.sweep import computed
from loraexp.sweep.cells import Cell, expand
from loraexp.sweep.computed import Computed
from loraexp.sweep.schema import Select, Sweep


@dataclass(kw_only=True)
class Place:
    """One (row, column): its runs, the grid point that validation chose, and the reported value of
    each seed there."""

    row: str
    column: str
    # what is read from a record; None: a mean of other columns, or computed
    path: str | None = None
    epoch: float | None = None
    goal: str = "max"
    select: Select = field(default_factory=Select)
    skipped: str | None = None
    runs: list[Run] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)  # by seed, in the record's units
    mean: float | None = None
    std: float | None = None  # over seeds, divided by n − 1; None with fewer than two
    # grid key → how many of its values have a run that ended
    tried: dict[str, int] = field(default_factory=dict)
    seeded: bool = True  # False: one computed number, and no sample of anything
    note: str | None = None  # why there is no value, where no run tells

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs)

    @property
    def finished(self) -> int:
        return self.count("finished")

    @property
    def failed(self) -> int:
        return self.count("failed")

    @property
    def missing(self) -> int:
        return self.count("missing")

    @property
    def reason(self) -> str | None:
        """Why nothing is reported, or None."""
        if self.mean is not None:
            return None
        if self.skipped is not None or self.note is not None:
            return f"not run: {self.skipped}" if self.skipped is not None else self.note
        failed = [run.reason for run in self.runs if run.status == "failed"]
        counted = [
            f"{self.count(status)} {status}"
            for status in ("finished", "running", "missing", "unreadable")
            if self.count(status)
        ]
        return "; ".join([*dict.fromkeys(failed), *counted]) or "missing"

    def report(self, values: dict[int, float]) -> None:
        self.values = dict(sorted(values.items()))
        self.mean = statistics.fmean(values.values()) if values else None
        self.std = statistics.stdev(values.values()) if len(values) > 1 else None

    def read(self, run: Run) -> float | None:
        return (
            run.value(self.path, self.epoch)
            if self.path is not None and run.status == "finished"
            else None
        )

    def by_seed(self, runs: Iterable[Run]) -> dict[int, float]:
        """The reported value of each seed, averaged over what else differs between its runs."""
        found: dict[int, list[float]] = {}
        for run in runs:
            value = self.read(run)
            if value is not None:
                found.setdefault(run.seed, []).append(value)
        return {seed: statistics.fmean(values) for seed, values in sorted(found.items())}

    def against(self, key: str) -> list[tuple[Any, dict[int, float]]]:
        """Each value of a grid key with the reported value of each seed there, in the grid's order.

        The other keys of `select.over` are chosen at each value of the key by themselves.
        """
        return [
            (point[key], self.by_seed(choose(runs, self.select, key)[1]))
            for point, runs in points(self.runs, [key])
            if key in point
        ]


@dataclass(kw_only=True)
class Results:
    """A sweep with everything that was found for it."""

    sweep: Sweep
    source: str
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    computed: Computed | None = None
    records: dict[str, dict[str, Any]] = field(default_factory=dict)  # by run id
    problems: list[str] = field(default_factory=list)

    def named(self, name: str) -> float | None:
        """The number behind a claim's name, None where it was not measured or `unknown` says why it
        never can be.

        A computed value as it is; `row/column`, `row/column/std`, `row/column/mean_over_KEY` and
        `row/column/worst_over_KEY` in the unit that the table prints.
        """
        if self.computed is not None and name in self.computed.values:
            return mean_of(self.computed.values[name])
        row, column, what = split(name)
        if (row, column) not in self.places or self.unknown(name) is not None:
            return None
        place = self.places[row, column]
        value = (
            place.mean
            if not what
            else place.std
            if what == "std"
            else over_grid(place, *what.split("_over_"))
        )
        return None if value is None else printed(value, self.sweep.report_of(column))

    def unknown(self, name: str) -> str | None:
        """Why nothing can have this name, or None."""
        row, column, what = split(name)
        if self.computed is not None and name in self.computed.values:
            return None
        if (row, column) not in self.places:
            absent = self.sweep.compute is None or self.computed is not None
            return f"{name}: there is no such value and no such row/column" if absent else None
        how, over, key = what.partition("_over_")
        if what in ("", "std") or (how in ("mean", "worst") and over and key):
            return None
        return f"{name}: expected {row}/{column}/std, mean_over_KEY or worst_over_KEY"


def split(name: str) -> tuple[str, str, str]:
    """`row/column/what`; the last parts may be empty."""
    row, _, rest = name.partition("/")
    column, _, what = rest.partition("/")
    return row, column, what


def over_grid(place: Place, how: str, key: str) -> float | None:
    """The mean or the worst of the means over seeds at each value of a grid key."""
    means = (
        [statistics.fmean(values.values()) for _, values in place.against(key) if values]
        if place.runs
        else []
    )
    if not means:
        return None
    worst = max if place.goal == "min" else min
    return statistics.fmean(means) if how == "mean" else worst(means)


def mean_of(value: Any) -> float | None:
    """A computed value: a number, or the mean of one for each seed."""
    if isinstance(value, list):
        numbers = [v for v in value if number(v) is not None]
        return statistics.fmean(numbers) if numbers else None
    return number(value)


# --------------------------------------------------------------------------------------------------
# choosing


def points(runs: Sequence[Run], keys: Sequence[str]) -> list[tuple[dict[str, Any], list[Run]]]:
    """Runs by their values of some grid keys, in the grid's order."""
    found: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        point = {key: run.cell.point[key] for key in keys if key in run.cell.point}
        found.setdefault(json.dumps(point, default=str), (point, []))[1].append(run)
    return list(found.values())


def choose(
    runs: Sequence[Run], select: Select, fixed: str | None = None
) -> tuple[dict[str, Any], list[Run], str | None]:
    """The grid point with the best mean of `select.by` over its finished runs: (point, its runs,
    what is to be said).

    Of one point there is nothing to choose. Of equal ones the first of the grid is taken.
    """
    keys = [key for key in select.over if key != fixed]
    found = points(runs, keys)
    if len(found) == 1:
        return found[0][0], found[0][1], None
    judged: list[tuple[float, dict[str, Any], list[Run], int]] = []
    for point, at in found:
        scores = [
            score
            for run in at
            if run.status == "finished" and (score := run.value(select.by)) is not None
        ]
        if scores:
            judged.append((statistics.fmean(scores), point, at, len(scores)))
    if not judged:
        done = any(run.status == "finished" for run in runs)
        return (
            {},
            [],
            (
                f"no record has {select.by}, so nothing chooses between the {len(found)} points of"
                " its grid"
                if done
                else None
            ),
        )
    best = (max if select.goal == "max" else min)(score for score, *_ in judged)
    equal = [
        (point, at) for score, point, at, _ in judged if math.isclose(score, best, rel_tol=1e-9)
    ]
    point, at = equal[0]
    counts = {describe(p): n for _, p, _, n in judged} | {
        describe(p): 0 for p, _ in found if p not in [j[1] for j in judged]
    }
    said = []
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{describe(p)}: {counts[describe(p)]} of {len(r)}" for p, r in found)
        said.append(f"the points of its grid were compared on unequal numbers of runs ({numbers})")
    if len(equal) > 1:
        said.append(
            f"{', '.join(describe(p) for p, _ in equal)} are equally good by {select.by}"
            f" ({best:g}); the first is reported"
        )
    return point, at, "; ".join(said) or None


# --------------------------------------------------------------------------------------------------
# gathering


def gather(sweep: Sweep, source: str | None = None) -> Results:
    """Everything measured for a sweep, from its output_root on disk or from W&B
    (`wandb:entity/project`, `wandb:DIR`).

    Raises ConfigError where the sweep does not expand or the source is none.
    """
    results = Results(sweep=sweep, source=source or str(sweep.output_root))
    if sweep.compute is not None:
        gather_computed(results, source)
    else:
        gather_runs(results, source)
        while (wider := edges.widened(results.sweep, results.places.values())) is not None:
            results = Results(sweep=wider, source=results.source)
            gather_runs(results, source)
        sweep = results.sweep
        results.problems += edges.at_edge(sweep, results.places.values())
    for name, column in sweep.columns.items():
        for row in sweep.rows if column.mean_of is not None else ():
            results.problems += average(results, row, name, column.mean_of or [])
    for i, claim in enumerate(sweep.claims):
        for word in (claim.value, claim.minus, claim.over):
            said = results.unknown(word) if word is not None else None
            if said is not None:
                results.problems.append(f"{sweep.path.name}: claims[{i}]: {said}")
    results.problems = list(dict.fromkeys(results.problems))
    return results


def gather_runs(results: Results, source: str | None) -> None:
    sweep = results.sweep
    cells = expand(sweep)
    keys = {cell.run_id: cell.match for cell in cells}
    found = matching.by_match(keys, candidates(cells, source), results.problems)
    for row, column in ((row, column) for row in sweep.rows for column in sweep.columns):
        place = blank(sweep, row, column)
        results.places[row, column] = place
        place.runs = [
            matching.settle(cell, found.get(keys[cell.run_id], []), results.problems)
            for cell in cells
            if (cell.row, cell.column) == (row, column)
        ]
        results.records |= {
            run.record.get("run_id", run.cell.run_id): run.record
            for run in place.runs
            if run.record is not None
        }
        if place.runs:
            results.problems += fill(place)


def blank(sweep: Sweep, row: str, column: str) -> Place:
    own = sweep.columns[column]
    mean = own.mean_of is not None
    return Place(
        row=row,
        column=column,
        path=None if mean else sweep.rows[row].value or own.value,
        epoch=own.epoch,
        goal=sweep.report_of(column).goal,
        select=sweep.select,
        skipped=sweep.skipped(row, column),
    )


def candidates(cells: list[Cell], source: str | None) -> Iterable[Found]:
    if source is None:
        return reading.on_disk(cell.folder.parent for cell in cells)
    kind, _, rest = source.partition(":")
    if kind != "wandb" or not rest:
        raise ConfigError(
            f"--from {source}: expected wandb:ENTITY/PROJECT, or wandb:DIR with the folders of"
            " offline runs"
        )
    return reading.from_wandb(rest)


def fill(place: Place) -> list[str]:
    """Choose the grid point of a place and read its values; returns what a reader must know."""
    where = f"{place.row}/{place.column}"
    ended = [run for run in place.runs if run.status in ("finished", "failed")]
    place.tried = {
        key: len(points(ended, [key]))
        for key in place.select.over
        if key in place.runs[0].cell.point
    }
    place.chosen, at, said = choose(place.runs, place.select)
    if not at:
        place.note = said
    place.report(place.by_seed(at))
    problems = [f"{where}: {said}"] if said else []
    without = [run for run in place.runs if run.status == "finished" and place.read(run) is None]
    if without:
        when = f" at the end of epoch {place.epoch:g}" if place.epoch is not None else ""
        has = ", ".join(
            reading.flatten((without[0].record or {}).get("metrics") or {}, separator="/")
        )
        problems.append(
            f"{where}: {len(without)} finished records have no {place.path}{when};"
            f" {without[0].where} has {has or 'no metrics'}"
        )
        place.note = place.note or f"no {place.path}{when} in the record"
    return problems


def gather_computed(results: Results, source: str | None) -> None:
    """The places of a computed sweep: its values named `row/column`."""
    sweep = results.sweep
    if source is not None:
        raise ConfigError(
            f"--from {source}: {sweep.name} is computed and is not logged to W&B; its result is"
            " under output_root"
        )
    folder = computed.folder(sweep, sweep.output_root)
    found = reading.read(folder) if (folder / "record.json").exists() else None
    if found is not None and found.record is not None:
        results.records[found.run_id] = found.record
    if found is not None and found.status == "finished":
        made = computed.load(folder)
        results.computed = made[1] if made is not None else None
    elif found is not None and found.status == "failed":
        results.problems.append(f"{folder}: failed: {reading.failure(found.record or {})}")
    elif found is not None and found.error is not None:
        results.problems.append(found.error)
    for row, column in ((row, column) for row in sweep.rows for column in sweep.columns):
        place = results.places[row, column] = Place(
            row=row,
            column=column,
            goal=sweep.report_of(column).goal,
            select=sweep.select,
            skipped=sweep.skipped(row, column),
        )
        value = (
            results.computed.values.get(f"{row}/{column}") if results.computed is not None else None
        )
        place.seeded = isinstance(value, list)
        each = value if isinstance(value, list) else [value]
        place.report({seed: v for seed, one in enumerate(each) if (v := number(one)) is not None})


def average(results: Results, row: str, column: str, others: list[str]) -> list[str]:
    """The mean over other columns, seed by seed; over their means where they have not the same
    seeds, which is said."""
    place = results.places[row, column]
    if place.skipped is not None:
        return []
    parts = [results.places[row, other] for other in others]
    absent = [results.sweep.columns[part.column].label for part in parts if not part.values]
    if absent:
        place.note = f"no value of {', '.join(absent)}"
        return []
    if all(part.values.keys() == parts[0].values.keys() for part in parts):
        place.report(
            {
                seed: statistics.fmean(part.values[seed] for part in parts)
                for seed in parts[0].values
            }
        )
        return []
    place.values = {}
    place.mean = statistics.fmean(part.mean for part in parts if part.mean is not None)
    return [
        f"{row}/{column}: its columns have different seeds, so it is the mean of their means,"
        " without a spread"
    ]
