"""The loss on the same rows before and after initialising: what a start did to the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from loraexp.adapter.layer import Factors
from loraexp.machine.device import Runtime, numbers, to_device
from loraexp.machine.processes import gathered
from loraexp.run.sharding import gathered_root
from loraexp.scoring.passes import each

# Of the loss: what is left of a product that is taken off again is rounding below this, in float32.
ROUNDING = 1e-5


@dataclass
class StartLoss:
    """The mean loss, dropout off, over some batches; `()` runs the model on all of them."""

    model: nn.Module
    loss_sum: Callable[[Any, Any], tuple[Tensor, int]]
    batches: Sequence[dict[str, Tensor]]  # those that take least time first
    runtime: Runtime
    before: list[float] = field(default_factory=list)  # the sum over each batch
    counts: list[int] = field(default_factory=list)  # and the terms of it

    def __call__(self) -> float:
        sums, counts = self.sums(self.batches)
        return sum(sums) / sum(counts)

    def start(self) -> float:
        """Before anything is attached."""
        self.before, self.counts = self.sums(self.batches)
        return sum(self.before) / sum(self.counts)

    def after(self, factors: Mapping[str, Factors]) -> float:
        """With the factors in place.

        Where they begin as nothing, or are taken off again, the function is the pretrained one: the
        first batch says whether that is so, and the others are run only where it is not.
        """
        made = list(factors.values())
        products = numbers([(f.A.any() & f.B.any()).float() for f in made])
        pairs = zip(made, products, strict=True)
        if all(f.start == "pretrained" or not product for f, product in pairs):
            sums, _ = self.sums(self.batches[:1])
            moved = sums[0] - self.before[0]
            most = ROUNDING * abs(self.before[0]) if any(products) else 0.0
            if all(gathered(abs(moved) <= most)):
                return (sum(self.before) + moved) / sum(self.counts)
        return self()

    def sums(self, batches: Sequence[dict[str, Tensor]]) -> tuple[list[float], list[int]]:
        """The sum of the losses of each batch, and how many they are."""

        def loss(batch: dict[str, Tensor]) -> tuple[Tensor, int]:
            return self.loss_sum(self.model, to_device(batch, self.runtime.device))

        with gathered_root(self.model):
            parts = each(self.model, batches, loss)
        return numbers([total for total, _ in parts]), [count for _, count in parts]
