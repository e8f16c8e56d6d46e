"""The second moment of a product of factors by the means of its rows and columns, never formed.

Adafactor (Shazeer & Stern 2018, Algorithm 2): `v_ij = r_i c_j / mean(r)` of the running means r of
rows and c of columns, which is v where v has rank one. Of a gradient that is itself a product of
thin factors, both means are exact in O((d_out + d_in) k²).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def square_means(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The means over rows (…, d_out) and over columns (…, d_in) of the squared entries of `left ·
    right`, left (…, d_out, k), right (…, k, d_in)."""
    height, width = left.shape[-2], right.shape[-1]
    rows = ((left @ (right @ right.mT)) * left).sum(-1) / width
    columns = (((left.mT @ left) @ right) * right).sum(-2) / height
    return rows.clamp_min(0), columns.clamp_min(0)  # what rounding leaves of nothing


def way_back(
    left: Tensor, right: Tensor, rows: Tensor, columns: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor]:
    """`BᵀĜ` (…, r, d_in) and `Ĝ Aᵀ` (…, d_out, r) of `Ĝ = left · right / √v`, entry by entry."""
    left = left * rows.rsqrt()[..., None]
    right = right * (rows.mean(-1, keepdim=True) / columns).sqrt()[..., None, :]
    return (B.mT @ left) @ right, left @ (right @ A.mT)


def correction(beta: float, step: Tensor) -> Tensor:
    """`1 − βᵗ` on the step's device, to its last digit also where β is near one."""
    return -torch.expm1(step * math.log(beta)) if beta else torch.ones_like(step)
