"""LoRA-XS: the principal subspaces of the weight, frozen, with a trained r × r matrix between
them."""

from __future__ import annotations

from typing import Literal

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs(trains=("R",))
def lora_xs(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    sigma: float = 1e-5,
    flavour: Literal["paper", "released"] = "paper",
    start: Start = "shifted",
) -> Factors:
    """Freeze A and B at the r largest singular triplets of the weight and train only R.

    Bałazy et al. 2024 (arXiv 2405.17604), section 3: `W = W0 + η B R A`, and for `W0 = U diag(S)
    Vh`

        A = Vh_r  (r, d_in),      B = U_r S_r  (d_out, r),      R0 (r, r) ~ N(0, σ²)

    The paper takes nothing off `W0`, so its start is "shifted": `W0` and a product of order σ.
    Differs from the released code: that puts the singular values on A, `A = S_r Vh_r`, `B = U_r`
    (flavour "released"). Raises ValueError for a rank above min(d_out, d_in), a `sigma` that is not
    positive or an unknown flavour.
    """
    linalg.check_rank(layer.name, rank, min(layer.W.shape), "the singular triplets of its weight")
    linalg.check_positive(sigma=sigma)
    linalg.check_choice("paper", "released", flavour=flavour)
    U, S, Vh = linalg.svd(layer.W).leading(rank)
    A, B = (Vh, U * S) if flavour == "paper" else (S[:, None] * Vh, U)
    R = sigma * linalg.gaussian(rank, rank, generator, A)
    A, B, R = (linalg.factor(x, layer.W) for x in (A, B, R))
    return Factors(A=A, B=B, R=R, start=start, train=frozenset({"R"}))
