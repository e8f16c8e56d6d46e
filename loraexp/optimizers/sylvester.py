"""The system that LoRA-Pro solves in every layer, `BᵀB X + X A Aᵀ = C`, and the inverses of its two
Gram matrices.

On a CPU by their spectra, which are cheap and say at once which matrix is singular. An accelerator
would have to wait for the outcome of an eigendecomposition: there by Newton's iteration for the
matrix sign (Roberts 1980), products and Cholesky factors alone, in float32 nearer to the exact
solution than the spectra are.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from loraexp.machine.device import is_accelerator
from loraexp.optimizers.grams import (
    SingularSystem,
    damped,
    grams,
    inverse_of,
    require_damping,
    spectra,
)

ITERATIONS = 9  # scaled, it is at rounding after 6 for condition numbers of 1e6 each
SQUARINGS = 10  # λ_max of r × r is then known to a factor of r^(1/2048)


class System(Protocol):
    """`inverse_A`, `inverse_B` (…, r, r) of the damped matrices; `no_B` (…, 1, 1) marks the layers
    where B is still zero, and `inverse_B` is too."""

    @property
    def inverse_A(self) -> Tensor: ...

    @property
    def inverse_B(self) -> Tensor: ...

    @property
    def no_B(self) -> Tensor: ...

    def solve(self, C: Tensor) -> Tensor:
        """X (…, r, r)."""


def system(A: Tensor, B: Tensor, damping: float) -> System:
    """Both Gram matrices, each damped by `damping` times its own largest eigenvalue; a B of zeros
    is no error but marked.

    Raises `SingularSystem` where a smallest eigenvalue is below rounding; on an accelerator, which
    is not asked, what that layer gets is not a number.
    """
    require_damping(damping)
    return (iterated if is_accelerator(A.device) else spectral)(A, B, damping)


class Spectral(NamedTuple):
    """`A Aᵀ = U diag(E) Uᵀ` and `BᵀB = V diag(D) Vᵀ`, damped."""

    E: Tensor  # (…, r)
    U: Tensor  # (…, r, r)
    D: Tensor  # (…, r)
    V: Tensor  # (…, r, r)
    no_B: Tensor

    @property
    def inverse_A(self) -> Tensor:
        return (self.U / self.E[..., None, :]) @ self.U.mT

    @property
    def inverse_B(self) -> Tensor:
        inverted_D = torch.where(self.no_B[..., 0], 0, 1 / self.D)
        return (self.V * inverted_D[..., None, :]) @ self.V.mT

    def solve(self, C: Tensor) -> Tensor:
        """In the eigenvectors of both it is (D_i + E_j) X_ij = C_ij."""
        turned = self.V.mT @ C @ self.U
        return self.V @ (turned / (self.D[..., :, None] + self.E[..., None, :])) @ self.U.mT


def spectral(A: Tensor, B: Tensor, damping: float) -> Spectral:
    (E, D), (U, V) = spectra(grams(A, B))
    no_B = D[..., -1:] == 0
    E, D = E + damping * E[..., -1:], D + damping * D[..., -1:]
    floor = torch.finfo(D.dtype).eps * (1 if damping else A.shape[-2])
    singular_A = ~(E[..., :1] > floor * E[..., -1:])  # written so that NaN is singular too
    singular_B = ~(D[..., :1] > floor * D[..., -1:]) & ~no_B
    if bool((singular_A | singular_B).any()):
        which = "A Aᵀ" if bool(singular_A.any()) else "BᵀB"
        index = int((singular_A if which == "A Aᵀ" else singular_B).flatten().nonzero()[0])
        raise SingularSystem(
            f"{which} is singular: raise optimizer.damping ({damping}) or lower the rank", index
        )
    return Spectral(E, U, D, V, no_B[..., None])


class Iterated(NamedTuple):
    """The iterates of both matrices: every right side goes the same way."""

    steps: list[tuple[Tensor, Tensor]]  # the scale (…, 1, 1), and the inverses (2, …, r, r)
    inverse_A: Tensor
    inverse_B: Tensor
    no_B: Tensor

    def solve(self, C: Tensor) -> Tensor:
        """The corner of sign([[BᵀB, C], [0, −A Aᵀ]]) converges to 2X."""
        for scale, (inverse_B, inverse_A) in self.steps:
            C = 0.5 * (scale * C + inverse_B @ C @ inverse_A / scale)
        return 0.5 * C


def iterated(A: Tensor, B: Tensor, damping: float) -> Iterated:
    pair = grams(A, B).flip(0)  # BᵀB, then A Aᵀ
    top = largest(pair)
    no_B = (pair[0].diagonal(dim1=-2, dim2=-1).sum(-1) == 0)[..., None, None]
    unit = torch.eye(pair.shape[-1], dtype=pair.dtype, device=pair.device)
    current = damped(pair, damping * top)
    # any number does where B is zero: its right side is zero
    current = torch.stack([torch.where(no_B, unit, current[0]), current[1]])
    floor = torch.finfo(pair.dtype).eps * (1 if damping else pair.shape[-1])
    factor, failed = torch.linalg.cholesky_ex(current)
    pivots = factor.diagonal(dim1=-2, dim2=-1) ** 2
    sound = ((failed == 0) & (pivots.amin(-1) > floor * pivots.amax(-1))).all(0)[..., None, None]
    inverses = torch.where(sound, inverse_of(factor), math.nan)
    first, steps = inverses, []
    for _ in range(ITERATIONS):
        scale = (size(inverses) / size(current)) ** 0.25
        steps.append((scale, inverses))
        current = 0.5 * (scale * current + inverses / scale)
        inverses = inverse_of(torch.linalg.cholesky_ex(current)[0])
    return Iterated(steps, first[1], torch.where(no_B, 0, first[0]), no_B)


def size(pair: Tensor) -> Tensor:
    """The squared Frobenius norm (…, 1, 1) of two matrices together."""
    return pair.square().sum((0, -2, -1), keepdim=True)[0]


def largest(gram: Tensor) -> Tensor:
    """The largest eigenvalue (…) of a positive matrix, by squaring it; 0 of zeros."""
    found = torch.zeros(gram.shape[:-2], dtype=gram.dtype, device=gram.device)
    for power in range(SQUARINGS):
        norm = torch.linalg.matrix_norm(gram)
        found = found + norm.log() / 2**power
        gram = gram / norm[..., None, None]
        gram = gram @ gram
    # the norm of zeros is zero, its logarithm −∞
    return found.exp().nan_to_num(0.0)
