"""Grids that widen by themselves: where the best value of a key is at an edge of its grid, the next
one beyond is tried too.

`grid.extend: {lr: 3}` of a sweep allows three values more of a row, in the ratio of the grid's last
two. Where `select.judges: {seed: [0]}` says which runs choose, the others run at the chosen point
alone, once the best is inside. What is to be run follows from what is on disk alone, so that the
table and the next command see the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from loraexp.sweep.schema import Special, Sweep

if TYPE_CHECKING:
    from loraexp.results.places import Place

ENDED = ("finished", "failed")


def widened(sweep: Sweep, places: Iterable[Place]) -> Sweep | None:
    """The sweep with one value more wherever the best is at an edge, and with the runs at what was
    chosen; None where there is nothing more to run."""
    more: list[Special] = []
    chosen = dict(sweep.chosen)
    for place in places:
        before = len(more)
        for key, most in sweep.extend.items():
            value = beyond(sweep, place, key)
            if value is not None and added(sweep, place, key) < most:
                grid = sweep.grid_of(place.row, place.column)[key]
                more.append(
                    Special(
                        rows=[place.row],
                        columns=[place.column],
                        grid={key: sorted([*grid, value])},
                        widens=True,
                    )
                )
        if sweep.select.judges and len(more) == before and decided(sweep, place):
            chosen[place.row, place.column] = place.chosen
    if not more and chosen == sweep.chosen:
        return None
    return dataclasses.replace(sweep, cells=[*sweep.cells, *more], chosen=chosen)


def decided(sweep: Sweep, place: Place) -> bool:
    """Whether every run that chooses has ended, and one of them was chosen."""
    choosing = [run for run in place.runs if sweep.select.chooses(run.cell.point)]
    return bool(place.chosen) and all(run.status in ENDED for run in choosing)


def at_edge(sweep: Sweep, places: Iterable[Place]) -> list[str]:
    """What a reader must know: rows whose best value is still at an edge of its grid."""
    said = []
    for place in places:
        for key in sweep.extend:
            if beyond(sweep, place, key) is not None:
                at = f"{key}={place.chosen[key]:g}"
                said.append(
                    f"{place.row}/{place.column}: the best is at the edge of its widened grid,"
                    f" {at}; raise grid.extend.{key}"
                )
    return said


def beyond(sweep: Sweep, place: Place, key: str) -> float | None:
    """The next value of a grid key behind the edge that is best; None where the best is inside, or
    not known yet."""
    grid = sorted(
        value for value in sweep.grid_of(place.row, place.column).get(key, []) if is_number(value)
    )
    if len(grid) < 2 or not decided(sweep, place):
        return None
    chosen = place.chosen.get(key)
    if chosen == grid[-1]:
        return rounded(grid[-1] * grid[-1] / grid[-2])
    return rounded(grid[0] * grid[0] / grid[1]) if chosen == grid[0] else None


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def added(sweep: Sweep, place: Place, key: str) -> int:
    """How many values a place has beyond those of the file."""
    own = dataclasses.replace(
        sweep, cells=[special for special in sweep.cells if not special.widens]
    )
    return len(sweep.grid_of(place.row, place.column)[key]) - len(
        own.grid_of(place.row, place.column)[key]
    )
