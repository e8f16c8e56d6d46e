"""What a run's memory depends on, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak, by part. Training holds all but `statistics` and `written`; initialising
    weights, its own activations and `statistics`; writing answers weights, adapter and
    `written`."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    init_activations: int
    statistics: int
    written: int = 0  # keys and values of the answers that are written at once

    @property
    def train(self) -> int:
        return self.weights + self.adapter + self.gradients + self.optimizer + self.activations

    @property
    def init(self) -> int:
        return self.weights + self.init_activations + self.statistics

    @property
    def write(self) -> int:
        return self.weights + self.adapter + self.written if self.written else 0

    @property
    def peak(self) -> int:
        return max(self.train, self.init, self.write)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a run its memory depends on, hashable: runs that agree in it are counted once."""

    settings: str  # json of the parts of the configuration
    length: int
    fused: bool
    written: tuple[int, int] = (0, 0)  # answers that are written at once, and tokens of each
