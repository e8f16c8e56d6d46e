"""What a run, a sweep and a plan print: nothing that the records do not hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from loraexp.cli import outcomes
from loraexp.machine.words import shorten, spoken
from loraexp.run.experiment import Observer, Outcome
from loraexp.sweep import computed, duration, estimate
from loraexp.sweep.plan import GB, Costs
from loraexp.sweep.schema import Sweep
from loraexp.sweep.watch import Watch, described

if TYPE_CHECKING:
    from loraexp.config.settings import Settings


class Screen(Observer):
    """What a person sees of a run while it goes on; of several processes the first speaks."""

    layers = False  # whether a table of them is wanted

    def begun(self, settings: Settings, folder: Path) -> None:
        self.layers = settings.calibration.show
        if first():
            announce(settings, folder)

    def initialised(self, ledger: dict[str, Any]) -> None:
        if first():
            initialised(ledger, layers=self.layers)

    def note(self, line: str) -> None:
        print(f"loraexp: {line}", file=sys.stderr, flush=True)


def first() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def announce(settings: Settings, folder: Path) -> None:
    names = " · ".join(
        str(x)
        for x in (
            settings.model.name,
            settings.task["name"],
            settings.init["name"],
            settings.optimizer["name"],
        )
    )
    print(
        f"{names} · lr {settings.lr:g} · rank {settings.rank} · seed {settings.seed} →"
        f" {os.path.relpath(folder)}",
        file=sys.stderr,
    )


LAYERS_SHOWN = 12


def initialised(ledger: dict[str, Any], *, layers: bool = False) -> None:
    """What initialising cost and made, on standard error; with `layers`, where factors start away
    from zero, a table."""
    statistics, loss, cost = ledger["statistics"], ledger["loss"], ledger["cost"]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    seen = (
        f"{statistics['samples']} samples, {statistics['tokens']:,} tokens,"
        f" {statistics['forward_sweeps']:.1f} passes"
    )
    seen += ", from the cache" if statistics["cache_hit"] else ""
    console.print(
        f"init {ledger['initializer']}: {spoken(cost['init_seconds'])}, peak"
        f" {cost['init_peak_bytes'] / 2**20:.0f} MiB;"
        f" {seen if statistics['samples'] else 'from the weights alone'}; loss {loss['before']:.4f}"
        f" → {loss['after']:.4f}"
    )
    if statistics["samples"]:
        console.print(f"  {statistics['way']}")
    if counts := ledger.get("rows"):
        console.print(f"  rows: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")
    if layers and any(line["singular_values"][0] > 0 for line in ledger["layers"].values()):
        Console(stderr=True, highlight=False, width=max(console.width, 125)).print(
            layer_table(ledger["layers"])
        )
    for warning in ledger["warnings"]:
        console.print(f"  warning: {warning}", style="yellow")


def layer_table(layers: dict[str, Any]) -> Table:
    """Per layer: size of the update against the weight, its spectrum, the energy it holds;
    quartiles where there are many."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in ("layer", "‖ηB0A0‖/‖W0‖", "leading singular values", "energy held"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    rows = (
        sorted(layers.items(), key=lambda item: item[1]["relative_norm"] or 0.0)
        if len(layers) > LAYERS_SHOWN
        else list(layers.items())
    )
    if len(rows) > LAYERS_SHOWN:
        rows = [rows[round(q * (len(rows) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
        table.caption = (
            f"the least, the quartiles and the largest of {len(layers)} layers; all are in"
            " init/ledger.json"
        )
    for name, line in rows:
        energy = line.get("energy")
        values = " ".join(f"{s:.2g}" for s in line["singular_values"][:4])
        table.add_row(
            name,
            f"{line['relative_norm'] or 0:.2g}",
            values,
            f"{energy['share']:.1%} of {energy['of']}" if energy else "—",
        )
    return table


def result(outcome: Outcome) -> None:
    """The metrics of every split, then cost and size, on standard output."""
    if not first():
        return
    record = outcome.record
    console = Console(highlight=False, soft_wrap=True)
    if outcome.already:
        console.print(f"finished already on {record['ended']}; force=true runs it again")
    best = record["best"] or {}
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    metrics = list(dict.fromkeys(name for split in record["metrics"].values() for name in split))
    for name in metrics:
        table.add_column(name, justify="right")
    for split, values in record["metrics"].items():
        chosen = f" (selected step {best['step']})" if split == best.get("split") else ""
        table.add_row(
            f"{split}{chosen}", *(f"{values[m]:.4f}" if m in values else "" for m in metrics)
        )
    console.print(table)
    console.print(summary(record))
    console.print(f"record: {os.path.relpath(outcome.folder)}/record.json")


def summary(record: dict[str, Any]) -> str:
    cost, parameters = record["cost"], record["parameters"]
    share = parameters["trainable"] / parameters["total"]
    return (
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters trained ({share:.2%}); "
        f"init {spoken(cost.get('init_seconds'))}, train {spoken(cost['train_seconds'])} "
        f"({cost['samples_per_second']:.0f} samples/s), eval {spoken(cost['eval_seconds'])}"
    )


# --------------------------------------------------------------------------------------------------
# sweep


def summary_of_sweep(sweep: Sweep, watch: Watch) -> None:
    """How it ended: the counts, each failure with its reason, and what to type next."""
    counts = watch.counts()
    left = counts["todo"] + counts["running"]
    words = [
        f"{counts['finished']} of {len(watch.cells)} runs finished",
        f"{counts['failed']} failed",
    ]
    words += [f"{left} left"] * bool(left)
    outcomes.show(
        outcomes.lines_of(
            ({"run": f"{cell.row}/{cell.column}"} | cell.point, folder)
            for folder, cell in watch.cells.items()
        )
    )
    print(f"{sweep.key}: {', '.join(words)}", file=sys.stderr)
    for folder, reason in watch.reasons.items():
        written = (folder / "record.json").exists()
        place = f"{shorten(folder)}/record.json" if written else "no record"
        print(f"  {described(watch.cells[folder])}: {reason} ({place})", file=sys.stderr)
    if counts["failed"]:
        print("the same command retries only what is missing", file=sys.stderr)
    elif not left:
        verb = "table" if sweep.kind == "table" else "plot"
        print(f"loraexp {verb} {sweep.words} shows the result", file=sys.stderr)


# --------------------------------------------------------------------------------------------------
# plan


def plan_of_computed(sweep: Sweep) -> None:
    computed.check(sweep)
    into = computed.folder(sweep, sweep.output_root)
    done = computed.load(into)
    state = f"finished, in {into}" if done else "to do"
    print(f"  one experiment without runs: {state}")
    if done:
        print(f"  time    {spoken(done[0]['cost']['seconds'])} (measured)")
    elif sweep.hours:
        print(f"  time    {sweep.hours.hours:g} h on {sweep.hours.hardware} ({sweep.hours.how})")


def plan(sweep: Sweep, costs: Costs, budget: float | None) -> None:
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
        cells = [f"{getattr(memory, name) / GB:.2f}" for name in names]
        if costs.recorded:
            cells.append(f"{costs.recorded[place] / GB:.2f}" if place in costs.recorded else "—")
        if budget is not None:
            cells.append("yes" if memory.peak <= budget * 1e9 else "NO")
        alike.setdefault(tuple(cells), []).append(place)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("  memory, GiB", max_width=50)
    for name in [*names, *["recorded"] * bool(costs.recorded), *["fits"] * (budget is not None)]:
        table.add_column(
            {"train": "training", "init": "initialising", "write": "answering"}.get(name, name),
            justify="right",
        )
    for row, places in alike.items():
        table.add_row(Padding(places_said(sweep, places), (0, 0, 0, 2)), *row)
    Console(highlight=False, width=150).print(table)
    print(
        "  counted for batches of the longest rows (the recipe's, or task.max_length); activations:"
        " what autograd keeps of a forward pass,"
    )
    print(
        "  attention fused unless device=cpu; initialising: weights, activations of its batch and"
        " statistics within init.memory_budget"
    )
    print(
        "  temporaries of the backward pass and the allocator come on top: peaks measured on a CPU"
        " were 1.2 to 1.5 times the count"
    )
    if budget is not None:
        over = [place for place, memory in costs.memory.items() if memory.peak > budget * 1e9]
        said = (
            f"{places_said(sweep, over)}: {len(over)} of {len(costs.memory)} cells do not fit"
            if over
            else "every cell fits"
        )
        print(f"  {budget:g} GB: {said}")
        remedies: dict[str, list[tuple[str, str]]] = {}
        for place in over:
            key = estimate.remedy(costs.memory[place], costs.settings[place], budget * 1e9)
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
