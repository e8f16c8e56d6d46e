"""EVA: A from the leading directions of the layer's inputs."""

from __future__ import annotations

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs


@needs("input_moment")
def eva(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    start: Start = "pretrained",
) -> Factors:
    """Give A the r directions that explain most of the layer's inputs, and set B to zero.

    Paischer et al. 2024 (arXiv 2410.07170), Algorithm 1. `C` (d_in, d_in) is `E[h hᵀ]`, the mean
    over unpadded tokens:

        A0 = the r leading eigenvectors of C, as rows  (r, d_in),      B0 = 0  (d_out, r)

    Differs from PEFT: that takes the mean input off first (principal components; equal where the
    mean is zero), finds the directions by incremental SVD until they settle, and may move ranks
    from one layer to another (`rho`), which is left out here so that every layer has the rank that
    was asked for. Raises ValueError where the inputs span fewer directions than the rank;
    MissingStatistic without an input moment.
    """
    linalg.check_rank(layer.name, rank, layer.d_in, "its input dimensions")
    C = linalg.at_least_float32(layer.input_moment)
    eigenvalues, eigenvectors = torch.linalg.eigh(C)  # ascending
    floor = layer.d_in * torch.finfo(C.dtype).eps * eigenvalues[-1]
    spanned = int((eigenvalues > floor).sum())
    linalg.check_rank(
        layer.name, rank, spanned, "the directions its inputs span; more init.samples give more"
    )
    A = eigenvectors[:, -rank:].flip(1).mT
    B = torch.zeros(layer.d_out, rank)
    return Factors(A=linalg.factor(A, layer.W), B=linalg.factor(B, layer.W), start=start)
