"""Gradient descent with or without momentum, on whatever trains."""

from __future__ import annotations

import torch

from loraexp.adapter.adapted import Adapters
from loraexp.optimizers.elementwise import GradientDescent
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, factor_blocks, head_section


@rule()
def sgd(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """Heavy-ball gradient descent (Polyak 1964); with `momentum=0` the gradient descent of
    LoRA-One, equation (4).

    `m ← momentum·m + g`, `p ← (1 − lr·λ) p − lr·m`. Differs from `torch.optim.SGD`: the weight
    decay λ is decoupled, as in AdamW, and not filtered by the momentum.
    """
    sections = [(factor_blocks(adapters, ("A", "B", "R")), lr), head_section(adapters, lr, head_lr)]
    return AdapterOptimizer(sections, weight_decay=weight_decay, base=GradientDescent(momentum))
