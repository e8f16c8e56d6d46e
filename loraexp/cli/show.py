"""What a run prints: the line that announces it, the result, and nothing that the record does not hold."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loraexp.machine.progress import spoken

if TYPE_CHECKING:
    from loraexp.config.settings import Settings
    from loraexp.run.experiment import Outcome


def announce(settings: Settings, folder: Path) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    names = " · ".join(str(x) for x in (settings.model.name, settings.task["name"], settings.init["name"], settings.optimizer["name"]))
    print(f"{names} · lr {settings.lr:g} · rank {settings.rank} · seed {settings.seed} → {os.path.relpath(folder)}", file=sys.stderr)


LAYERS_SHOWN = 12


def initialised(ledger: dict[str, Any]) -> None:
    """What initialising cost and made, on standard error: a line, and where factors start away from zero a table."""
    statistics, loss, cost = ledger["statistics"], ledger["loss"], ledger["cost"]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    seen = f"{statistics['samples']} samples, {statistics['tokens']:,} tokens, {statistics['forward_sweeps']:.1f} passes"
    seen += ", from the cache" if statistics["cache_hit"] else ""
    console.print(
        f"init {ledger['initializer']}: {spoken(cost['init_seconds'])}, peak {cost['init_peak_bytes'] / 2**20:.0f} MiB; "
        f"{seen if statistics['samples'] else 'from the weights alone'}; loss {loss['before']:.4f} → {loss['after']:.4f}"
    )
    if statistics["samples"]:
        console.print(f"  {statistics['way']}")
    if any(line["singular_values"][0] > 0 for line in ledger["layers"].values()):
        Console(stderr=True, highlight=False, width=max(console.width, 125)).print(layer_table(ledger["layers"]))
    for warning in ledger["warnings"]:
        console.print(f"  warning: {warning}", style="yellow")


def layer_table(layers: dict[str, Any]) -> Table:
    """Per layer: size of the update against the weight, its spectrum, the energy it holds; quartiles where there are many."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in ("layer", "‖ηB0A0‖/‖W0‖", "leading singular values", "energy held"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    rows = sorted(layers.items(), key=lambda item: item[1]["relative_norm"] or 0.0) if len(layers) > LAYERS_SHOWN else list(layers.items())
    if len(rows) > LAYERS_SHOWN:
        rows = [rows[round(q * (len(rows) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
        table.caption = f"the least, the quartiles and the largest of {len(layers)} layers; all are in init/ledger.json"
    for name, line in rows:
        energy = line.get("energy")
        values = " ".join(f"{s:.2g}" for s in line["singular_values"][:4])
        table.add_row(name, f"{line['relative_norm'] or 0:.2g}", values, f"{energy['share']:.1%} of {energy['of']}" if energy else "—")
    return table


def result(outcome: Outcome) -> None:
    """The metrics of every split, then cost and size, on standard output."""
    if os.environ.get("RANK", "0") != "0":
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
        table.add_row(f"{split}{chosen}", *(f"{values[m]:.4f}" if m in values else "" for m in metrics))
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
