"""The small table that a grid and a sweep end with: a line a run, what differs, and what came of
it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from loraexp.machine.words import spoken
from loraexp.records import record
from loraexp.records.reading import best_value, packed, run_seconds
from loraexp.records.sections import RunRecord

MOST = 30  # lines; of more, those with the best selected values
PACKED = "1 of k: trained together with others (sweep.pack); the time is its share of theirs"
VALUES = 3  # columns of numbers: what selects, and the first that are reported


class Line(NamedTuple):
    """A run as it is known in its grid, and its record as far as it has one."""

    point: Mapping[str, Any]
    record: RunRecord

    @property
    def state(self) -> str:
        return str(self.record.get("status", "no record"))

    @property
    def selected(self) -> float:
        value = best_value(self.record)
        return float("-inf") if value is None else value

    def values(self) -> dict[str, float]:
        """What selected, and the same metric where it is reported; where nothing selects,
        everything."""
        best, metrics = self.record.get("best"), self.record.get("metrics") or {}
        named = {f"{s}/{m}": v for s, part in metrics.items() for m, v in part.items()}
        if not best:
            return named
        first = f"{best['split']}/{best['metric']}"
        same = [name for name in named if name.endswith(f"/{best['metric']}")]
        return {name: named[name] for name in dict.fromkeys([first, *same]) if name in named}


def time_of(seconds: float | None, together: int) -> str:
    """A duration as a person says it; of a run that trained with others, that it is a share."""
    return spoken(seconds) + (f", 1 of {together}" if together > 1 else "")


def lines_of(runs: Iterable[tuple[Mapping[str, object], Path]]) -> list[Line]:
    """The runs in their folders, each with what names it in the grid."""
    return [Line(point, record.read(folder) or {}) for point, folder in runs]


def show(lines: Sequence[Line]) -> None:
    """The table on standard output; of many runs the best, in the order of the grid."""
    put(table(lines))


def put(table: Table) -> None:
    """A table on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge
    console.print(table)


def table(lines: Sequence[Line]) -> Table:
    """What differs between the runs, state, the selected and the first reported values, seconds."""
    shown = list(lines)
    if len(shown) > MOST:
        known = [i for i, line in enumerate(lines) if line.record]
        kept = sorted(known, key=lambda i: -lines[i].selected)[:MOST]
        shown = [lines[i] for i in sorted(kept)]
    points = {
        key: {str(line.point.get(key)) for line in lines} for line in lines for key in line.point
    }
    varied = [key for key, values in points.items() if len(values) > 1] or list(points)[:1]
    names = list(dict.fromkeys(name for line in shown for name in line.values()))[:VALUES]
    made = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in (*varied, "state", *names, "time"):
        made.add_column(
            column, no_wrap=True, justify="left" if column in (*varied, "state") else "right"
        )
    for line in shown:
        values = line.values()
        made.add_row(
            *(str(line.point.get(key, "")) for key in varied),
            line.state,
            *(f"{values[name]:.4f}" if name in values else "—" for name in names),
            time_of(run_seconds(line.record), packed(line.record))
            if line.record.get("cost")
            else "—",
        )
    notes = [PACKED] if any(packed(line.record) > 1 for line in shown) else []
    if len(shown) < len(lines):
        notes.insert(0, f"the best {len(shown)} of {len(lines)} runs; loraexp runs lists all")
    if notes:
        made.caption, made.caption_justify = "\n".join(notes), "left"
    return made
