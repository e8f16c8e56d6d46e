"""The curvature initializers and their objective, transcribed with dense matrices and
decompositions in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def eigenvectors(M: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest eigenvalues of a symmetric matrix, descending, and their eigenvectors: (U,
    D)."""
    D, U = torch.linalg.eigh(M)
    return U.flip(1)[:, :m], D.flip(0)[:m]


def symmetric_inverse_root(M: Tensor) -> Tensor:
    D, U = torch.linalg.eigh(M)
    return U @ torch.diag(D**-0.5) @ U.T


def whitened_gradient(U_S: Tensor, D_S: Tensor, U_T: Tensor, D_T: Tensor, G: Tensor) -> Tensor:
    """CG-LoRA, definition 4.4."""
    return torch.diag(D_T**-0.5) @ U_T.T @ G @ U_S @ torch.diag(D_S**-0.5)


def cg_lora(
    U_S: Tensor,
    D_S: Tensor,
    U_T: Tensor,
    D_T: Tensor,
    G: Tensor,
    rank: int,
    gamma: float,
    Theta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """CG-LoRA, Algorithm 2 line by line, with the minus of Proposition 5.1: (A, B).

    With `Theta` (d_out, d_out) the cross-entropy version, definitions A.4 and A.11.
    """
    F = whitened_gradient(U_S, D_S, U_T, D_T, G)
    reweight = torch.eye(len(D_T)).double()
    if Theta is not None:
        Phi = torch.diag(D_T**-0.5) @ U_T.T @ Theta @ U_T @ torch.diag(D_T**-0.5)
        reweight = symmetric_inverse_root(Phi)
    U_F, D_F, Vh_F = torch.linalg.svd(reweight @ F)
    U_F, D_F, V_F = U_F[:, :rank], torch.diag(D_F[:rank]), Vh_F[:rank].T
    L = U_T @ torch.diag(D_T**-0.5) @ reweight @ U_F
    R = U_S @ torch.diag(D_S**-0.5) @ V_F
    J_L, J_R = L.T @ L, R.T @ R
    C_L, C_R = torch.linalg.cholesky(J_L), torch.linalg.cholesky(J_R)
    Q = -torch.linalg.inv(J_L) @ D_F @ torch.linalg.inv(J_R)
    U_K, D_K, Vh_K = torch.linalg.svd(C_L.T @ Q @ C_R)
    c = U_T.shape[0] ** 0.25 / (gamma * D_K[0] ** 0.5)
    A = (c * R @ torch.linalg.inv(C_R).T @ Vh_K.T @ torch.diag(D_K**0.5)).T
    B = c * L @ torch.linalg.inv(C_L).T @ U_K @ torch.diag(D_K**0.5)
    return A, B


def jacobian(V: Tensor, X: Tensor) -> Tensor:
    """`∂ f / ∂ vec(W)` (n·C, d_out·d_in) of `f(x) = V W x` over the columns of X, vec by
    columns."""
    return torch.cat([torch.kron(x[None], V) for x in X.T])


def prediction_alignment(V: Tensor, X: Tensor, residual: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """`‖(Π_J − Π_{J_LoRA}) Z‖` of CG-LoRA's equation 6, with both projections by dense
    pseudo-inverses.

    `residual` (C, n) holds the columns `y − f(x)`; the LoRA Jacobian is `J [I ⊗ B0, A0ᵀ ⊗ I]`
    (Proposition 4.1).
    """
    J = jacobian(V, X)
    d_out, d_in = B.shape[0], A.shape[1]
    J_lora = J @ torch.cat(
        [
            torch.kron(torch.eye(d_in).double(), B),
            torch.kron(A.T.contiguous(), torch.eye(d_out).double()),
        ],
        1,
    )
    Z = residual.T.reshape(-1)
    difference = J @ (torch.linalg.pinv(J) @ Z) - J_lora @ (
        torch.linalg.pinv(J_lora, rtol=1e-10) @ Z
    )
    return difference.norm()


def guidance(G: Tensor, Z: Tensor, y: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """LoRA-DA, Algorithm 1 lines 4 to 7 column by column, in this project's shapes: Ω (d_in, d_in),
    Δ (d_in, d_out)."""
    Omega, columns = torch.zeros_like(Z), []
    for i in range(len(y)):
        J_inverse = torch.linalg.inv(y[i] * Z)  # the i-th block of (diag(y) ⊗ Z)⁻¹
        column = -J_inverse @ G[i]
        Omega += J_inverse / N - torch.outer(column, column)
        columns.append(column)
    return Omega, torch.stack(columns, 1)


def lora_da_paper(G: Tensor, Z: Tensor, y: Tensor, N: int, rank: int) -> tuple[Tensor, Tensor]:
    """LoRA-DA, Algorithm 1: (A, B)."""
    Omega, Delta = guidance(G, Z, y, N)
    A = torch.linalg.eigh(Omega).eigenvectors[:, :rank].T
    return A, (A @ Delta).T


def lora_da_released(
    G: Tensor, Z: Tensor, y: Tensor, N: int, rank: int, damping: float, beta: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """The released code's version: damped Fisher, Δ over its largest singular value, Ω in that
    unit: (A, B)."""
    Z, y = Z + damping * torch.eye(len(Z)).double(), y + damping
    Delta = -torch.linalg.inv(Z) @ G.T @ torch.diag(1 / y)
    sigma = torch.linalg.svdvals(Delta)[0]
    Delta = Delta / sigma
    Omega = -Delta @ Delta.T + beta * (1 / y).sum() / (N * sigma**2) * torch.linalg.inv(Z)
    Q = torch.linalg.eigh(Omega).eigenvectors[:, :rank]
    return Q.T / gamma**0.5, (Q.T @ Delta).T / gamma**0.5
