"""The two-layer network of the MNIST figures, its images as a task, and its pretraining on the odd
digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from loraexp.adapter.adapted import AdaptedLinear, train_everything
from loraexp.config import ConfigError
from loraexp.optimizers.adamw import adamw
from loraexp.run.task import Task
from loraexp.statistics import layer_generator
from loraexp.theory.digits import PIXELS, Digits

CLASSES = 10
HELD_OUT = 1000  # even digits at most that nothing is trained on
PRETRAINING = {"lr": 1e-3, "epochs": 30, "batch_size": 100}


class TwoLayer(nn.Module):
    """`softmax(V relu(W x))` without biases: what full fine-tuning moves is what the adapters
    move."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(PIXELS, width, bias=False)
        self.output = nn.Linear(width, CLASSES, bias=False)
        for name, layer in self.named_children():
            generator = layer_generator(seed, name, "mnist")
            weight = cast(Tensor, layer.weight)
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(functional.relu(self.hidden(x)))

    @torch.no_grad()
    def flat(self) -> Tensor:
        """Both weights, the adapters' updates added, as one vector."""
        layers = (self.hidden, self.output)
        return torch.cat(
            [
                (x.weight + x.update() if isinstance(x, AdaptedLinear) else x.weight).flatten()
                for x in layers
            ]
        )


class Images:
    """Images and labels as a split of a task."""

    def __init__(self, made: Digits) -> None:
        self.x, self.labels = torch.from_numpy(made.images), torch.from_numpy(made.labels)
        self.lengths = np.ones(len(made), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)


class DigitTask(Task):
    """What `initialize` asks of a task: rows, their loss, their logits."""

    def __init__(self, train: Images) -> None:
        super().__init__(
            name="mnist",
            version=1,
            problem="single_label_classification",
            metric="accuracy",
            reports=(),
            splits={"train": train},
        )

    def collate(
        self, examples: Images, rows: Sequence[int] | np.ndarray, *, pad_to: int | None = None
    ) -> dict[str, Tensor]:
        return {"x": examples.x[rows], "labels": examples.labels[rows]}

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["x"])

    def sample_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return functional.cross_entropy(
            self.outputs(model, batch), batch["labels"], reduction="none"
        )

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        return self.sample_losses(model, batch).sum(), len(batch["labels"])

    def label_counts(self, split: str, rows: slice | Sequence[int] | np.ndarray) -> dict[str, int]:
        counts = torch.bincount(self.splits[split].labels[rows], minlength=CLASSES)
        return {str(digit): int(count) for digit, count in enumerate(counts)}

    def describe(self) -> dict[str, Any]:
        return {"train": {"rows": len(self.splits["train"])}}


@dataclass(frozen=True)
class Data:
    odd: Images
    even: Images
    held_out: Images

    @classmethod
    def drawn(cls, pool: Digits, odd: int, even: int, seed: int) -> Data:
        """As many odd digits as asked for (all, where there are fewer), and even ones apart from
        those held out.
        """
        order = np.random.default_rng([seed, 30]).permutation(len(pool))
        is_odd = pool.labels[order] % 2 == 1
        odds, evens = order[is_odd], order[~is_odd]
        if len(evens) <= even or not len(odds):
            raise ConfigError(
                f"compute.even={even}: {pool.source} has {len(evens)} even and {len(odds)} odd"
                " digits; ask for fewer, some are held out"
            )
        parts = odds[:odd], evens[:even], evens[even : even + HELD_OUT]
        return cls(*(Images(pool.take(rows)) for rows in parts))

    @property
    def rows(self) -> dict[str, int]:
        return {part: len(getattr(self, part)) for part in ("odd", "even", "held_out")}


def pretrained(data: Data, width: int, seed: int) -> TwoLayer:
    """The network after AdamW on the odd digits (1e-3, batches of 100, 30 epochs)."""
    model = TwoLayer(width, seed)
    optimizer = adamw(train_everything(model), lr=PRETRAINING["lr"], weight_decay=0.0)
    generator = np.random.default_rng([seed, 31])
    size = int(PRETRAINING["batch_size"])
    for _ in range(int(PRETRAINING["epochs"])):
        order = torch.from_numpy(generator.permutation(len(data.odd)))
        for rows in order.split(size):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(data.odd.x[rows]), data.odd.labels[rows]).backward()
            optimizer.step()
    return model
