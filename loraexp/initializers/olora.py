"""OLoRA: the leading part of the QR decomposition of the weight."""

from __future__ import annotations

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs()
def olora(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    start: Start = "pretrained",
) -> Factors:
    """Start B from orthonormal columns and A from the matching rows of the triangular factor.

    Büyükakyüz 2024 (arXiv 2406.01775), Algorithm 1, for the thin decomposition `W0 = Q R`:

        A0 = R[:r]  (r, d_in),      B0 = Q[:, :r]  (d_out, r)

    η does not enter the factors, as in PEFT: `B0 A0` is `W0` projected on the span of its first r
    columns. Raises ValueError for a rank above min(d_out, d_in).
    """
    linalg.check_rank(
        layer.name,
        rank,
        min(layer.W.shape),
        "the columns of Q in the QR decomposition of its weight",
    )
    Q, R = torch.linalg.qr(linalg.at_least_float32(layer.W))
    return Factors(
        A=linalg.factor(R[:rank], layer.W), B=linalg.factor(Q[:, :rank], layer.W), start=start
    )
