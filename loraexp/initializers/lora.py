"""LoRA: a random A and a zero B."""

from __future__ import annotations

import math

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs()
def lora(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    start: Start = "pretrained",
) -> Factors:
    """Draw A as `nn.Linear` draws its weight and set B to zero, so that the adapter begins as the
    zero map.

    Hu et al. 2021 (arXiv 2106.09685), section 4.1. With `adapter.scaling=rslora` this is rsLoRA.

        A0 (r, d_in) ~ U(-1/√d_in, 1/√d_in)   (Kaiming uniform with a = √5),      B0 (d_out, r) = 0

    Both starts are the same point, because the product is zero. A is drawn on the CPU: every device
    gets the same one. Differs from the paper: it draws A from a Gaussian; its released code, and
    PEFT, use this uniform draw.
    """
    linalg.check_positive(rank=rank)
    dtype = torch.float64 if layer.W.dtype == torch.float64 else torch.float32
    A = torch.empty(rank, layer.d_in, dtype=dtype)
    torch.nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
    B = torch.zeros(layer.d_out, rank, dtype=dtype)
    return Factors(A=linalg.factor(A, layer.W), B=linalg.factor(B, layer.W), start=start)
