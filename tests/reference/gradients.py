"""The gradient initializers, transcribed with dense decompositions in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def best_approximation(M: Tensor, rank: int) -> Tensor:
    """Eckart-Young: the rank-r matrix closest to M, as a sum of rank-one terms."""
    U, S, Vh = torch.linalg.svd(M.double())
    terms = [S[i] * torch.outer(U[:, i], Vh[i]) for i in range(rank)]
    return torch.stack(terms).sum(0)


def lora_ga(G: Tensor, rank: int, gamma: float, flavour: str) -> tuple[Tensor, Tensor]:
    """LoRA-GA, Algorithm 1 (paper, released), and PEFT's variant: (A, B)."""
    P, S, Qh = torch.linalg.svd(G.double())
    d_out = G.shape[0]
    A, B = Qh[:rank], P[:, rank : 2 * rank]
    if flavour == "paper":
        return d_out**0.25 / gamma * A, d_out**0.25 / gamma * B
    if flavour == "released":
        return d_out**0.25 / gamma**0.5 * A, d_out**0.25 / gamma**0.5 * B
    return A, d_out**0.25 / gamma**0.5 * B @ torch.diag(S[rank : 2 * rank])


def lora_one(G: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:
    """LoRA-One, Algorithm 1, lines 1 to 6: (A, B)."""
    U, S, Vh = torch.linalg.svd(-G.double())
    S = S / S[0]
    gamma = 1 / s
    A = gamma**0.5 * torch.diag(S[:rank]) ** 0.5 @ Vh[:rank]
    B = gamma**0.5 * U[:, :rank] @ torch.diag(S[:rank]) ** 0.5
    return A, B


def lora_one_slides(G: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:
    """The slides' Algorithm 1, and the γ of its code: singular vectors of +G, no singular values,
    times m^0.25 / s^0.5."""
    U, _, Vh = torch.linalg.svd(G.double())
    m = G.shape[0]
    return m**0.25 / s**0.5 * Vh[:rank], m**0.25 / s**0.5 * U[:, :rank]


def lora_sb(
    G: Tensor, rank: int, s: float, eta: float, factors: str
) -> tuple[Tensor, Tensor, Tensor]:
    """LoRA-SB, equations 1, 2 and 7, or 36 to 39 for factors="us": (A, B, R)."""
    U, S, Vh = torch.linalg.svd(-eta * torch.sign(G.double()))
    A, B, R = Vh[:rank], U[:, :rank], torch.diag(S[:rank]) / s
    return (
        (A, B, R)
        if factors == "orthonormal"
        else (A, B @ torch.diag(S[:rank]), torch.eye(rank).double() / s)
    )
