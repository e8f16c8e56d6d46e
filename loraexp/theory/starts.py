"""The starts of LoRA-One's theory, as initializers of the linear task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer
from loraexp.initializers.lora import lora
from loraexp.initializers.lora_ga import lora_ga
from loraexp.initializers.lora_one import lora_one


def gaussian(layer: Layer, generator: torch.Generator, *, rank: int, variance: float) -> Factors:
    """(LoRA-init): LoRA's start with the entries of A from N(0, α²), as the paper draws them."""
    factors = lora(layer, rank=rank, scaling=1.0, generator=generator)
    return replace(
        factors, A=variance**0.5 * linalg.gaussian(rank, layer.d_in, generator, factors.A)
    )


def spectral(layer: Layer, generator: torch.Generator, *, rank: int, gamma: float = 1.0) -> Factors:
    """(Spectral-init): `B0 A0 = γ` times the best rank-r approximation of the negative gradient,
    its size included.

    It is LoRA-One with the scale `s = 1/(γ Σ_0)`, which takes back the division by the largest
    singular value Σ_0.
    """
    largest = float(torch.linalg.matrix_norm(layer.gradient, 2))
    return lora_one(layer, rank=rank, scaling=1.0, generator=generator, scale=1 / (gamma * largest))


@dataclass(frozen=True, kw_only=True)
class Offset:
    """LoRA-GA, whose offset equation 91 makes of factors of size k^(1/4)/γ, and the authors'
    notebook of k^(1/4)/√γ ("released").
    """

    gamma: float
    gamma_reading: Literal["paper", "released"] = "paper"

    def start(
        self, layer: Layer, generator: torch.Generator, *, rank: int, scaling: float = 1.0
    ) -> Factors:
        """With the α/√r of equation 91 inside the factors: the same offset, and steps as without a
        scaling."""
        factors = lora_ga(
            layer,
            rank=rank,
            scaling=1.0,
            generator=generator,
            gamma=self.gamma,
            flavour=self.gamma_reading,
        )
        return replace(factors, A=scaling**0.5 * factors.A, B=scaling**0.5 * factors.B)


def subspace_of_gradient(layer: Layer, generator: torch.Generator, *, rank: int) -> Factors:
    """LoRA-SB as LoRA-One's section 5 tells it: A and B frozen at the singular vectors of the
    gradient itself, R its values.

    `lora_sb` takes those of the gradient's signs, as its own paper has it.
    """
    orthonormal = layer.d_out**0.5
    found = lora_one(
        layer, rank=rank, scaling=1.0, generator=generator, scale=orthonormal, flavour="slides"
    )
    return replace(
        found, R=-found.B.mT @ layer.gradient @ found.A.mT, start="shifted", train=frozenset({"R"})
    )
