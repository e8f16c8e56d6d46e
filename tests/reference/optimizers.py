"""Training rules as their papers write them: one layer at a time, dense, float64, nothing shared
with the package."""

from __future__ import annotations

import torch
from torch import Tensor


def precondition(
    A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """LoRA-One, Algorithm 2, line 9; the pseudo-inverse of (Prec-GD) where λ = 0."""
    identity = torch.eye(A.shape[0], dtype=A.dtype)
    if damping == 0:
        return torch.linalg.pinv(B.T @ B) @ grad_A, grad_B @ torch.linalg.pinv(A @ A.T)
    return torch.linalg.inv(B.T @ B + damping * identity) @ grad_A, grad_B @ torch.linalg.inv(
        A @ A.T + damping * identity
    )


def sylvester(left: Tensor, right: Tensor, C: Tensor) -> Tensor:
    """X of `left X + X right = C`, through the Kronecker product on row-major vec(X)."""
    identity = torch.eye(len(left), dtype=left.dtype)
    matrix = torch.kron(left, identity) + torch.kron(identity, right.T.contiguous())
    return torch.linalg.solve(matrix, C.reshape(-1)).reshape(C.shape)


def lora_pro(
    A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LoRA-Pro, Theorems 2.1 and 2.3: the new gradients and X; B of full rank."""
    inverse_A, inverse_B = torch.linalg.inv(A @ A.T), torch.linalg.inv(B.T @ B)
    X = sylvester(B.T @ B, A @ A.T, -inverse_B @ grad_A @ A.T / scaling**2)
    new_A = inverse_B @ grad_A / scaling**2 + X @ A
    projector = torch.eye(len(B), dtype=B.dtype) - B @ inverse_B @ B.T
    new_B = projector @ grad_B @ inverse_A / scaling**2 - B @ X
    return new_A, new_B, X


def closest_product(A: Tensor, B: Tensor, G: Tensor, scaling: float) -> Tensor:
    """The point of `{η(B g_A + g_B A)}` nearest to G, by dense least squares over the entries of
    g_A and g_B."""
    (r, d_in), d_out = A.shape, B.shape[0]
    columns = []
    for i in range(r * d_in):
        unit = torch.zeros(r * d_in, dtype=A.dtype)
        unit[i] = 1
        columns.append((scaling * B @ unit.view(r, d_in)).reshape(-1))
    for i in range(d_out * r):
        unit = torch.zeros(d_out * r, dtype=A.dtype)
        unit[i] = 1
        columns.append((scaling * unit.view(d_out, r) @ A).reshape(-1))
    matrix = torch.stack(columns, 1)
    solution = torch.linalg.lstsq(matrix, G.reshape(-1, 1), driver="gelsd").solution
    return (matrix @ solution).view(d_out, d_in)


def adamw(
    p: Tensor,
    gradients: list[Tensor],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """AdamW, Loshchilov & Hutter 2019, Algorithm 2, over a list of gradients."""
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * weight_decay * p - lr * m_hat / (v_hat.sqrt() + eps)
    return p


def lora_pro_adamw(
    A: Tensor,
    B: Tensor,
    gradients: list[tuple[Tensor, Tensor]],
    scaling: float,
    lr: float,
    weight_decay: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """LoRA-Pro, Algorithm 2, from a B of full rank and without damping; gradients are those of (A,
    B) at each step."""
    m = v = torch.zeros(len(B), A.shape[1], dtype=A.dtype)
    for t, (grad_A, grad_B) in enumerate(gradients, start=1):
        new_A, new_B, _ = lora_pro(A, B, grad_A, grad_B, scaling)
        G = scaling * (B @ new_A + new_B @ A)
        m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G * G
        G = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + eps)
        new_A, new_B, _ = lora_pro(A, B, scaling * B.T @ G, scaling * G @ A.T, scaling)
        A, B = (1 - lr * weight_decay) * A - lr * new_A, (1 - lr * weight_decay) * B - lr * new_B
    return A, B


def p_lora_released(
    A: Tensor,
    B: Tensor,
    gradients: list[tuple[Tensor, Tensor]],
    lr: float,
    weight_decay: float,
    damping: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """P-LoRA's own AdamWr: moments without bias correction, and for B the Gram matrix of the A
    already moved."""
    identity = torch.eye(A.shape[0], dtype=A.dtype)
    m_A, v_A, m_B, v_B = (torch.zeros_like(x) for x in (A, A, B, B))
    for grad_A, grad_B in gradients:
        g = torch.inverse(B.T @ B + damping * identity) @ grad_A
        m_A, v_A = 0.9 * m_A + 0.1 * g, 0.999 * v_A + 0.001 * g * g
        A = (1 - lr * weight_decay) * A - lr * m_A / (v_A.sqrt() + eps)
        g = grad_B @ torch.inverse(A @ A.T + damping * identity)
        m_B, v_B = 0.9 * m_B + 0.1 * g, 0.999 * v_B + 0.001 * g * g
        B = (1 - lr * weight_decay) * B - lr * m_B / (v_B.sqrt() + eps)
    return A, B


def lora_pro_first_step(A: Tensor, G: Tensor, scaling: float, lr: float) -> tuple[Tensor, Tensor]:
    """LoRA-Pro's own lorapro_full_adjustment at global_step 0 (B = 0, no weight decay): the new A
    and B."""
    inverse = torch.linalg.pinv(A @ A.T)
    grad_B = scaling * G @ A.T
    equivalent = scaling * ((1 / scaling**2) * grad_B @ inverse) @ A
    # both corrected moments of the first gradient
    direction = equivalent / (equivalent.abs() + 1e-8)
    back = (1 / scaling**2) * (scaling * direction @ A.T) @ inverse
    return A, -lr * back
