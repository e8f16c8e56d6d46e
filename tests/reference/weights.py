"""The weight and input-moment initializers, transcribed with dense decompositions in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def pissa(W: Tensor, rank: int, eta: float) -> tuple[Tensor, Tensor]:
    """PiSSA, equations 2 and 3, divided by √η: (A, B)."""
    U, S, Vh = torch.linalg.svd(W.double())
    A = torch.diag(S[:rank]).sqrt() @ Vh[:rank, :] / eta**0.5
    B = U[:, :rank] @ torch.diag(S[:rank]).sqrt() / eta**0.5
    return A, B


def milora(W: Tensor, rank: int, eta: float) -> tuple[Tensor, Tensor]:
    """MiLoRA: the last `rank` of the min(d_out, d_in) triplets."""
    U, S, Vh = torch.linalg.svd(W.double())
    smallest = range(len(S) - rank, len(S))
    A = torch.stack([S[i].sqrt() * Vh[i] for i in smallest]) / eta**0.5
    B = torch.stack([S[i].sqrt() * U[:, i] for i in smallest], dim=1) / eta**0.5
    return A, B


def lora_xs(W: Tensor, rank: int, flavour: str) -> tuple[Tensor, Tensor]:
    """LoRA-XS: singular values on B (paper) or on A (released)."""
    U, S, Vh = torch.linalg.svd(W.double())
    U_r, S_r, Vh_r = U[:, :rank], torch.diag(S[:rank]), Vh[:rank]
    return (Vh_r, U_r @ S_r) if flavour == "paper" else (S_r @ Vh_r, U_r)


def olora_product(W: Tensor, rank: int) -> Tensor:
    """OLoRA: Q[:, :r] R[:r] = W projected on the span of its first r columns, here by normal
    equations."""
    first = W.double()[:, :rank]
    return first @ torch.linalg.inv(first.T @ first) @ first.T @ W.double()


def corda(
    W: Tensor, C: Tensor, rank: int, eta: float, flavour: str, damping: float
) -> tuple[Tensor, Tensor]:
    """CorDA: SVD of `W C`, the inverse of `C` taken off the right factor again."""
    W, C = W.double(), C.double()
    C = C + damping * torch.trace(C) / len(C) * torch.eye(len(C), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(W @ C, full_matrices=False)
    kept = slice(0, rank) if flavour == "ipm" else slice(len(S) - rank, len(S))
    root = torch.diag(S[kept]).sqrt() / eta**0.5
    return root @ Vh[kept] @ torch.linalg.inv(C), U[:, kept] @ root


def eva_projector(H: Tensor, rank: int) -> Tensor:
    """EVA: projector on the leading right singular vectors of the inputs H (tokens, d_in)."""
    Vh = torch.linalg.svd(H.double(), full_matrices=False).Vh
    return Vh[:rank].T @ Vh[:rank]
