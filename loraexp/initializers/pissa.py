"""PiSSA: the principal singular triplets of the weight."""

from __future__ import annotations

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs()
def pissa(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    iterations: int | None = None,
    start: Start = "pretrained",
) -> Factors:
    """Train the r largest singular triplets of the weight and freeze the rest of it.

    Meng et al. 2024 (arXiv 2404.02948), equations 2 to 4, for `W0 = U diag(S) Vh`:

        A0 = √(S_r/η) Vh_r   (r, d_in),   B0 = U_r √(S_r/η)   (d_out, r),
            so that η B0 A0 = best rank-r part of W0

    `start="pretrained"` leaves the residual `W0 - η B0 A0` frozen. `iterations=None` decomposes
    exactly; a number takes the randomised SVD with that many subspace iterations and no
    oversampling, PEFT's `pissa_niter_<iterations>`. Raises ValueError for a rank above min(d_out,
    d_in), a scaling or an `iterations` that is not positive.
    """
    linalg.check_rank(layer.name, rank, min(layer.W.shape), "the singular triplets of its weight")
    linalg.check_positive(scaling=scaling)
    if iterations is None:
        U, S, Vh = linalg.svd(layer.W).leading(rank)
    else:
        linalg.check_positive(iterations=iterations)
        U, S, Vh = linalg.randomized_svd(layer.W, rank, 0, iterations, generator)
    root = (S / scaling).sqrt()
    return Factors(
        A=linalg.factor(root[:, None] * Vh, layer.W),
        B=linalg.factor(U * root, layer.W),
        start=start,
    )
