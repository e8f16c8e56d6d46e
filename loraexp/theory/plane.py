"""The plane in the space of all weights that trajectories are drawn in, and how they are measured
against full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

FULL = "full"  # the method that the others are measured against
FAR = 3.0  # lengths of full fine-tuning beyond which a diverged way is not drawn


@dataclass
class Way:
    """The way of one method: the loss before each step, and the weights at some of them, relative
    to the pretrained ones."""

    steps: list[int] = field(default_factory=list)
    moved: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0  # on the even digits held out
    diverged_at: int | None = None

    def drawn(self, unit: float) -> list[Tensor]:
        """The kept points; of a way that diverged, those before it left the picture."""
        return [
            x for x in self.moved if self.diverged_at is None or float(x.norm()) <= FAR * unit
        ] or self.moved[:1]

    @property
    def length(self) -> float:
        return float(self.moved[-1].norm())


def distances(way: Way, full: Way) -> list[float]:
    """‖M_t − M_t^full‖ at the kept steps, in units of the length of full fine-tuning."""
    return [
        float((a - b).norm()) / full.length for a, b in zip(way.moved, full.moved, strict=False)
    ]


@dataclass(frozen=True)
class Plane:
    """Two orthonormal directions in the space of all weights, through the pretrained ones.

    The first leads from the pretrained weights to where full fine-tuning ends, so both points lie
    in the plane. The second is the leading principal direction of what the first leaves of the
    other methods' ways.
    """

    origin: Tensor
    directions: Tensor  # (2, weights)

    @classmethod
    def through(cls, origin: Tensor, ways: Mapping[str, Way]) -> Plane:
        unit = ways[FULL].length
        first = functional.normalize(ways[FULL].moved[-1], dim=0)
        others = [way.drawn(unit) for name, way in ways.items() if name != FULL]
        rest = torch.stack([point for points in others for point in points])
        rest = rest - torch.outer(rest @ first, first)
        _, vectors = torch.linalg.eigh(rest @ rest.mT)
        second = functional.normalize(rest.mT @ vectors[:, -1], dim=0)
        ends = torch.stack([points[-1] for points in others]) @ second
        return cls(origin, torch.stack([first, second if ends.sum() > 0 else -second]))

    def share(self, moved: Tensor) -> float:
        """How much of a displacement's squared length lies in the plane."""
        return float(
            (self.directions @ moved).square().sum() / moved.square().sum().clamp_min(1e-30)
        )
