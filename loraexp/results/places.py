"""A place of a table: its runs, the grid point that validation chose, and the value of each seed
there, in the record's units."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraexp.config import Plain
from loraexp.records import reading
from loraexp.results.matching import Reason, Run, describe
from loraexp.sweep.schema import Select


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
    chosen: Plain = field(default_factory=dict)
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


# --------------------------------------------------------------------------------------------------
# choosing


def points(runs: Sequence[Run], keys: Sequence[str]) -> list[tuple[Plain, list[Run]]]:
    """Runs by their values of some grid keys, in the grid's order."""
    found: dict[str, tuple[Plain, list[Run]]] = {}
    for run in runs:
        point = {key: run.cell.point[key] for key in keys if key in run.cell.point}
        found.setdefault(json.dumps(point, default=str), (point, []))[1].append(run)
    return list(found.values())


def choose(
    runs: Sequence[Run], select: Select, fixed: str | None = None
) -> tuple[Plain, list[Run], str | None]:
    """The grid point with the best mean of `select.by` over its finished runs (those of
    `select.judges`): (point, its runs,
    what is to be said).

    Of one point there is nothing to choose. Of equal ones the first of the grid is taken.
    """
    keys = [key for key in select.over if key != fixed]
    found = points(runs, keys)
    if len(found) == 1:
        return found[0][0], found[0][1], None
    judged: list[tuple[float, Plain, list[Run], int]] = []
    for point, at in found:
        scores = [
            score
            for run in at
            if select.chooses(run.cell.point)
            if run.status == "finished" and (score := run.value(select.by)) is not None
        ]
        if scores:
            judged.append((statistics.fmean(scores), point, at, len(scores)))
    if not judged:
        done = any(run.status == "finished" for run in runs)
        why = f"no record has {select.by}, so nothing chooses between the {len(found)} points of"
        return {}, [], f"{why} its grid" if done else None
    best = (max if select.goal == "max" else min)(score for score, *_ in judged)
    equal = [
        (point, at) for score, point, at, _ in judged if math.isclose(score, best, rel_tol=1e-9)
    ]
    judges = {
        describe(point): sum(select.chooses(run.cell.point) for run in at) for point, at in found
    }
    counts = {name: (0, runs) for name, runs in judges.items()}
    counts |= {describe(point): (n, judges[describe(point)]) for _, point, _, n in judged}
    said = unequal(counts)
    if len(equal) > 1:
        said.append(
            f"{', '.join(describe(p) for p, _ in equal)} are equally good by {select.by}"
            f" ({best:g}); the first is reported"
        )
    return *equal[0], "; ".join(said) or None


def unequal(counts: dict[str, tuple[int, int]]) -> list[str]:
    """What is to be said where grid points have values of different numbers of runs."""
    if len({n for n, _ in counts.values()}) == 1:
        return []
    numbers = ", ".join(f"{point}: {n} of {runs}" for point, (n, runs) in counts.items())
    return [f"the points of its grid were compared on unequal numbers of runs ({numbers})"]


# Why a run has no number of its own at a path: what it did, and what follows from it.
NOT_THEIRS: dict[Reason, tuple[str, str]] = {
    "packed": (
        "trained together with others",
        " (sweep.pack), so {path} is not theirs alone; force=true sweep.pack=1 runs them again by"
        " themselves ({where})",
    ),
    "cached": (
        "read their statistics from the cache",
        " and are left out of {path}; init.cache=false force=true runs them again",
    ),
}


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
    for reason, (what, rest) in NOT_THEIRS.items():
        left_out = [run for run in without if run.not_its_own(place.path or "") == reason]
        if left_out:
            if place.mean is None:
                place.note = place.note or f"{len(left_out)} runs {what}"
            told = rest.format(path=place.path, where=left_out[0].where)
            problems.append(f"{where}: {len(left_out)} of {len(place.runs)} runs {what}{told}")
            without = [run for run in without if run not in left_out]
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
