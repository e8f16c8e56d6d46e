"""CorDA: singular triplets of the weight seen through the second moment of its inputs."""

from __future__ import annotations

from typing import Literal

import torch

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
    W = linalg.at_least_float32(layer.W)
    C = layer.input_moment.to(W)
    C = C + damping * C.diagonal().mean() * torch.eye(layer.d_in, dtype=W.dtype, device=W.device)
    triplets = linalg.svd(W @ C)
    U, S, Vh = triplets.leading(rank) if flavour == "ipm" else triplets.trailing(rank)
    root = (S / scaling).sqrt()
    A = root[:, None] * torch.cholesky_solve(Vh.mT, torch.linalg.cholesky(C)).mT
    return Factors(A=linalg.factor(A, layer.W), B=linalg.factor(U * root, layer.W), start=start)
