"""P-LoRA: Riemannian preconditioning of the gradients of A and B."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from loraexp.adapter.adapted import Adapters
from loraexp.optimizers.grams import grams, inverse, require_damping
from loraexp.optimizers.pairs import PairOptimizer
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import base_rule, factor_blocks, head_section


def precondition(A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The gradients in the metric of the product B A (LoRA-One, Algorithm 2 line 9; Zhang & Pilanci 2024, Algorithm 1).

    `g_A ← (BᵀB + λI)⁻¹ g_A`, `g_B ← g_B (A Aᵀ + λI)⁻¹`; λ = 0 takes the pseudo-inverse, as LoRA-One's (Prec-GD).
    A (…, r, d_in), B (…, d_out, r), any leading dimensions; the result has the shapes of the gradients.
    Raises `FloatingPointError` where A or B is not finite.
    """
    inverse_A, inverse_B = inverse(grams(A, B), damping)
    return inverse_B @ grad_A, (inverse_A @ grad_B.mT).mT  # the inverse is symmetric; this order is the faster one


@rule("A", "B", plain_pair=True)
def p_lora(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    base: Literal["adamw", "gd"] = "adamw",
    damping: float = 1e-6,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW, or gradient descent, on preconditioned gradients (LoRA-One, Algorithm 2; Zhang & Pilanci 2024, Algorithm 1).

    `damping` is λ, absolute; LoRA-One-P uses 0. The head is not preconditioned.
    PEFT's `create_riemannian_optimizer` is the same rule with `damping=1e-2`.
    Raises `FloatingPointError`, naming step and parameter, where a gradient is not finite before or after.
    """
    require_damping(damping)
    sections = [(factor_blocks(adapters, ("A", "B")), lr), head_section(adapters, lr, head_lr)]

    def transform(A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        return precondition(A, B, grad_A, grad_B, damping)

    return PairOptimizer(sections, weight_decay=weight_decay, base=base_rule(base, beta1, beta2, eps), transform=transform)
