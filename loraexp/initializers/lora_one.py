"""LoRA-One: the best rank-r step against the loss gradient, balanced between A and B."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, LeadingRequest, Start, needs


def request(rank: int, flavour: str = "paper", **_: Any) -> dict[str, LeadingRequest]:
    """The paper asks for an SVD: r triplets, oversampled; the released code calls `svd_lowrank(q=512, niter=16)`."""
    if flavour == "released":  # the columns are clipped to the layer's size, where the released code fails
        return {"leading_gradient": LeadingRequest(k=rank, oversample=max(512 - rank, 0), iterations=16)}
    return {"leading_gradient": LeadingRequest(k=rank, oversample=max(rank, 8), iterations=4)}


@needs("leading_gradient", request=request, weighting="samples")
def lora_one(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    scale: float = 128.0,
    flavour: Literal["paper", "released", "slides"] = "paper",
    start: Start | None = None,
) -> Factors:
    """Start from the best rank-r approximation of the negative gradient, up to a scale.

    LoRA-One, Algorithm 1 (spectral initialisation). `G` (d_out, d_in) is the gradient of the loss, a mean over the
    calibration rows of each row's own mean loss (init.weighting), `-G = P Σ Qᵀ`, `s` is `scale`:

        A0 = √(1/s) (Σ_r/Σ_0)^{1/2} Qᵀ_r  (r, d_in),      B0 = √(1/s) P_r (Σ_r/Σ_0)^{1/2}  (d_out, r)

    so that `B0 A0` is the best rank-r approximation of `-G / (s Σ_0)`: a descent direction. Training starts at
    `W0 + η B0 A0`. `start=None` is the flavour's own start; η does not enter the factors.

        released:  the same formula from an SVD with 512 columns and 16 iterations
        slides:    an earlier version, `A0 = √(1/s) Qᵀ_r`, `B0 = √(1/s) P_r` of the SVD of `+G`, start at `W0`

    Raises ValueError for a rank above min(d_out, d_in), a zero gradient, a `scale` that is not positive or an unknown
    flavour; MissingStatistic without a gradient.
    """
    linalg.check_rank(layer.name, rank, min(layer.W.shape), "the singular triplets of its gradient")
    linalg.check_positive(scale=scale)
    linalg.check_choice("paper", "released", "slides", flavour=flavour)
    P, S, Qh = layer.leading_gradient(request(rank, flavour)["leading_gradient"], generator)
    if S[0] == 0:
        raise ValueError(f"layer {layer.name}: its gradient is zero and has no directions; drop it from model.targets")
    own_start: Start = "shifted"
    if flavour == "slides":
        A, B, own_start = Qh, P, "pretrained"
    else:
        root = (S / S[0]).sqrt()
        A, B = root[:, None] * Qh, -P * root  # the minus: P, Q are of +G, and the method wants those of -G
    A, B = A / math.sqrt(scale), B / math.sqrt(scale)
    return Factors(A=linalg.factor(A, layer.W), B=linalg.factor(B, layer.W), start=start or own_start)
