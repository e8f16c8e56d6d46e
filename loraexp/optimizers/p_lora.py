"""P-LoRA: Riemannian preconditioning of the gradients of A and B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from loraexp.adapter.adapted import Adapters
from loraexp.optimizers.elementwise import AdamW, Base, UncorrectedAdamW, base_rule
from loraexp.optimizers.grams import grams, inverse, require_damping
from loraexp.optimizers.pairs import PairOptimizer, pairs
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, Block, factor_blocks, head_section


def precondition(
    A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """The gradients in the metric of the product B A (LoRA-One, Algorithm 2 line 9; Zhang & Pilanci
    2024, Algorithm 1).

    `g_A ← (BᵀB + λI)⁻¹ g_A`, `g_B ← g_B (A Aᵀ + λI)⁻¹`; λ = 0 takes the pseudo-inverse, as
    LoRA-One's (Prec-GD). A (…, r, d_in), B (…, d_out, r), any leading dimensions; the result has
    the shapes of the gradients. Raises `FloatingPointError` where A or B is not finite.
    """
    inverse_A, inverse_B = inverse(grams(A, B), damping)
    return inverse_B @ grad_A, grad_B @ inverse_A


class InTurn(AdapterOptimizer):
    """A is stepped first, and B's gradient is preconditioned by the A that came of it."""

    def __init__(
        self,
        sections: Sequence[tuple[list[Block], float]],
        *,
        weight_decay: float,
        base: Base,
        damping: float,
    ) -> None:
        super().__init__(sections, weight_decay=weight_decay, base=base)
        self.damping = damping

    def directions(self, blocks: list[Block], gradients: list[Tensor]) -> list[Tensor]:
        directions = list(gradients)
        for place, A, B in pairs(blocks):
            _, inverse_B = inverse(grams(A.values, B.values), self.damping)
            directions[place] = inverse_B @ gradients[place]
        return directions

    def apply(self, group: dict[str, Any], blocks: list[Block], directions: list[Tensor]) -> None:
        if blocks[0].factor is None:
            return super().apply(group, blocks, directions)
        for place, A, B in pairs(blocks):
            super().apply(group, [A], [directions[place]])
            inverse_A = inverse(A.values @ A.values.mT, self.damping)
            direction = directions[place + 1] @ inverse_A
            self.screen([B], [direction], [directions[place + 1]])
            super().apply(group, [B], [direction])


@rule("A", "B", plain_pair=True)
def p_lora(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    flavour: Literal["paper", "released"] = "paper",
    base: Literal["adamw", "gd"] = "adamw",
    damping: float = 1e-6,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW, or gradient descent, on preconditioned gradients (LoRA-One, Algorithm 2; Zhang &
    Pilanci 2024, Algorithm 1).

    `damping` is λ, absolute; LoRA-One-P uses 0. The head is not preconditioned.

        paper:     both gradients in the metric of the current factors, AdamW with its bias
                   correction
        released:  the moments are not corrected, and B's Gram matrix is of the A that this step has
                   already moved (pilancilab/Riemannian_Preconditioned_LoRA c3a2c1b,
                   Mistral-7B/mistral/custom_optimizer.py, AdamWr; its ε and λ are both 1e-6). Its
                   gradient descent (SGDr) is the paper's.

    PEFT's `create_riemannian_optimizer` is the same rule with `damping=1e-2`. Raises
    `FloatingPointError`, naming step and parameter, where a gradient is not finite before or after.
    """
    require_damping(damping)
    if flavour not in ("paper", "released"):
        raise ValueError(f"optimizer.flavour={flavour!r}: expected paper or released")
    sections = [(factor_blocks(adapters, ("A", "B")), lr), head_section(adapters, lr, head_lr)]
    elementwise = base_rule(base, beta1, beta2, eps)
    if flavour == "released" and isinstance(elementwise, AdamW):
        return InTurn(
            sections,
            weight_decay=weight_decay,
            base=UncorrectedAdamW(beta1, beta2, eps),
            damping=damping,
        )

    def transform(
        A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        return precondition(A, B, grad_A, grad_B, damping)

    return PairOptimizer(sections, weight_decay=weight_decay, base=elementwise, transform=transform)
