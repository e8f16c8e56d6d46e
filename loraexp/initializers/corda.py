"""CorDA: singular triplets of the weight seen through the second moment of its inputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs("input_moment")
def corda(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    flavour: Literal["ipm", "kpm"] = "ipm",
    damping: float = 0.01,
    start: Start = "pretrained",
) -> Factors:
    """Decompose the weight along the directions that its inputs use, and train the r most or the r
    least used of them.

    Yang et al. 2024 (arXiv 2406.05223), section 3. `C` (d_in, d_in) is `E[h hᵀ]`, the mean over
    unpadded tokens, with `damping · tr(C)/d_in` added to its diagonal; `W0 C = U diag(S) Vh`:

        A0 = √(S_r/η) Vh_r C⁻¹  (r, d_in),      B0 = U_r √(S_r/η)  (d_out, r)

        ipm (instruction-previewed): the r largest triplets
            kpm (knowledge-preserved): the r smallest

    The product does not depend on the scale of C; the balance of A against B does (`C → aC`: `B →
    √a B`, `A → A/√a`). Differs from PEFT: that takes C as a mean over batches of inputs divided by
    their largest entry, which moves the balance, and doubles the damping until an explicit inverse
    is accurate; here the system is solved, nothing inverted. Raises ValueError for a rank above
    min(d_out, d_in), a `damping` or scaling that is not positive or an unknown flavour;
    MissingStatistic without an input moment.
    """
    linalg.check_rank(layer.name, rank, min(layer.W.shape), "the singular triplets of its weight")
    linalg.check_positive(scaling=scaling, damping=damping)
    linalg.check_choice("ipm", "kpm", flavour=flavour)
    C = layer.input_moment.to(linalg.at_least_float32(layer.W[:0]))
    ridge = damping * C.diagonal().mean()
    U, S, Vh = triplets(layer.W, C, ridge, rank, flavour)
    damped = C.clone()
    damped.diagonal().add_(ridge)
    lower, _ = linalg.cholesky_in_place(damped, check=True)
    root = (S / scaling).sqrt()
    A = root[:, None] * torch.cholesky_solve(Vh.mT, lower).mT
    return Factors(A=linalg.factor(A, layer.W), B=linalg.factor(U * root, layer.W), start=start)


def triplets(W: Tensor, C: Tensor, ridge: Tensor, rank: int, flavour: str) -> linalg.SVD:
    """The r largest, or smallest, of `W (C + ridge I)`, of which nothing else is kept: at
    LLaMA-2-7B's widths C alone has 462 MiB."""
    wide = linalg.at_least_float32(W)
    product = wide @ C
    product.addcmul_(wide, ridge)
    del wide
    found = linalg.svd(product)
    kept = found.leading(rank) if flavour == "ipm" else found.trailing(rank)
    return linalg.SVD(*(x.clone(memory_format=torch.contiguous_format) for x in kept))
