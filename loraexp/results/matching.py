"""The run that a cell of a sweep wants, among the records that were found, and its numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraexp.config import Component
from loraexp.records.reading import (
    Found,
    Lines,
    failure,
    flatten,
    initialising,
    measured,
    number,
    packed,
    value_at,
)
from loraexp.records.sections import RunRecord
from loraexp.sweep.cells import Cell

Reason = Literal["packed", "cached"]
STEPS_TO = "steps_to/"  # begins the path of a number of steps


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run that a cell wants, and what there is of it."""

    cell: Cell
    record: RunRecord | None
    folder: Path | None
    status: str  # finished | failed | running | missing | unreadable
    where: str | None = None
    lines: Callable[[], Lines] = list

    @property
    def seed(self) -> int:
        return int(self.cell.plain["seed"])

    @property
    def packed(self) -> bool:
        """Whether others trained together with it, so that its time and memory are not its own."""
        return packed(self.record or {}) > 1

    @property
    def cached(self) -> bool:
        """Whether its initializer's statistics came from the cache, so that what it took to
        initialise is not what initialising takes."""
        if value_at(self.record or {}, "cost/init_forward_sweeps") != 0:
            return False
        return bool(Component.of(self.cell.plain["init"], "init").needs)

    @property
    def reason(self) -> str:
        """Its status, and of a failed run why."""
        if self.status != "failed" or self.record is None:
            return self.status
        where = " in evaluation" if self.record.get("phase") == "evaluation" else ""
        return f"failed{where}: {failure(self.record)}"

    def not_its_own(self, path: str) -> Reason | None:
        """Why the number at a path is no number of this run."""
        if measured(path) and self.packed:
            return "packed"
        return "cached" if initialising(path) and self.cached else None

    def value(self, path: str, epoch: float | None = None) -> float | None:
        """The number at `split/metric`, `cost/init_seconds`, `best/value`, …; with `epoch`, as
        logged at the end of that epoch.

        `cost/init_seconds + cost/train_seconds` is the sum of two paths or more, None where any of
        them is not there. `steps_to/dev/accuracy/0.9`: the first step that logged at least 0.9, the
        last one that logged any where none did.
        """
        if self.not_its_own(path):
            return None
        if path.startswith(STEPS_TO):
            return self.steps_to(*path.removeprefix(STEPS_TO).rsplit("/", 1))
        if " + " in path:
            terms = [self.value(term, epoch) for term in path.split(" + ")]
            known = [term for term in terms if term is not None]
            return sum(known) if len(known) == len(terms) else None
        return (
            self.at_epoch(path, epoch) if epoch is not None else value_at(self.record or {}, path)
        )

    def history(self, name: str) -> tuple[list[float], list[float], list[float]]:
        """(steps, epochs, values) of what was logged under a name: `loss`, `grad_norm`,
        `dev/accuracy`."""
        lines = [line for line in self.lines() if number(line.get(name)) is not None]
        return (
            [line["step"] for line in lines],
            [line.get("epoch", 0.0) for line in lines],
            [line[name] for line in lines],
        )

    def steps_to(self, name: str, level: str) -> float | None:
        """The first step at which what was logged under a name was at least `level`; the last step
        where it never was."""
        steps, _, values = self.history(name)
        reached = (step for step, value in zip(steps, values, strict=True) if value >= float(level))
        return next(reached, steps[-1] if steps else None)

    def at_epoch(self, name: str, epoch: float) -> float | None:
        """The logged value nearest to the end of an epoch, at most half of `train.log_every` (or
        one step) away from it."""
        steps, epochs, values = self.history(name)
        near = [
            (abs(e - epoch) * s / e, value)
            for s, e, value in zip(steps, epochs, values, strict=True)
            if e > 0
        ]
        distance, value = min(near, key=lambda pair: pair[0], default=(math.inf, None))
        # how often a run was logged is no part of what it is
        logged = (self.record or {}).get("config") or self.cell.plain
        return value if distance <= max(1.0, logged["train"]["log_every"] / 2) + 1e-6 else None


def by_match(
    keys: dict[str, str], found: Iterable[Found], problems: list[str]
) -> dict[str, list[Found]]:
    """What was found, by the cell it is of; what cannot be read is said, if it may be of this
    sweep."""
    wanted = set(keys.values())
    sorted_out: dict[str, list[Found]] = {}
    for one in found:
        match = one.match or keys.get(one.run_id)
        if match in wanted:
            sorted_out.setdefault(str(match), []).append(one)
        if one.error is not None and (match is None or match in wanted):
            problems.append(one.error)
        if one.note is not None and match in wanted:
            problems.append(one.note)
    return sorted_out


def settle(cell: Cell, found: list[Found], problems: list[str]) -> Run:
    """The record of a cell: a finished one before any other, the cell's own id before the
    newest."""
    if not found:
        return Run(cell=cell, record=None, folder=None, status="missing")
    finished = [one for one in found if one.status == "finished"]
    pool = finished or [one for one in found if one.record is not None] or found
    best = max(pool, key=lambda one: (one.run_id == cell.run_id, one.ended))
    for other in finished:
        if other is not best and (said := differs(best, other)):
            place = f"{cell.row}/{cell.column}, {describe(cell.point)}"
            problems.append(
                f"{place}: {best.where} and {other.where} are one run, but {said}; the first is"
                " used"
            )
    return Run(
        cell=cell,
        record=best.record,
        folder=best.folder,
        status=best.status,
        where=best.where,
        lines=functools.cache(best.lines),
    )


def differs(one: Found, other: Found) -> str | None:
    """The first metric that two records of one run do not agree on."""
    first, second = (
        flatten((found.record or {}).get("metrics") or {}, separator="/") for found in (one, other)
    )
    different = [name for name in first if name in second and first[name] != second[name]]
    return (
        f"{different[0]} is {first[different[0]]} and {second[different[0]]}" if different else None
    )


def describe(point: Mapping[str, object]) -> str:
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in point.items()
    )
