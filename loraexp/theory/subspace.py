"""LoRA-SB's theorems as numbers: the closest gradient of R, what it does to the scale s, and the
first step (2, 4, 5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from loraexp.initializers.lora_sb import lora_sb
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed
from loraexp.statistics import layer_generator
from loraexp.theory import shifts
from loraexp.theory.starts import subspace_of_gradient


def plain(A: Tensor, B: Tensor, gradient: Tensor, s: float) -> Tensor:
    """LoRA-XS's own gradient of R, `s Bᵀ g Aᵀ` (Lemma 1)."""
    return s * B.mT @ gradient @ A.mT


def closest(A: Tensor, B: Tensor, gradient: Tensor, s: float) -> Tensor:
    """Theorem 2: `(1/s²) (BᵀB)⁻¹ g_R (A Aᵀ)⁻¹` of LoRA-XS's own gradient of R."""
    half = torch.linalg.solve(B.mT @ B, plain(A, B, gradient, s))
    return torch.linalg.solve(A @ A.mT, half.mT).mT / s**2


RULES = {"closest": closest, "plain": plain}


def equivalent(rule: str, A: Tensor, B: Tensor, gradient: Tensor, s: float) -> Tensor:
    """`g̃ = s B g^R A` (Definition 1) (d_out, d_in)."""
    return s * B @ RULES[rule](A, B, gradient, s) @ A


def least(A: Tensor, B: Tensor, gradient: Tensor) -> float:
    """`min ‖B X A − g‖` over every X (r, r), by dense least squares on vec(X): no formula of the
    paper.
    """
    # row-major vec(B X A) = (B ⊗ Aᵀ) vec(X)
    columns = torch.kron(B.contiguous(), A.mT.contiguous())
    target = gradient.reshape(-1, 1)
    solution = torch.linalg.lstsq(columns, target, driver="gelsd").solution
    return float((columns @ solution - target).norm())


def best(gradient: Tensor, rank: int) -> Tensor:
    """The best rank-r approximation (Eckart-Young)."""
    U, S, Vh = torch.linalg.svd(gradient, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def theorems_of_lora_sb(
    d: int,
    outputs: int,
    rank: int,
    true_rank: int,
    rows: int,
    scales: list[float],
    seeds: int,
    progress: Progress,
) -> Computed:
    """Theorems 2, 4 and 5 of LoRA-SB on the gradient of the linear task.

    Rows: `closest`, the rule of Theorem 2, and `plain`, LoRA-XS's own gradient of R. Values by row,
    one for each seed: `…/excess`: distance of `g̃` to the full gradient over the least possible,
    less 1, for random A and B of full rank; `…/change`: the change of `g̃` from the first of
    `scales` to the last, over its size at the first (Theorem 4). `first step/orthonormal`: the
    distance of R's first step of gradient descent to the best rank-r step of full fine-tuning, over
    the size of that, with A and B of the gradient's singular vectors (Theorem 5, whose first step
    is that of SGD), `first step/signs` with those of `lora_sb` (of the gradient's signs, for
    AdamW), and `first step/random`.
    """
    given = shifts.tasks(seeds, d, outputs, [float(true_rank - i) for i in range(true_rank)], rows)
    values: dict[str, list[float]] = {}
    for seed, layer in enumerate(given.layers()):
        g = layer_generator(seed, "random factors")
        A = torch.randn(rank, d, generator=g, dtype=torch.float64)
        B = torch.randn(outputs, rank, generator=g, dtype=torch.float64)
        G, floor = layer.gradient, least(A, B, layer.gradient)
        for rule in RULES:
            at = [equivalent(rule, A, B, G, s) for s in scales]
            values.setdefault(f"{rule}/excess", []).append(float((at[0] - G).norm()) / floor - 1)
            values.setdefault(f"{rule}/change", []).append(
                float((at[-1] - at[0]).norm() / at[0].norm())
            )
        target = best(G, rank)
        orthonormal = (torch.linalg.qr(A.mT).Q.mT, torch.linalg.qr(B).Q)
        gradient = subspace_of_gradient(layer, g, rank=rank)
        signs = lora_sb(layer, rank=rank, scaling=1.0, generator=g, step_size=1e-3)
        for name, (A, B) in (
            ("orthonormal", (gradient.A, gradient.B)),
            ("signs", (signs.A, signs.B)),
            ("random", orthonormal),
        ):
            step = equivalent("plain", A, B, G, 1.0)
            values.setdefault(f"first step/{name}", []).append(
                float((step - target).norm() / target.norm())
            )
        progress(seed + 1, seeds)
    return Computed(values=dict(values))
