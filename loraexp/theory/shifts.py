"""The tasks of LoRA-One's theory: a weight, the low-rank shift that is to be learnt, the second
moment of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraexp.adapter.layer import Layer
from loraexp.config import ConfigError
from loraexp.statistics import layer_generator

ROWS = 4096  # rows of inputs drawn at a time


@dataclass(frozen=True)
class Tasks:
    """n linear tasks of one shape: `Δ = left @ right` of rank q, inputs with second moment `gram`,
    all in float64.
    """

    W: Tensor  # (n, k, d)
    left: Tensor  # (n, k, q)
    right: Tensor  # (n, q, d)
    gram: Tensor  # (n, d, d)
    rows: int  # N

    def __len__(self) -> int:
        return len(self.W)

    @property
    def gradient(self) -> Tensor:
        """`−Δ Σ` (n, k, d): the gradient of full fine-tuning at W0, the negative of LoRA-One's G♮
        (equation 5).
        """
        return -self.left @ (self.right @ self.gram)

    def layers(self) -> list[Layer]:
        """The tasks as initializers see them."""
        return [
            Layer(name=f"task {i}", W=W, gradient=G, summed_gradient=self.rows * G)
            for i, (W, G) in enumerate(zip(self.W, self.gradient, strict=True))
        ]


@dataclass(frozen=True, kw_only=True)
class Growing:
    """Δ of r* singular values 1 in several dimensions d by name, learnt from N = d
    `rows_per_dimension` inputs.
    """

    dimensions: dict[str, int]
    rows_per_dimension: int
    true_rank: int
    seeds: int

    def tasks(self, d: int) -> Tasks:
        return tasks(self.seeds, d, d, [1.0] * self.true_rank, self.rows_per_dimension * d)


def second_moment(rows: int, d: int, generator: torch.Generator) -> Tensor:
    """`XᵀX/N` (d, d) of N rows of standard normal inputs, drawn in pieces: X is never whole in
    memory.
    """
    total = torch.zeros(d, d, dtype=torch.float64)
    for first in range(0, rows, ROWS):
        X = torch.randn(min(ROWS, rows - first), d, generator=generator, dtype=torch.float64)
        total.addmm_(X.mT, X)
    return total / rows


def directions(d: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` orthonormal columns (d, count), uniform over all of them, as the singular vectors of
    a normal matrix are.
    """
    return torch.linalg.qr(torch.randn(d, count, generator=generator, dtype=torch.float64)).Q


def tasks(
    seeds: int,
    d: int,
    k: int,
    spectrum: Sequence[float],
    rows: int,
    *,
    gram: Callable[[torch.Generator], Tensor] | None = None,
) -> Tasks:
    """A task for each seed: `Δ = U diag(spectrum) Vᵀ` with random singular vectors, W0 and inputs
    standard normal.

    LoRA-One, appendix G.1. `gram` gives a second moment in place of that of `rows` sampled inputs.
    Raises ConfigError for more singular values than min(d, k).
    """
    if len(spectrum) > min(d, k):
        raise ConfigError(
            f"a shift of rank {len(spectrum)} in {k} x {d}: expected at most {min(d, k)} singular"
            " values; raise d"
        )
    made = []
    for seed in range(seeds):
        generator = layer_generator(seed, f"{d} {k}", "linear task")
        U = directions(k, len(spectrum), generator)
        V = directions(d, len(spectrum), generator)
        W = torch.randn(k, d, generator=generator, dtype=torch.float64)
        S = second_moment(rows, d, generator) if gram is None else gram(generator)
        made.append((W, U * torch.tensor(list(spectrum), dtype=torch.float64), V.mT, S))
    W, left, right, moments = (torch.stack(parts) for parts in zip(*made, strict=True))
    return Tasks(W, left, right, moments, rows)
