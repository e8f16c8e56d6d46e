"""What the runs of a sweep measured: a record for every cell, the chosen grid point, and the
numbers of every place.

Values stay in the record's units (fractions, seconds, bytes); `units.printed` turns them into what
the paper prints.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from loraexp.config import RECORD, ConfigError
from loraexp.machine.files import Damaged
from loraexp.records import reading
from loraexp.records.curves import Computed
from loraexp.records.reading import Found, number
from loraexp.records.sections import RunRecord
from loraexp.results import edges, matching
from loraexp.results.places import Place, fill
from loraexp.results.units import printed
from loraexp.sweep import computed
from loraexp.sweep.cells import Cell, expand
from loraexp.sweep.schema import Sweep


@dataclass(kw_only=True)
class Results:
    """A sweep with everything that was found for it."""

    sweep: Sweep
    source: str
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    computed: Computed | None = None
    records: dict[str, RunRecord] = field(default_factory=dict)  # by run id
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


def mean_of(value: object) -> float | None:
    """A computed value: a number, or the mean of one for each seed."""
    if isinstance(value, list):
        numbers = [v for v in value if number(v) is not None]
        return statistics.fmean(numbers) if numbers else None
    return number(value)


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


def gather_computed(results: Results, source: str | None) -> None:
    """The places of a computed sweep: its values named `row/column`."""
    sweep = results.sweep
    if source is not None:
        raise ConfigError(
            f"--from {source}: {sweep.name} is computed and is not logged to W&B; its result is"
            " under output_root"
        )
    folder = computed.folder(sweep, sweep.output_root)
    found = reading.read(folder) if (folder / RECORD).exists() else None
    if found is not None and found.record is not None:
        results.records[found.run_id] = found.record
    if found is not None and found.status == "finished":
        try:
            made = computed.load(folder)
            results.computed = made[1] if made is not None else None
        except (OSError, Damaged) as error:
            results.problems.append(f"{error}; running it again with force=true writes it anew")
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
