"""LoRA-FA: A stays frozen, B trains."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from loraexp.adapter.adapted import Adapters
from loraexp.optimizers.elementwise import AdamW
from loraexp.optimizers.grams import inverse
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, Block, factor_blocks, head_section

DAMPING = 1e-8  # PEFT's, on A Aᵀ


def rescaled_gradient(A: Tensor, grad_B: Tensor, scaling: float) -> Tensor:
    """PEFT's gradient of B: `(1/η²) g_B (A Aᵀ + 1e-8 I)⁻¹`, for which `η g_B A` is closest to the
    full gradient.

    A (…, r, d_in), grad_B (…, d_out, r), any leading dimensions.
    """
    return grad_B @ inverse(A @ A.mT, DAMPING) / scaling**2


class RescaledLoRAFA(AdapterOptimizer):
    """AdamW on `rescaled_gradient`."""

    def directions(self, blocks: list[Block], gradients: list[Tensor]) -> list[Tensor]:
        directions = list(gradients)
        for place, (block, gradient) in enumerate(zip(blocks, gradients, strict=True)):
            if block.factor is not None:
                A = torch.stack([layer.lora_A.detach() for layer in block.layers]).to(
                    gradient.dtype
                )
                directions[place] = rescaled_gradient(A, gradient, block.layers[0].scaling)
        return directions


@rule("B", needs_frozen=("A", "R"))
def lora_fa(
    adapters: Adapters,
    *,
    lr: float,
    weight_decay: float,
    rule: Literal["adamw", "peft"] = "adamw",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    head_lr: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW on B alone (Zhang et al. 2023, LoRA-FA; the row of LoRA-DA, Table 3).

    `rule=adamw` takes the plain gradient, as the paper; `rule=peft` takes `rescaled_gradient`, as
    PEFT's `create_lorafa_optimizer`. PEFT's other habits are not taken over: it adds ε (1e-6) to
    the square root before the bias correction, decays weights after the step, and rounds the
    product to bf16 wherever the machine has bf16.
    """
    if rule not in ("adamw", "peft"):
        raise ValueError(f"optimizer.rule={rule!r}: expected adamw or peft")
    sections = [(factor_blocks(adapters, ("B",)), lr), head_section(adapters, lr, head_lr)]
    shell = AdapterOptimizer if rule == "adamw" else RescaledLoRAFA
    return shell(sections, weight_decay=weight_decay, base=AdamW(beta1, beta2, eps))
