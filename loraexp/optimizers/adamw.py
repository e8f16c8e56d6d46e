"""AdamW on whatever trains: A and B, R alone (LoRA-XS, LoRA-SB), B alone, the new head, or every
weight."""

from __future__ import annotations

import torch

from loraexp.adapter.adapted import Adapters
from loraexp.optimizers.elementwise import AdamW
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, factor_blocks, head_section


@rule()
def adamw(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, Algorithm 2) with decoupled weight decay on every trained
    parameter.

    `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`, `p ← (1 − lr·λ) p − lr · m̂ / (√v̂ + ε)`.
    `head_lr` is the rate of the weights outside the adapters; None: the same `lr`.
    """
    sections = [(factor_blocks(adapters, ("A", "B", "R")), lr), head_section(adapters, lr, head_lr)]
    return AdapterOptimizer(sections, weight_decay=weight_decay, base=AdamW(beta1, beta2, eps))
