"""What a run, a sweep and a plan print: nothing that the records do not hold."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loraexp.cli import outcomes
from loraexp.config import RECORD
from loraexp.machine.progress import first
from loraexp.machine.words import MIB, shorten, spoken
from loraexp.records.reading import packed
from loraexp.records.sections import RunRecord
from loraexp.run.observer import Observer, Outcome
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
        f" {cost['init_peak_bytes'] / MIB:.0f} MiB;"
        f" {seen if statistics['samples'] else 'from the weights alone'}; loss {loss['before']:.4f}"
        f" → {loss['after']:.4f}"
    )
    if statistics["samples"] and not statistics["cache_hit"]:
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
    best = record["best"]
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    metrics = list(dict.fromkeys(name for split in record["metrics"].values() for name in split))
    for name in metrics:
        table.add_column(name, justify="right")
    for split, values in record["metrics"].items():
        chosen = f" (selected step {best['step']})" if best and split == best["split"] else ""
        table.add_row(
            f"{split}{chosen}", *(f"{values[m]:.4f}" if m in values else "" for m in metrics)
        )
    console.print(table)
    console.print(summary(record))
    console.print(f"record: {os.path.relpath(outcome.folder)}/{RECORD}")


def summary(record: RunRecord) -> str:
    cost, parameters = record["cost"], record["parameters"]
    together = packed(record)
    share = parameters["trainable"] / parameters["total"]
    return (
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters trained ({share:.2%}); "
        f"init {spoken(cost.get('init_seconds'))}, train {spoken(cost['train_seconds'])} "
        f"({cost['samples_per_second']:.0f} samples/s), eval {spoken(cost['eval_seconds'])}"
        + (f"; shares of {together} runs that trained together" if together > 1 else "")
    )


# --------------------------------------------------------------------------------------------------
# sweep


ALIKE = 3  # runs that failed for the same reason, each a line of its own


def summary_of_sweep(sweep: Sweep, watch: Watch, *, follow: bool = True) -> None:
    """How it ended: the counts, each reason of a failure with its runs, and with `follow` what to
    type next."""
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
    for reason in dict.fromkeys(watch.reasons.values()):
        folders = [folder for folder, why in watch.reasons.items() if why == reason]
        few = folders if len(folders) <= ALIKE else folders[:1]
        more = f" and {len(folders) - 1} more" if few != folders else ""
        for folder in few:
            written = (folder / RECORD).exists()
            place = f"{shorten(folder)}/{RECORD}" if written else "no record"
            cell = described(watch.cells[folder])
            print(f"  {cell}{more}: {reason} ({place})", file=sys.stderr)
    if counts["failed"]:
        print("the same command retries only what is missing", file=sys.stderr)
    elif follow and not left:
        verb = "table" if sweep.kind == "table" else "plot"
        print(f"loraexp {verb} {sweep.words} shows the result", file=sys.stderr)
