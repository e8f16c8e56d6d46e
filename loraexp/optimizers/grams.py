"""The r × r Gram matrices that the preconditioned rules invert, in batches over layers.

On an accelerator nothing here reads a value: what a CPU chooses by looking, an exact way or one for
a matrix that is singular, is computed both ways there and chosen on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loraexp.adapter.linalg import exact
from loraexp.machine.device import is_accelerator


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
    factor, failed = torch.linalg.cholesky_ex(damped(gram, damping))
    sound = failed == 0
    if not damping:
        pivots = factor.diagonal(dim1=-2, dim2=-1) ** 2
        sound &= pivots.amin(-1) > 100 * floor * pivots.amax(-1)
    if is_accelerator(gram.device):
        rough = regularised(gram, damping, floor)
        return torch.where(sound[..., None, None], inverse_of(factor), rough)
    if bool(sound.all()):
        return torch.cholesky_inverse(factor)
    values, vectors = spectra(gram)
    inverted = (
        1 / (values + damping)
        if damping
        else torch.where(values > floor * values[..., -1:], 1 / values, 0)
    )
    return (vectors * inverted[..., None, :]) @ vectors.mT


def damped(gram: Tensor, damping: float | Tensor) -> Tensor:
    """`gram + λI`; λ one number, or one a matrix (…)."""
    shifted = gram.clone()
    add = damping[..., None] if isinstance(damping, Tensor) else damping
    shifted.diagonal(dim1=-2, dim2=-1).add_(add)
    return shifted


def inverse_of(factor: Tensor) -> Tensor:
    """`(L Lᵀ)⁻¹` of a lower triangle, by products that check nothing."""
    unit = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    low: Tensor = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False)
    return low.mT @ low


def regularised(gram: Tensor, damping: float, floor: float) -> Tensor:
    """The inverse of a Gram matrix that rounding has made singular, without its spectrum.

    With δ of `floor` times its trace: `(gram + max(λ, δ)I)⁻¹`, or for λ = 0, where the directions
    that are not there are to stay zero, `(gram + δI)⁻¹ gram (gram + δI)⁻¹`; in float64 where the
    device has it.
    """
    wide = gram if gram.device.type == "mps" else gram.double()
    trace = wide.diagonal(dim1=-2, dim2=-1).sum(-1)
    shift = (floor * trace).clamp_min(max(damping, torch.finfo(gram.dtype).tiny ** 0.5))
    rough = inverse_of(torch.linalg.cholesky_ex(damped(wide, shift))[0])
    return (rough if damping else rough @ wide @ rough).to(gram.dtype)
