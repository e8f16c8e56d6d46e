"""Predictions and metrics of a model on the splits of a task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from loraexp.machine.processes import Processes
from loraexp.machine.progress import bar

if TYPE_CHECKING:
    from loraexp.run.task import Task


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 products over float32 trained weights where `precision="bf16"`; nothing otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return batch
    pinned = device.type == "cuda"
    return {k: (v.pin_memory() if pinned else v).to(device, non_blocking=pinned) for k, v in batch.items()}


@torch.inference_mode()
def predict(
    model: nn.Module, task: Task, split: str, *, batch_size: int, device: torch.device, precision: str, processes: Processes
) -> np.ndarray:
    """Logits (rows, C) of a split, in the order of its rows; a text task's scores of its classes.

    Rows are batched by length, longest first (a batch that does not fit the memory fails at once). Every process runs
    the same number of batches, the last one again where they do not divide.
    """
    examples = task.splits[split]
    order = np.argsort(-examples.lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rounds = -(-len(batches) // processes.world)
    mine = [batches[min(i * processes.world + processes.rank, len(batches) - 1)] for i in range(rounds)]
    outputs = getattr(task, "scores", task.outputs)
    was_training = model.training
    model.eval()
    found = []
    try:
        with bar(f"eval {split}", len(mine)) as advance:
            for rows in mine:
                batch = to_device(task.collate(examples, rows), device)
                with autocast(device, precision):
                    logits = outputs(model, batch)
                found.append((rows, logits.float().cpu().numpy()))
                advance()
    finally:
        model.train(was_training)
    everything = np.zeros((len(order), found[0][1].shape[1]), dtype=np.float32)
    for share in processes.gather(found):
        for rows, values in share:
            everything[rows] = values
    return everything


def evaluate(model: nn.Module, task: Task, splits: Iterable[str], *, folder: Path | None = None, **how: Any) -> dict[str, dict[str, float]]:
    """`{split: {metric: value}}`; a model whose outputs are not finite has no metrics and raises.

    A task that is evaluated in a way of its own (by what the model generates) has a method `evaluate`, which shares the
    work among the processes; it may leave what it saw in `folder`.
    """
    results = {}
    own = getattr(task, "evaluate", None)
    for split in splits:
        if own is not None:
            results[split] = own(model, task.tokenizer, split, folder=folder if how["processes"].main else None, **how)  # type: ignore[attr-defined]
            continue
        logits = predict(model, task, split, **how)
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits).all(axis=1)).sum())
            raise FloatingPointError(
                f"{bad} of {len(logits)} rows of {split} have outputs that are not finite: lower lr or use precision=fp32"
            )
        results[split] = task.compute_metrics(logits, task.splits[split].labels)
    return results
