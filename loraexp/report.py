"""What a run prints: the line that announces it, the result, and nothing that the record does not hold."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from loraexp.experiment import Outcome
    from loraexp.settings import Settings


def announce(settings: Settings, folder: Path) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    names = " · ".join(str(x) for x in (settings.model.name, settings.task["name"], settings.init["name"], settings.optimizer["name"]))
    print(f"{names} · lr {settings.lr:g} · rank {settings.rank} · seed {settings.seed} → {os.path.relpath(folder)}", file=sys.stderr)


def seconds(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


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
        f"init {seconds(cost.get('init_seconds'))}, train {seconds(cost['train_seconds'])} "
        f"({cost['samples_per_second']:.0f} samples/s), eval {seconds(cost['eval_seconds'])}"
    )
