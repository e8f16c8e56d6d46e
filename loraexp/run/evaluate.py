"""Predictions and metrics of a model on the splits of a task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from loraexp.machine.device import autocast, to_device
from loraexp.machine.processes import Processes
from loraexp.machine.progress import bar

if TYPE_CHECKING:
    from loraexp.run.task import Task


@torch.inference_mode()
def predict(
    model: nn.Module,
    task: Task,
    split: str,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    processes: Processes | None = None,
) -> np.ndarray:
    """The task's scores (rows, C) of a split, in the order of its rows.

    Rows are batched by length, longest first (a batch that does not fit the memory fails at once). Every process runs
    the same number of batches, the last one again where they do not divide.
    """
    examples = task.splits[split]
    order = np.argsort(-examples.lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rank, world = (processes.rank, processes.world) if processes else (0, 1)
    mine = [batches[min(i * world + rank, len(batches) - 1)] for i in range(-(-len(batches) // world))]
    was_training = model.training
    model.eval()
    found = []
    try:
        with bar(f"eval {split}", len(mine)) as advance:
            for rows in mine:
                batch = to_device(task.collate(examples, rows), device)
                with autocast(device, precision):
                    logits = task.scores(model, batch)
                found.append((rows, logits.float().cpu().numpy()))
                advance()
    finally:
        model.train(was_training)
    everything = np.zeros((len(order), found[0][1].shape[1]), dtype=np.float32)
    for share in processes.gather(found) if processes else [found]:
        for rows, values in share:
            everything[rows] = values
    return everything


def evaluate(model: nn.Module, task: Task, splits: Iterable[str], *, folder: Path | None = None, **how: Any) -> dict[str, dict[str, float]]:
    """`{split: {metric: value}}`; a model whose outputs are not finite has no metrics and raises.

    The processes share the work; what a task saw of a split it may leave in `folder`.
    """
    folder = folder if how["processes"].main else None
    with task.answering():
        return {split: task.evaluate(model, task.tokenizer, split, folder=folder, **how) for split in splits}
