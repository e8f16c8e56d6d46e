"""LoRA-DA-FA: LoRA-DA with A frozen at its start."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from loraexp.adapter.layer import Factors, Layer, Start, needs
from loraexp.initializers.lora_da import lora_da


@needs(
    "gradient", "input_moment", "output_moment", "population", trains=("B",), weighting="samples"
)
def lora_da_fa(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    flavour: Literal["released", "paper"] = "released",
    terms: Literal["all", "no_bias", "no_variance", "no_variance_fisher"] = "all",
    damping: float | None = None,
    damping_mode: Literal["absolute", "relative"] = "absolute",
    variance_weight: float | None = None,
    gamma: float | None = None,
    start: Start = "shifted",
) -> Factors:
    """LoRA-DA's start, of which only B trains.

    LoRA-DA, section 5.2 and Table 3. `A0` (r, d_in), frozen, and `B0` (d_out, r), trained, are
    those of `lora_da`, and so are the statistics, the hyper-parameters, the warning and the errors.
    """
    factors = lora_da(
        layer,
        rank=rank,
        scaling=scaling,
        generator=generator,
        flavour=flavour,
        terms=terms,
        damping=damping,
        damping_mode=damping_mode,
        variance_weight=variance_weight,
        gamma=gamma,
        start=start,
    )
    return replace(factors, train=frozenset({"B"}))
