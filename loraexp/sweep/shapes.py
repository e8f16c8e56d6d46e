"""What a run's memory depends on, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak, by part."""

    weights: int  # frozen, as they are stored; all of them with init=full
    adapter: int  # factors, and the frozen pair of an offset
    gradients: int
    optimizer: int  # moments, masters, counters
    # of a step beside all that: what its passes need before gradients take its place, or the rule
    activations: int
    init_activations: int  # of a batch of statistics, or of the loss before them
    statistics: int  # sums that are held at once
    work: int  # of the layer that is largest to decompose, with its share of the ledger
    evaluation: int = 0  # of a batch that is scored
    written: int = 0  # keys and values of the answers that are written at once
    gathered: int = 0  # weights that are whole while they compute, where processes hold pieces

    @property
    def train(self) -> int:
        held = self.weights + self.adapter + self.gradients + self.optimizer
        return held + self.gathered + self.activations

    @property
    def init(self) -> int:
        """Sums grow beside passes; layers are decomposed beside sums, and factors stay."""
        beside = max(self.init_activations, self.work)
        return self.weights + self.gathered + self.statistics + beside

    @property
    def write(self) -> int:
        """Between two steps: the optimizer's state stays."""
        held = self.weights + self.adapter + self.optimizer
        return held + self.gathered + max(self.evaluation, self.written)

    @property
    def peak(self) -> int:
        return max(self.train, self.init, self.write)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a run its memory depends on, hashable: runs that agree in it are counted once."""

    settings: str  # json of the parts of the configuration
    length: int
    card: bool  # it runs on one: sums and decompositions that do not fit beside go to the host
    fused: bool  # its attention
    written: tuple[int, int] = (0, 0)  # answers that are written at once, and tokens of each
