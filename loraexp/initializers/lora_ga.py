"""LoRA-GA: leading singular directions of the loss gradient, a different set for A than for B."""

from __future__ import annotations

from typing import Any, Literal

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, LeadingRequest, Start, needs


def request(rank: int, **_: Any) -> dict[str, LeadingRequest]:
    """2r triplets from 4r columns and 4 iterations: the released code's `svd_lowrank(G, q=4r,
    niter=4)`."""
    return {"leading_gradient": LeadingRequest(k=2 * rank, oversample=2 * rank, iterations=4)}


@needs("leading_gradient", request=request, weighting="samples")
def lora_ga(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    gamma: float = 16.0,
    flavour: Literal["paper", "released", "peft"] = "paper",
    start: Start = "pretrained",
) -> Factors:
    """Give A the leading r input directions of the gradient and B the next r output directions.

    Wang et al. 2024 (arXiv 2407.05000), Algorithm 1. `G` (d_out, d_in) is the gradient of the loss,
    a mean over the calibration rows of each row's own mean loss (init.weighting), `G = P Σ Qᵀ`:

        A0 = c Qᵀ[:r]   (r, d_in),   B0 = c P[:, r:2r]   (d_out, r),   no singular values in either

        paper:     c = d_out^{1/4} / γ        γ = 4 is the same as γ = 16 of the two flavours below
        released:  c = d_out^{1/4} / √γ
        peft:      A0 = Qᵀ[:r],  B0 = c P[:, r:2r] Σ[r:2r],  c = d_out^{1/4} / √γ    (not the
                   paper's method: PEFT's)

    The sign of B0 is free: A and B hold different triplets, whose signs an SVD leaves open. η does
    not enter. Raises ValueError where 2r exceeds min(d_out, d_in), for a zero gradient, a `gamma`
    that is not positive or an unknown flavour; MissingStatistic without a gradient, where PEFT
    falls back to plain LoRA.
    """
    sizes = f"2·rank directions of its {layer.d_out} x {layer.d_in} gradient"
    linalg.check_rank(layer.name, rank, min(layer.W.shape) // 2, sizes)
    linalg.check_positive(gamma=gamma)
    linalg.check_choice("paper", "released", "peft", flavour=flavour)
    P, S, Qh = layer.leading_gradient(request(rank)["leading_gradient"], generator)
    if S[0] == 0:
        raise ValueError(
            f"layer {layer.name}: its gradient is zero and has no directions; drop it from"
            " model.targets"
        )
    c = layer.d_out**0.25 / (gamma if flavour == "paper" else gamma**0.5)
    A, B = Qh[:rank], c * P[:, rank : 2 * rank]
    A, B = (A, B * S[rank : 2 * rank]) if flavour == "peft" else (c * A, B)
    return Factors(A=linalg.factor(A, layer.W), B=linalg.factor(B, layer.W), start=start)
