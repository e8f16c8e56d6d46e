"""Predictions and metrics of a model on the splits of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import nn

from loraexp.machine.device import Runtime, to_device
from loraexp.machine.progress import bar
from loraexp.run.sharding import gathered_root
from loraexp.scoring.passes import each, in_batches

if TYPE_CHECKING:
    from loraexp.run.task import Task

Value = TypeVar("Value")


def of_batches(
    model: nn.Module,
    task: Task,
    split: str,
    function: Callable[[dict[str, Any]], Value],
    *,
    batch_size: int,
    runtime: Runtime,
) -> list[tuple[np.ndarray, Value]]:
    """The rows of every batch of a split, and what `function` makes of it in one forward pass, on
    every process in the same order.

    Rows are batched by length, longest first (a batch that does not fit the memory fails at once).
    """
    examples = task.splits[split]
    batches = in_batches(np.argsort(-examples.lengths, kind="stable"), batch_size)

    def work(rows: np.ndarray) -> tuple[np.ndarray, Value]:
        batch = to_device(task.collate(examples, rows), runtime.device)
        with runtime.autocast():
            return rows, function(batch)

    with bar(f"eval {split}", len(examples)) as advance:
        return each(
            model,
            batches,
            work,
            processes=runtime.processes,
            told=lambda _, value, of: advance(len(value[0]), total=of),
        )


def predict(
    model: nn.Module, task: Task, split: str, *, batch_size: int, runtime: Runtime
) -> np.ndarray:
    """The task's scores (rows, C) of a split, in the order of its rows."""
    parts = of_batches(
        model,
        task,
        split,
        lambda batch: task.scores(model, batch).float().cpu().numpy(),
        batch_size=batch_size,
        runtime=runtime,
    )
    everything = np.zeros((len(task.splits[split]), parts[0][1].shape[1]), dtype=np.float32)
    for rows, scores in parts:
        everything[rows] = scores
    return everything


def evaluate(
    model: nn.Module,
    task: Task,
    splits: Iterable[str],
    *,
    batch_size: int,
    runtime: Runtime,
    folder: Path | None = None,
) -> dict[str, dict[str, float]]:
    """`{split: {metric: value}}`; a model whose outputs are not finite has no metrics and raises.

    The processes share the work; what a task saw of a split it may leave in `folder`.
    """
    folder = folder if runtime.processes.main else None
    with task.answering(), gathered_root(model):
        return {
            split: task.evaluate(
                model, task.tokenizer, split, batch_size=batch_size, runtime=runtime, folder=folder
            )
            for split in splits
        }
