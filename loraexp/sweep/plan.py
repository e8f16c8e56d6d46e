"""`loraexp plan`: what a sweep costs before it is started: runs, hours, memory, disk; from records where there are any."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraexp import config
from loraexp.config import ConfigError
from loraexp.machine.progress import spoken
from loraexp.sweep import computed
from loraexp.sweep import schema as sweeps
from loraexp.sweep.cells import Cell, expand
from loraexp.sweep.schema import Sweep

GB = 2**30


@dataclass
class Costs:
    """Everything that the plan says, gathered cell by cell."""

    states: dict[str, int] = field(default_factory=dict)  # finished, failed, missing
    seconds: float = 0.0  # of what is to do
    measured: int = 0  # runs to do whose time is known from records
    modelled: int = 0  # from FLOPs
    untimed: int = 0  # from neither
    disk: int = 0
    unsized: int = 0  # runs whose disk is not known
    memory: dict[tuple[str, str], Any] = field(default_factory=dict)  # place → estimate.Memory
    recorded: dict[tuple[str, str], int] = field(default_factory=dict)  # place → the peak that its finished runs had
    unknown: list[str] = field(default_factory=list)  # one line each


def main(arguments: Sequence[str]) -> int:
    """`loraexp plan NAME [--variant V] [--budget-gb X] [KEY=VALUE ...]`: starts nothing and downloads nothing."""
    from loraexp.cli.verbs import Parser, sweep_options

    parser = Parser("loraexp plan", description="what a sweep will cost: runs, hours, memory and disk; starts nothing, downloads nothing")
    parser.add_argument("--budget-gb", type=float, metavar="X", help="memory of your device in GB: says which cells do not fit")
    options, overrides = sweep_options(parser, arguments)
    budget = options.budget_gb
    if budget is not None and not budget > 0:
        raise ConfigError(f"--budget-gb {budget}: expected a number above 0")
    overrides = [word for word in overrides if not sweeps.key_of(word).startswith(("hydra.", "hydra/"))]
    sweep = sweeps.load(options.name, options.variant, overrides)
    print(f"{sweep.key}: {sweep.title}")
    if sweep.compute is not None:
        show_computed(sweep)
        return 0
    costs = gather(sweep, expand(sweep))
    show(sweep, costs, budget)
    return 0


def show_computed(sweep: Sweep) -> None:
    computed.check(sweep)
    into = computed.folder(sweep, sweep.output_root)
    done = computed.load(into)
    state = f"finished, in {into}" if done else "to do"
    print(f"  one experiment without runs: {state}")
    if done:
        print(f"  time    {spoken(done[0]['cost']['seconds'])} (measured)")
    elif sweep.hours:
        print(f"  time    {sweep.hours.hours:g} h on {sweep.hours.hardware} ({sweep.hours.how})")


# ------------------------------------------------------------------------------------------------------- gathering


def gather(sweep: Sweep, cells: Sequence[Cell]) -> Costs:
    """Costs of the cells, each run once."""
    from loraexp.records import record

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
        estimate_cell(sweep, cell, costs, None if status == "finished" else times, todo=status != "finished")
    return costs


def measured_times(cells: Mapping[Path, Cell], found: Mapping[Path, Any]) -> dict[Any, float]:
    """Mean seconds of finished runs by (row, model, task), and by (model, task)."""
    from loraexp.sweep.watch import run_seconds

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


def note_peak(costs: Costs, cell: Cell, content: Mapping[str, Any]) -> None:
    peaks = [content["cost"].get(key) or 0 for key in ("init_peak_bytes", "train_peak_bytes")]
    place = (cell.row, cell.column)
    costs.recorded[place] = max(costs.recorded.get(place, 0), *peaks)


def estimate_cell(sweep: Sweep, cell: Cell, costs: Costs, times: Mapping[Any, float] | None, *, todo: bool) -> None:
    """Memory of a cell's place; time and disk of a run that is to do."""
    from loraexp.sweep import estimate

    settings = config.typed(cell.plain)
    memory: estimate.Memory | None = None
    numbers: dict[str, int] | None = None
    try:
        settings = dataclasses.replace(settings, model=estimate.offline(settings.model))
        memory, numbers = estimate.counted(estimate.shape_of(settings))
    except estimate.Unknown as error:
        if str(error) not in costs.unknown:
            costs.unknown.append(str(error))
    else:
        place = (cell.row, cell.column)
        before = costs.memory.get(place)
        costs.memory[place] = memory if before is None or memory.peak > before.peak else before
    if not todo:
        return
    if memory is None or numbers is None:
        costs.unsized += 1
    else:
        costs.disk += estimate.disk_bytes(settings, memory, numbers)
    known = next((times[key] for key in time_keys(cell) if times and key in times), None)
    modelled = None if known is not None or numbers is None else modelled_seconds(sweep, settings, numbers)
    costs.measured += known is not None
    costs.modelled += modelled is not None
    costs.untimed += known is None and modelled is None
    costs.seconds += known or modelled or 0.0


def modelled_seconds(sweep: Sweep, settings: Any, numbers: Mapping[str, int]) -> float | None:
    """Seconds from FLOPs at the speed of the sweep's named hardware, and a run's overhead."""
    from loraexp.sweep import estimate

    speed = estimate.speed(sweep.hours.hardware, settings.precision) if sweep.hours else None
    work = estimate.steps_and_tokens(settings)
    if speed is None or work is None:
        return None
    return estimate.OVERHEAD_SECONDS + estimate.flops(settings, numbers, work[1]) / speed


# --------------------------------------------------------------------------------------------------------- showing


def show(sweep: Sweep, costs: Costs, budget: float | None) -> None:
    states = costs.states
    todo = states["failed"] + states["missing"]
    total = todo + states["finished"]
    failed = f", of which {states['failed']} failed before" if states["failed"] else ""
    print(f"  runs    {total}: {states['finished']} finished, {todo} to do{failed}")
    print(f"  time    {times_said(sweep, costs, todo, total)}")
    unsized = f", and {costs.unsized} runs of unknown size" if costs.unsized else ""
    print(f"  disk    {costs.disk / GB:.2f} GiB for what is to do{unsized}")
    show_memory(sweep, costs, budget)
    for line in costs.unknown:
        print(f"  unknown {line}")


def times_said(sweep: Sweep, costs: Costs, todo: int, total: int) -> str:
    if not todo:
        return "nothing to do"
    from loraexp.sweep import estimate

    parts = []
    if costs.measured:
        parts.append(f"{costs.measured} runs as their finished neighbours took")
    if costs.modelled:
        assert sweep.hours is not None
        parts.append(
            f"{costs.modelled} runs by 4·N FLOPs a token (6·N where every weight trains) on one {sweep.hours.hardware}, "
            f"at {estimate.UTILISATION:.0%} of its sheet"
        )
    if costs.untimed:
        parts.append(f"{costs.untimed} runs not counted: no record, size or speed of theirs is known")
    said = f"{spoken(costs.seconds)} one after another ({'; '.join(parts)})" if costs.measured + costs.modelled else f"unknown ({parts[0]})"
    if sweep.hours:
        own = f"{sweep.hours.hours:g} h on {sweep.hours.hardware} ({sweep.hours.how})"
        said += f"\n          the sweep's own estimate for all {total} runs: {own}"
    return said


def show_memory(sweep: Sweep, costs: Costs, budget: float | None) -> None:
    """A line for each distinct need, its largest first, and which of them do not fit."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    if not costs.memory:
        return
    names = ["weights", "adapter", "gradients", "optimizer", "activations", "train", "init", "peak"]
    alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for place in sorted(costs.memory, key=lambda place: -costs.memory[place].peak):
        memory = costs.memory[place]
        cells = [f"{getattr(memory, name) / GB:.2f}" for name in names]
        if costs.recorded:
            cells.append(f"{costs.recorded[place] / GB:.2f}" if place in costs.recorded else "—")
        if budget is not None:
            cells.append("yes" if memory.peak <= budget * 1e9 else "NO")
        alike.setdefault(tuple(cells), []).append(place)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("  memory, GiB", max_width=50)
    for name in [*names, *["recorded"] * bool(costs.recorded), *["fits"] * (budget is not None)]:
        table.add_column({"train": "training", "init": "initialising"}.get(name, name), justify="right")
    for row, places in alike.items():
        table.add_row(Padding(places_said(sweep, places), (0, 0, 0, 2)), *row)
    Console(highlight=False, width=150).print(table)
    print("  counted for batches of the longest rows (task.max_length); activations: what autograd keeps of a forward pass,")
    print("  attention fused unless device=cpu; initialising: weights, activations of its batch and statistics within init.memory_budget")
    print("  temporaries of the backward pass and the allocator come on top: peaks measured on a CPU were 1.2 to 1.5 times the count")
    if budget is not None:
        over = [place for place, memory in costs.memory.items() if memory.peak > budget * 1e9]
        said = f"{places_said(sweep, over)}: {len(over)} of {len(costs.memory)} cells do not fit" if over else "every cell fits"
        print(f"  {budget:g} GB: {said}{'; train.micro_batches or model.gradient_checkpointing=true need less' if over else ''}")


def places_said(sweep: Sweep, places: Sequence[tuple[str, str]]) -> str:
    """`rslora, lora_ga` where all columns of the rows are meant, else `rslora/cola`."""
    columns: dict[str, list[str]] = {}
    for row, column in places:
        columns.setdefault(row, []).append(column)
    every = {row: [c for r, c in sweep.trained() if r == row] for row in columns}
    parts = []
    for row, found in columns.items():
        parts += [row] if sorted(found) == sorted(every[row]) else [f"{row}/{column}" for column in found]
    return ", ".join(parts)
