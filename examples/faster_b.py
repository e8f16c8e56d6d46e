"""faster_b: AdamW in which B learns four times as fast as A."""

from __future__ import annotations

import torch

from loraexp.adapter import Adapters
from loraexp.optimizers.elementwise import AdamW
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, factor_blocks, head_section


@rule("A", "B")  # the factors that must train for it; frozen=("A",) for those that must not
def faster_b(
    adapters: Adapters, *, lr: float, weight_decay: float, ratio: float = 4.0
) -> torch.optim.Optimizer:
    """AdamW in which B learns `ratio` times as fast as A; the new head keeps `lr`."""
    sections = [
        (factor_blocks(adapters, ("A", "R")), lr),
        (factor_blocks(adapters, ("B",)), ratio * lr),
        head_section(adapters, lr, None),
    ]
    return AdapterOptimizer(sections, weight_decay=weight_decay, base=AdamW(0.9, 0.999, 1e-8))
