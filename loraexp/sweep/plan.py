"""What a sweep costs before it is started: runs, hours, memory, disk; from records where there are
any."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraexp import config
from loraexp.records.reading import packed, run_seconds
from loraexp.records.sections import RunRecord
from loraexp.sweep.cells import Cell
from loraexp.sweep.schema import Sweep
from loraexp.sweep.shapes import Memory


@dataclass
class Costs:
    """Everything that the plan says, gathered cell by cell."""

    states: dict[str, int] = field(default_factory=dict)  # finished, failed, missing
    seconds: float = 0.0  # of what is to do
    measured: int = 0  # runs to do whose time is known from records
    modelled: int = 0  # from FLOPs
    untimed: int = 0  # from neither
    packed: int = 0  # finished runs that trained together with others
    disk: int = 0
    unsized: int = 0  # runs whose disk is not known
    memory: dict[tuple[str, str], Any] = field(default_factory=dict)  # place → Memory
    # place → the peak that its finished runs had
    recorded: dict[tuple[str, str], int] = field(default_factory=dict)
    # place → those of the run that needs most
    settings: dict[tuple[str, str], Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)  # one line each


# --------------------------------------------------------------------------------------------------
# gathering


def gather(sweep: Sweep, cells: Sequence[Cell]) -> Costs:
    """Costs of the cells, each run once."""
    from loraexp.records import record
    from loraexp.sweep import sizes

    costs = Costs(states={"finished": 0, "failed": 0, "missing": 0})
    once: dict[Path, Cell] = {}
    for cell in cells:
        once.setdefault(cell.folder, cell)
    found = {folder: record.read(folder) for folder in once}
    times = measured_times(once, found)
    for folder, cell in once.items():
        content = found[folder]
        status = content["status"] if content else "missing"
        costs.states[status if status in costs.states else "missing"] += 1
        if content and status == "finished":
            note_peak(costs, cell, content)
            costs.packed += packed(content) > 1
        estimate_cell(
            sweep, cell, costs, None if status == "finished" else times, todo=status != "finished"
        )
    sizes.keep()
    return costs


def measured_times(cells: Mapping[Path, Cell], found: Mapping[Path, Any]) -> dict[Any, float]:
    """Mean seconds of finished runs by (row, model, task), and by (model, task); of those that
    trained together each its share."""
    seconds: dict[Any, list[float]] = {}
    for folder, cell in cells.items():
        content = found[folder]
        if content and content["status"] == "finished":
            for key in time_keys(cell):
                seconds.setdefault(key, []).append(run_seconds(content))
    return {key: statistics.fmean(values) for key, values in seconds.items()}


def time_keys(cell: Cell) -> tuple[Any, ...]:
    model, task = cell.plain["model"]["name"], cell.plain["task"]["name"]
    return (cell.row, model, task), (model, task)


def note_peak(costs: Costs, cell: Cell, content: RunRecord) -> None:
    """The peak that a place's runs had by themselves."""
    if packed(content) > 1:
        return
    peaks = [content["cost"].get(key) or 0 for key in ("init_peak_bytes", "train_peak_bytes")]
    place = (cell.row, cell.column)
    costs.recorded[place] = max(costs.recorded.get(place, 0), *peaks)


def estimate_cell(
    sweep: Sweep, cell: Cell, costs: Costs, times: Mapping[Any, float] | None, *, todo: bool
) -> None:
    """Memory of a cell's place; time and disk of a run that is to do."""
    from loraexp.sweep import duration, sizes

    settings = config.typed(cell.plain)
    memory: Memory | None = None
    numbers: dict[str, int] | None = None
    try:
        settings = sizes.offline(settings)
        memory, numbers = sizes.counted(sizes.shape_of(settings), settings.cache_root)
    except sizes.Unknown as error:
        if str(error) not in costs.unknown:
            costs.unknown.append(str(error))
    else:
        place = (cell.row, cell.column)
        before = costs.memory.get(place)
        if before is None or memory.peak > before.peak:
            costs.memory[place], costs.settings[place] = memory, settings
    if not todo:
        return
    if memory is None or numbers is None:
        costs.unsized += 1
    else:
        costs.disk += sizes.disk_bytes(settings, memory, numbers)
    known = next((times[key] for key in time_keys(cell) if times and key in times), None)
    modelled = None
    if known is None and numbers is not None and sweep.hours is not None:
        modelled = duration.seconds(settings, numbers, sweep.hours.hardware)
    costs.measured += known is not None
    costs.modelled += modelled is not None
    costs.untimed += known is None and modelled is None
    costs.seconds += known or modelled or 0.0
