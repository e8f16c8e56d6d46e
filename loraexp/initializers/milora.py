"""MiLoRA: the minor singular triplets of the weight."""

from __future__ import annotations

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs()
def milora(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    start: Start = "pretrained",
) -> Factors:
    """Train the r smallest singular triplets of the weight and keep the principal ones frozen.

    Wang et al. 2024 (arXiv 2406.09044), section 3, for `W0 = U diag(S) Vh` with S descending:

        A0 = √(S_-r/η) Vh_-r   (r, d_in),   B0 = U_-r √(S_-r/η)   (d_out, r)
            (-r: the last r triplets)

    The decomposition is exact: a randomised one does not see the smallest triplets.
    Raises ValueError for a rank above min(d_out, d_in) or a scaling that is not positive.
    """
    linalg.check_rank(layer.name, rank, min(layer.W.shape), "the singular triplets of its weight")
    linalg.check_positive(scaling=scaling)
    U, S, Vh = linalg.svd(layer.W).trailing(rank)
    root = (S / scaling).sqrt()
    return Factors(
        A=linalg.factor(root[:, None] * Vh, layer.W),
        B=linalg.factor(U * root, layer.W),
        start=start,
    )
