"""LoRA-SB: frozen subspaces of the first full fine-tuning step, with a trained r × r matrix between
them."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, Training, needs


def settle(hyper: dict[str, Any], training: Training) -> dict[str, Any]:
    """Fill in a `step_size` of None, the η of equation 7.

    paper: the rate of the first step, lr times the schedule's factor there. released: `lr /
    (warmup_ratio · steps)`, steps being the batches of its estimation loader in all epochs, of
    `loader_batch` rows each, or those of the training. Raises ValueError where `released` would
    divide by a warm-up of zero.
    """
    if hyper.get("step_size") is not None:
        return hyper
    if hyper.get("flavour", "paper") == "paper":
        return hyper | {"step_size": training.lr * training.factor}
    if training.warmup_ratio == 0:
        raise ValueError(
            "init.flavour=released divides lr by train.warmup_ratio, which is 0: set"
            " train.warmup_ratio above 0, or init.step_size"
        )
    batch = hyper.get("loader_batch")
    steps = training.steps if batch is None else math.ceil(training.rows / batch) * training.epochs
    return hyper | {"step_size": training.lr / (training.warmup_ratio * steps)}


@needs("summed_gradient", trains=("R",), weighting="samples", settle=settle)
def lora_sb(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    step_size: float | None = None,
    flavour: Literal["paper", "released"] = "paper",
    loader_batch: int | None = None,
    noise: float = 0.0,
    delta: Literal["sign", "kaiming"] = "sign",
    factors: Literal["orthonormal", "us"] = "orthonormal",
    start: Start = "shifted",
) -> Factors:
    """Freeze A and B at the subspaces of AdamW's first step of full fine-tuning and train only R.

    LoRA-SB, equations 1, 2 and 7. `Σ_i ∇L_i` (d_out, d_in) is the SUM of the samples' gradients, s
    is the scaling (1 in the paper), and `U diag(S) Vh` the truncated SVD of `ΔW`:

        ΔW = -step_size · sign(Σ_i ∇L_i)
        A = Vh_r   (r, d_in),   B = U_r   (d_out, r),   R0 = diag(S_r) / s
            (r, r, all of it trained)

    so that `BᵀB = A Aᵀ = I` and `s B R0 A` is the best rank-r approximation of `ΔW`. Training
    starts there. A run fills in a `step_size` of None by `settle`: the scheduled first step, or
    with flavour=released the code's.

        noise:          ΔW + N(0, noise²)                                              (Table 4)
        delta=kaiming:   a Kaiming normal matrix N(0, 2/d_in) in place of ΔW
            (Table 4; reads no gradient)
        factors=us:   B = U_r S_r, R0 = I / s, neither orthonormal nor optimal
            (equations 36 to 39)

    Raises ValueError for a rank above min(d_out, d_in), a `step_size` or scaling that is not
    positive, a negative `noise`, a zero gradient or an unknown choice; MissingStatistic without a
    summed gradient.
    """
    linalg.check_rank(
        layer.name, rank, min(layer.W.shape), "the singular triplets of its first update"
    )
    linalg.check_choice("paper", "released", flavour=flavour)
    if step_size is None:
        raise ValueError(
            "step_size=None: expected a number; a run takes it from its learning rate and schedule"
        )
    linalg.check_positive(scaling=scaling, step_size=step_size)
    linalg.check_choice("sign", "kaiming", delta=delta)
    linalg.check_choice("orthonormal", "us", factors=factors)
    U, S, Vh = leading_update(
        first_update(layer, step_size, noise, delta, generator), rank, generator
    )
    if factors == "orthonormal":
        B, R = U, torch.diag(S) / scaling
    else:
        B, R = U * S, torch.eye(rank, dtype=S.dtype, device=S.device) / scaling
    A, B, R = (linalg.factor(x, layer.W) for x in (Vh, B, R))
    return Factors(A=A, B=B, R=R, start=start, train=frozenset({"R"}))


def first_update(
    layer: Layer, step_size: float, noise: float, delta: str, generator: torch.Generator
) -> Tensor:
    """`ΔW` (d_out, d_in): the first AdamW step of full fine-tuning (equation 7), or what Table 4
    puts in its place."""
    if noise < 0:
        raise ValueError(f"noise={noise}: expected a standard deviation of 0 or more")
    if delta == "sign":
        G = linalg.at_least_float32(layer.summed_gradient)
        if not G.any():
            raise ValueError(
                f"layer {layer.name}: its gradient is zero and makes no step; drop it from"
                " model.targets"
            )
        update = torch.sign(G).mul_(-step_size)
    else:
        like = linalg.at_least_float32(layer.W)
        update = (2 / layer.d_in) ** 0.5 * linalg.gaussian(layer.d_out, layer.d_in, generator, like)
    return (
        update + noise * linalg.gaussian(layer.d_out, layer.d_in, generator, update)
        if noise
        else update
    )


def leading_update(update: Tensor, rank: int, generator: torch.Generator) -> linalg.SVD:
    """Truncated SVD of a sign matrix, whose spectrum decays slowly: 4r columns and 16 iterations.

    Measured at 768 × 768, r = 8, float32, one thread: 20 ms, where the dense SVD takes 100 ms.
    Signs of a gradient with a leading part: the product is the dense one's to 7e-7. Signs of pure
    noise, the worst case: the singular values lie so close that the subspace is not settled (9 % of
    the product), but the product's distance to `ΔW` is within 1.2e-5
    (relative) of the least possible.
    """
    return linalg.randomized_svd(update, rank, 3 * rank, 16, generator)
