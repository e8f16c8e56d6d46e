"""negative_gradient: start on the best rank-r step down the gradient."""

from __future__ import annotations

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Start
from loraexp.initializers import Factors, Layer, needs


@needs("gradient")  # others: summed_gradient, input_moment, output_moment, curvature; none: needs()
def negative_gradient(
    layer: Layer, *, rank: int, scaling: float, generator: torch.Generator, start: Start = "shifted"
) -> Factors:
    """The best rank-r step down the gradient: `scaling · B A = −G_r`, from the singular values of
    `G = U S Vh`.

    Shapes: W, G (d_out, d_in) → A (r, d_in), B (d_out, r). `start`: train from `W0 + scaling · B A`
    ("shifted"), or from W0 with the product taken out again ("pretrained"). Draw random numbers
    from `generator` alone.
    """
    U, S, Vh = linalg.svd(-layer.gradient).leading(rank)
    return Factors(A=Vh, B=U * S / scaling, start=start)
