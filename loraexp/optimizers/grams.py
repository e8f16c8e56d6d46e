"""Spectra of the r × r Gram matrices that the preconditioned rules invert, in batches over
layers."""

from __future__ import annotations

import torch
from torch import Tensor

from loraexp.adapter.linalg import exact


class SingularSystem(FloatingPointError):
    """An r × r system without a solution: at `index` of the flattened batch, from `block` on in the
    optimizer's list."""

    def __init__(self, message: str, index: int, block: int = 0) -> None:
        super().__init__(message)
        self.index, self.block = index, block


def require_damping(damping: float) -> None:
    """Raise `ValueError` for a damping that is negative or not a number."""
    if not damping >= 0:
        raise ValueError(f"optimizer.damping={damping}: expected a number ≥ 0")


def grams(A: Tensor, B: Tensor) -> Tensor:
    """`A Aᵀ` and `BᵀB` stacked, (2, …, r, r)."""
    return torch.stack([A @ A.mT, B.mT @ B])


def spectra(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, r), ascending and not negative, and eigenvectors (…, r, r) of a batch of Gram
    matrices.

    Raises `SingularSystem` where a Gram matrix is not finite, which means that its factor is not.
    """
    try:
        values, vectors = exact(torch.linalg.eigh, gram)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        broken = (~gram.isfinite()).flatten(-2).any(-1).flatten().nonzero()
        if not len(broken):
            raise
        raise SingularSystem(
            "A or B is not finite: lower lr or warm up longer", int(broken[0])
        ) from None
    return values.clamp_min(0), vectors


def inverse(gram: Tensor, damping: float) -> Tensor:
    """`(gram + λI)⁻¹`, and the pseudo-inverse for λ = 0, which drops eigenvalues below `r·ε` times
    the largest.

    By Cholesky where λ > 0 or the whole batch is far above that floor: several times faster than
    through the spectrum and equal up to rounding.
    """
    require_damping(damping)
    floor = gram.shape[-1] * torch.finfo(gram.dtype).eps
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    sound = failed == 0
    if not damping:
        pivots = factor.diagonal(dim1=-2, dim2=-1) ** 2
        sound &= pivots.amin(-1) > 100 * floor * pivots.amax(-1)
    if bool(sound.all()):
        return torch.cholesky_inverse(factor)
    values, vectors = spectra(gram)
    inverted = (
        1 / (values + damping)
        if damping
        else torch.where(values > floor * values[..., -1:], 1 / values, 0)
    )
    return (vectors * inverted[..., None, :]) @ vectors.mT
