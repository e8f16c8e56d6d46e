"""LoRA-One: the best rank-r step against the loss gradient, balanced between A and B."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, LeadingRequest, Start, needs


def request(rank: int, flavour: str = "paper", **_: Any) -> dict[str, LeadingRequest]:
    """The paper asks for an SVD: r triplets, oversampled; the released code calls
    `svd_lowrank(q=512, niter=16)`."""
    # the columns are clipped to the layer's size, where the released code fails
    if flavour == "released":
        return {
            "leading_gradient": LeadingRequest(k=rank, oversample=max(512 - rank, 0), iterations=16)
        }
    if flavour == "slides":  # the code of their time: svd_lowrank(q=4r, niter=4)
        return {"leading_gradient": LeadingRequest(k=rank, oversample=3 * rank, iterations=4)}
    return {"leading_gradient": LeadingRequest(k=rank, oversample=max(rank, 8), iterations=4)}


SCALES = {"paper": 128.0, "released": 128.0, "slides": 16.0}


@needs("leading_gradient", request=request, weighting="samples")
def lora_one(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    scale: float | None = None,
    flavour: Literal["paper", "released", "slides"] = "paper",
    start: Start | None = None,
) -> Factors:
    """Start from the best rank-r approximation of the negative gradient, up to a scale.

    LoRA-One, Algorithm 1 (spectral initialisation). `G` (d_out, d_in) is the gradient of the loss,
    a mean over the calibration rows of each row's own mean loss (init.weighting), `-G = P Σ Qᵀ`,
    `s` is `scale`:

        A0 = √(1/s) (Σ_r/Σ_0)^{1/2} Qᵀ_r   (r, d_in),   B0 = √(1/s) P_r (Σ_r/Σ_0)^{1/2}   (d_out, r)

    so that `B0 A0` is the best rank-r approximation of `-G / (s Σ_0)`: a descent direction.
    Training starts at `W0 + η B0 A0`. `start=None` is the flavour's own start; η does not enter the
    factors.

        released:  the same formula from an SVD with 512 columns and 16 iterations
        slides:    an earlier version, `A0 = √γ Qᵀ_r`, `B0 = √γ P_r` of the SVD of `+G`, start at
                   `W0`; its γ has no value in print, in the code of its time (YuanheZ/LoRA-One
                   ac1e63d, run_exp.py) it is `√d_out / s`

    A `scale` of None is the flavour's: 128, and 16 for slides. Raises ValueError for a rank above
    min(d_out, d_in), a zero gradient, a `scale` that is not positive or an unknown flavour;
    MissingStatistic without a gradient.
    """
    linalg.check_rank(layer.name, rank, min(layer.W.shape), "the singular triplets of its gradient")
    linalg.check_choice(*SCALES, flavour=flavour)
    scale = SCALES[flavour] if scale is None else scale
    linalg.check_positive(scale=scale)
    P, S, Qh = layer.leading_gradient(request(rank, flavour)["leading_gradient"], generator)
    if S[0] == 0:
        raise ValueError(
            f"layer {layer.name}: its gradient is zero and has no directions; drop it from"
            " model.targets"
        )
    own_start: Start = "shifted"
    if flavour == "slides":
        root = layer.d_out**0.25
        A, B, own_start = root * Qh, root * P, "pretrained"
    else:
        root = (S / S[0]).sqrt()
        # the minus: P, Q are of +G, and the method wants those of -G
        A, B = root[:, None] * Qh, -P * root
    A, B = A / math.sqrt(scale), B / math.sqrt(scale)
    return Factors(
        A=linalg.factor(A, layer.W), B=linalg.factor(B, layer.W), start=start or own_start
    )
