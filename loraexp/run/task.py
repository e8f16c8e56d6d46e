"""What a task is to the rest of the house: tokenised examples, a loss, outputs, and metrics over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from loraexp.data.tokens import Examples


class Task(Protocol):
    """What every task has. Some have more, used where it is there: `sample_losses(model, batch)` (n,) where a row has
    several label tokens; `scores(model, batch)` (n, C) where classes are scored otherwise than by `outputs`; and
    `evaluate(model, tokenizer, split, batch_size, device, precision, folder, processes)` where metrics are not made from logits.
    """

    name: str
    version: int
    num_labels: int | None  # of the model's head; None where the task adds none
    problem: Literal["single_label_classification", "regression", "generation"]
    label_names: list[str]
    metric: str  # the value that selects the best checkpoint; higher is better
    selection: str | None  # the split that selects; None: nothing does, the last weights are kept
    reports: tuple[str, ...]  # the splits that are reported
    splits: Mapping[str, Examples]  # "train", "held_out" where the protocol has one, and the reported ones

    def collate(self, examples: Examples, rows: Sequence[int] | np.ndarray, *, pad_to: int | None = None) -> dict[str, Tensor]:
        """The rows as one batch, padded to the longest of them (or to `pad_to` tokens)."""
        ...

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The sum of the labels' losses, and the number of labels."""
        ...

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (batch, C), or (batch, L, V) at the label tokens: a sample's own, whatever batch it is in."""
        ...

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The task's metrics of the logits (n, C) against the labels (n,)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Per split: rows, fingerprint, source and what else the record should say about the data."""
        ...
