"""LoRA-FA: LoRA with A frozen at its random start."""

from __future__ import annotations

from dataclasses import replace

import torch

from loraexp.adapter.layer import Factors, Layer, Start, needs
from loraexp.initializers.lora import lora


@needs(trains=("B",))
def lora_fa(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    start: Start = "pretrained",
) -> Factors:
    """LoRA's start, of which only B trains.

    Zhang et al. 2023 (arXiv 2308.03303), section 3; the `LoRA-FA` rows of LoRA-DA's Table 3.

        A0 (r, d_in): Kaiming uniform with a = √5, frozen,      B0 (d_out, r) = 0, trained

    Differs from the paper: it draws A from a Gaussian; this draw is LoRA's, so that only what
    trains differs.
    """
    factors = lora(layer, rank=rank, scaling=scaling, generator=generator, start=start)
    return replace(factors, train=frozenset({"B"}))
