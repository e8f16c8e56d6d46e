"""Full fine-tuning: the row of every table that has no adapter."""

from __future__ import annotations

import torch

from loraexp.adapter.layer import Layer, needs


@needs(trains=("W",))
def full(layer: Layer, *, rank: int, scaling: float, generator: torch.Generator) -> None:
    """Make no factors: the weight itself trains, with every other weight of the model (no rank, no
    scaling)."""
    return None
