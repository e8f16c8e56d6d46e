"""One gradient step and no training: the upper rows of LoRA-One's Table 2."""

from __future__ import annotations

from typing import Literal

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs("gradient", trains=(), weighting="samples")
def one_step(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    step_size: float,
    update: Literal["full", "low_rank"] = "low_rank",
    start: Start = "shifted",
) -> Factors:
    """Take one gradient step, whole or in its best rank-r approximation, and train nothing.

    LoRA-One, section 6.1 and Table 2. `G` (d_out, d_in) is the gradient of the loss, a mean over
    the calibration rows of each row's own mean loss (init.weighting), `G = P Σ Qᵀ`, η* is
    `step_size`, η the scaling:

        full:      η B A = -η* G            A (m, d_in) and B (d_out, m), m = min(d_out, d_in): one
                   of them the identity
        low_rank:  η B A = -η* P_r Σ_r Qᵀ_r      A (r, d_in), B (d_out, r), the singular values
                   split evenly

    Differs from the paper: it prints `W0 - η* G` with G already the negative gradient; this is the
    descent step. Raises ValueError for a start other than shifted (the step would be taken off
    again), a rank above min(d_out, d_in), a `step_size` or scaling that is not positive or an
    unknown update; MissingStatistic without a gradient.
    """
    linalg.check_positive(scaling=scaling, step_size=step_size)
    linalg.check_choice("full", "low_rank", update=update)
    if start != "shifted":
        raise ValueError(
            f"start={start!r}: expected shifted, as any other start takes the one step off again"
        )
    if update == "full":
        step = -step_size / scaling * linalg.at_least_float32(layer.gradient)
        identity = torch.eye(min(step.shape), dtype=step.dtype, device=step.device)
        A, B = (identity, step) if layer.d_in <= layer.d_out else (step, identity)
    else:
        linalg.check_rank(
            layer.name, rank, min(layer.W.shape), "the singular triplets of its gradient"
        )
        P, S, Qh = linalg.randomized_svd(layer.gradient, rank, max(rank, 8), 4, generator)
        root = (step_size / scaling * S).sqrt()
        A, B = root[:, None] * Qh, -P * root
    return Factors(
        A=linalg.factor(A, layer.W), B=linalg.factor(B, layer.W), start=start, train=frozenset()
    )
