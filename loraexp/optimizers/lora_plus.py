"""LoRA+: a larger learning rate for B than for A."""

from __future__ import annotations

import torch

from loraexp.adapter.adapted import Adapters
from loraexp.optimizers.elementwise import AdamW
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, factor_blocks, head_section


@rule("A", "B")
def lora_plus(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    ratio: float = 16.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW where B learns `ratio` times as fast as A (Hayou, Ghosh & Yu 2024, section 4).

    `lr_A = lr`, `lr_B = ratio · lr`; the new head keeps `lr` (or takes `head_lr`). `ratio=1` is
    AdamW. Differs from the released code, which PEFT has too: there, one-dimensional weights of the
    head learn at `lr_B` and weight decay skips biases; here the rate of B is B's alone and weight
    decay is the same for everything.
    """
    if not ratio > 0:
        raise ValueError(f"optimizer.ratio={ratio}: expected a number > 0")
    sections = [
        (factor_blocks(adapters, ("A", "R")), lr),
        (factor_blocks(adapters, ("B",)), ratio * lr),
        head_section(adapters, lr, head_lr),
    ]
    return AdapterOptimizer(sections, weight_decay=weight_decay, base=AdamW(beta1, beta2, eps))
