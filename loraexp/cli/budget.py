"""What `loraexp plan` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from loraexp.machine.words import GIB, shorten, spoken
from loraexp.records.reading import run_seconds
from loraexp.sweep import computed, duration, sizes
from loraexp.sweep.plan import Costs
from loraexp.sweep.schema import Sweep


def plan_of_computed(sweep: Sweep) -> None:
    computed.check(sweep)
    into = computed.folder(sweep, sweep.output_root)
    done = computed.load(into)
    state = f"finished, in {shorten(into)}" if done else "to do"
    print(f"  one experiment without runs: {state}")
    if done:
        print(f"  time    {spoken(run_seconds(done[0]))} (measured)")
    elif sweep.hours:
        hours = sweep.hours
        print(f"  time    {spoken(3600 * hours.hours)} on {hours.hardware} ({hours.how})")


def plan(sweep: Sweep, costs: Costs, budget: float | None) -> None:
    states = costs.states
    todo = states["failed"] + states["missing"]
    total = todo + states["finished"]
    failed = f", of which {states['failed']} failed before" if states["failed"] else ""
    print(f"  runs    {total}: {states['finished']} finished, {todo} to do{failed}")
    print(f"  time    {times_said(sweep, costs, todo, total)}")
    unsized = f", and {costs.unsized} runs of unknown size" if costs.unsized else ""
    if costs.packed:
        print(
            f"  packed  {costs.packed} finished runs trained together with others (sweep.pack):"
            " their times are shares, their peaks not counted"
        )
    print(f"  disk    {costs.disk / GIB:.2f} GiB for what is to do{unsized}")
    show_memory(sweep, costs, budget)
    for line in costs.unknown:
        print(f"  unknown {line}")


def times_said(sweep: Sweep, costs: Costs, todo: int, total: int) -> str:
    if not todo:
        return "nothing to do"
    parts = []
    if costs.measured:
        parts.append(f"{costs.measured} runs as their finished neighbours took")
    if costs.modelled:
        assert sweep.hours is not None
        parts.append(
            f"{costs.modelled} runs by 4·N FLOPs a token (6·N where every weight trains) on one"
            f" {sweep.hours.hardware} at {duration.UTILISATION:.0%} of its sheet,"
            f" {1000 * duration.LAYER_SECONDS:g} ms a layer and micro-batch, and answers"
        )
    if costs.untimed:
        parts.append(
            f"{costs.untimed} runs not counted: no record, size or speed of theirs is known"
        )
    said = (
        f"{spoken(costs.seconds)} one after another ({'; '.join(parts)})"
        if costs.measured + costs.modelled
        else f"unknown ({parts[0]})"
    )
    if sweep.hours:
        own = f"{sweep.hours.hours:g} h on {sweep.hours.hardware} ({sweep.hours.how})"
        said += f"\n          the sweep's own estimate for all {total} runs: {own}"
    return said


def show_memory(sweep: Sweep, costs: Costs, budget: float | None) -> None:
    """A line for each distinct need, its largest first, and which of them do not fit."""

    if not costs.memory:
        return
    names = [
        "weights",
        "adapter",
        "gradients",
        "optimizer",
        "activations",
        "train",
        "init",
        "write",
        "peak",
    ]
    alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for place in sorted(costs.memory, key=lambda place: -costs.memory[place].peak):
        memory = costs.memory[place]
        cells = [f"{getattr(memory, name) / GIB:.2f}" for name in names]
        if costs.recorded:
            cells.append(f"{costs.recorded[place] / GIB:.2f}" if place in costs.recorded else "—")
        if budget is not None:
            cells.append("yes" if memory.peak <= budget * 1e9 else "NO")
        alike.setdefault(tuple(cells), []).append(place)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("  memory, GiB", max_width=50)
    for name in [*names, *["recorded"] * bool(costs.recorded), *["fits"] * (budget is not None)]:
        table.add_column(
            {"train": "training", "init": "initialising", "write": "evaluating"}.get(name, name),
            justify="right",
        )
    for row, places in alike.items():
        table.add_row(Padding(places_said(sweep, places), (0, 0, 0, 2)), *row)
    Console(highlight=False, width=150).print(table)
    print(
        "  counted for batches of the longest rows (the recipe's, or task.max_length), by the run's"
        " own passes and steps without numbers;"
    )
    print(
        "  attention fused unless device=cpu; initialising: where training just fits, statistics"
        " within init.memory_budget"
    )
    print(
        "  what a device keeps for itself (its context, workspaces of its libraries, gaps of the"
        " allocator) comes on top"
    )
    if budget is not None:
        show_fit(sweep, costs, budget)


def show_fit(sweep: Sweep, costs: Costs, budget: float) -> None:
    """Which cells need more than `budget` GB, and the key that lowers most of it."""
    over = [place for place, memory in costs.memory.items() if memory.peak > budget * 1e9]
    said = (
        f"{places_said(sweep, over)}: {len(over)} of {len(costs.memory)} cells do not fit"
        if over
        else "every cell fits"
    )
    print(f"  {budget:g} GB: {said}")
    remedies: dict[str, list[tuple[str, str]]] = {}
    for place in over:
        key = sizes.remedy(costs.memory[place], costs.settings[place], budget * 1e9)
        remedies.setdefault(key, []).append(place)
    for key, places in remedies.items():
        print(f"    {places_said(sweep, places)}: less with {key}")


def places_said(sweep: Sweep, places: Sequence[tuple[str, str]]) -> str:
    """`rslora, lora_ga` where all columns of the rows are meant, else `rslora/cola`."""
    columns: dict[str, list[str]] = {}
    for row, column in places:
        columns.setdefault(row, []).append(column)
    every = {row: [c for r, c in sweep.trained() if r == row] for row in columns}
    parts = []
    for row, found in columns.items():
        parts += (
            [row]
            if sorted(found) == sorted(every[row])
            else [f"{row}/{column}" for column in found]
        )
    return ", ".join(parts)
