"""Leading eigenvectors of a symmetric positive matrix that is known through its products alone."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from torch import Tensor

from loraexp.adapter import linalg
from loraexp.adapter.linalg import double, gaussian


class Ask(NamedTuple):
    """What a subspace iteration asks of a symmetric `M`: `M @ block`, or with `project` `blockᵀ M
    block`."""

    project: bool
    block: Tensor


class Basis(NamedTuple):
    """Leading eigenvectors `U = Q rotation` (d, m) and eigenvalues `D` (m,), descending, in
    float64."""

    Q: Tensor
    rotation: Tensor
    D: Tensor

    @property
    def U(self) -> Tensor:
        return self.Q @ self.rotation


Steps = Generator[Ask, Tensor, Basis]


def subspace_steps(
    dimension: int, m: int, iterations: int, generator: torch.Generator, like: Tensor
) -> Steps:
    """Subspace iteration with Rayleigh-Ritz of a positive matrix known through its products
    (CG-LoRA, Algorithm 1).

    `Y = M Ω`, QR, `iterations` times, then the eigenvectors of `Qᵀ M Q`. Reference:
    `torch.linalg.eigh`.
    """
    Q = double(gaussian(dimension, min(m, dimension), generator, like))
    for _ in range(iterations):
        Q = torch.linalg.qr((yield Ask(False, Q))).Q
    small = yield Ask(True, Q)
    D, rotation = linalg.exact(torch.linalg.eigh, (small + small.mT) / 2)
    return Basis(Q, rotation.flip(1), D.flip(0).clamp_min(0))


def solve(steps: Steps, answer: Callable[[Ask], Tensor]) -> Basis:
    """Run a subspace iteration on a matrix at hand."""
    try:
        ask = next(steps)
        while True:
            ask = steps.send(answer(ask))
    except StopIteration as stop:
        basis: Basis = stop.value
        return basis


def solve_last(steps: Steps, answer: Tensor) -> Basis:
    """The result of a subspace iteration, from its last answer."""
    try:
        steps.send(answer)
    except StopIteration as stop:
        basis: Basis = stop.value
        return basis
    raise AssertionError("a subspace iteration ends with its projection")


def truncated(U: Tensor, D: Tensor, m: int | None) -> Basis:
    U, D = U[:, :m], D[:m]
    return Basis(U, torch.eye(len(D), dtype=U.dtype, device=U.device), D)


def rows_answer(rows: Tensor, ask: Ask) -> Tensor:
    product = rows @ ask.block
    return product.mT @ product if ask.project else rows.mT @ product


def matrix_answer(matrix: Tensor, ask: Ask) -> Tensor:
    product = matrix @ ask.block
    return ask.block.mT @ product if ask.project else product
