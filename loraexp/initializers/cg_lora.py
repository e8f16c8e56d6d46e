"""CG-LoRA: A and B span the leading modes of the gradient whitened by the curvature of the model's
predictions."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from loraexp.adapter import linalg
from loraexp.adapter.layer import Curvature, CurvatureRequest, Factors, Layer, Start, needs

BASIS = {"r": 1, "2r": 2, "4r": 4, "full": None}


def request(
    rank: int,
    basis: Literal["r", "2r", "4r", "full"] = "r",
    iterations: int = 1,
    bases: Literal["sketched", "exact"] = "sketched",
    probes: int = 1,
    curvature: Literal["squared", "cross_entropy"] = "squared",
    modes: Literal["leading", "disjoint"] = "leading",
    **_: Any,
) -> dict[str, CurvatureRequest]:
    """Ask for `m` eigenvectors of both curvature factors, and the gradient seen in them.

    Raises ValueError for an unknown choice, a count below 1, and modes=disjoint in a basis of r.
    """
    linalg.check_choice(*BASIS, basis=basis)
    linalg.check_choice("sketched", "exact", bases=bases)
    linalg.check_choice("squared", "cross_entropy", curvature=curvature)
    linalg.check_choice("leading", "disjoint", modes=modes)
    linalg.check_positive(iterations=iterations, probes=probes)
    if modes == "disjoint" and basis == "r":
        raise ValueError(
            "cg_lora: basis=r holds r modes and modes=disjoint takes 2r; set init.basis=2r, 4r or"
            " full"
        )
    multiple = BASIS[basis]
    m = None if multiple is None else multiple * rank
    return {
        "curvature": CurvatureRequest(
            m=m, iterations=iterations, bases=bases, probes=probes, loss=curvature
        )
    }


@needs("curvature", request=request)
def cg_lora(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    gamma: float = 16.0,
    basis: Literal["r", "2r", "4r", "full"] = "r",
    iterations: int = 1,
    bases: Literal["sketched", "exact"] = "sketched",
    probes: int = 1,
    curvature: Literal["squared", "cross_entropy"] = "squared",
    damping: float = 0.0,
    modes: Literal["leading", "disjoint"] = "leading",
    start: Start = "pretrained",
) -> Factors:
    """Start in the modes in which training A and B can follow the predictions of full fine-tuning
    most closely.

    CG-LoRA, Algorithm 2 with the minus of Proposition 5.1; Theorem 5.3, and appendix A for
    cross_entropy. Over the calibration rows `S ≈ U_S D_S U_Sᵀ` (d_in, d_in) and `T ≈ U_T D_T U_Tᵀ`
    (d_out, d_out), m eigenvectors each, are the sums of `h hᵀ` and `δ δᵀ` over examples, pooled
    over tokens; `G` (d_out, d_in) is the gradient of the loss:

        F = D_T^{-1/2} U_Tᵀ G U_S D_S^{-1/2} = U_F D_F V_Fᵀ  (m, m), cut to the r leading modes
        L = U_T D_T^{-1/2} U_F  (d_out, r),         J_L = LᵀL = C_L C_Lᵀ  (r, r)
        R = U_S D_S^{-1/2} V_F  (d_in, r),          J_R = RᵀR = C_R C_Rᵀ  (r, r)
        Q* = −J_L⁻¹ D_F J_R⁻¹,   K = C_Lᵀ Q* C_R = U_K D_K V_Kᵀ   (r, r),
            c = d_out^{1/4} / (γ D_K[0]^{1/2})
        A0ᵀ = c R C_R⁻ᵀ V_K D_K^{1/2}  (d_in, r),     B0 = c L C_L⁻ᵀ U_K D_K^{1/2}  (d_out, r)

    so `‖A0‖₂ = ‖B0‖₂ = d_out^{1/4}/γ`, whatever the scales of h, δ and G; η does not enter. With m
    = r (the paper) the product is a multiple of `−U_T U_Tᵀ G U_S U_Sᵀ`; whitening takes m > r.

        cross_entropy:  with `Φ = D_T^{-1/2} U_Tᵀ Θ U_T D_T^{-1/2}`, F becomes `Φ^{-1/2} F` and L
                        becomes `U_T D_T^{-1/2} Φ^{-1/2} U_F`
        disjoint:       R takes the modes r+1..2r, which reaches the lower bound (10). Then `Lᵀ G R
                        = 0` and Q* = 0: nothing aligns the columns, so K = I, and A0, B0 are scaled
                        orthonormal bases, as in LoRA-GA

    `damping` λ adds `λ tr(S)/d_in` to D_S and `λ tr(T)/d_out` to D_T. The eigenvalues of S, T and Φ
    and the singular values of K that are rounding (their number times the machine epsilon, relative
    to the largest) count as zero. `basis` (m), `iterations`, `bases`, `probes` say what the
    statistics collect; m here is the width of what came.

    Warns when there are fewer than r modes: the other columns are zero (Proposition 4.5 ii) and do
    not train. Raises ValueError for an unknown choice, a value out of range, a curvature or a
    gradient that is zero, fewer than 2r modes for modes=disjoint; MissingStatistic without a
    curvature.
    """
    linalg.check_choice("squared", "cross_entropy", curvature=curvature)
    linalg.check_choice("leading", "disjoint", modes=modes)
    linalg.check_positive(rank=rank, gamma=gamma)
    seen: Curvature = layer.curvature
    small = _at_home(seen)
    whiten_S = _whitening(layer, "S", small.D_S, damping, _rounding(seen.D_S))
    whiten_T = _whitening(layer, "T", small.D_T, damping, _rounding(seen.D_T))
    if curvature == "cross_entropy":
        whiten_T = whiten_T @ _loss_curvature_root(layer, whiten_T, small, _rounding(seen.D_T))
    X_B, X_A = _balanced_modes(layer, small.core, whiten_T, whiten_S, rank, modes)
    # the columns scale as D_K^{1/2}
    kept = X_A.norm(dim=0) > (rank * torch.finfo(seen.core.dtype).eps) ** 0.5
    X_B, X_A = X_B[:, kept], X_A[:, kept]
    if X_A.shape[1] < rank:
        warnings.warn(
            f"layer {layer.name}: rank={rank}, and its curvature and gradient share {X_A.shape[1]}"
            " modes: the other rows of A and columns of B are zero and do not train; lower rank,"
            " or raise init.samples",
            stacklevel=2,
        )
    c = layer.d_out**0.25 / gamma
    A = _factor(seen.U_S, c * X_A, rank).mT
    B = _factor(seen.U_T, c * X_B, rank)
    return Factors(A=linalg.factor(A, layer.W), B=linalg.factor(B, layer.W), start=start)


def _balanced_modes(
    layer: Layer, core: Tensor, whiten_T: Tensor, whiten_S: Tensor, rank: int, modes: str
) -> tuple[Tensor, Tensor]:
    """`X_B`, `X_A` (m, r) of spectral norm 1, with `B0 = c U_T X_B` and `A0ᵀ = c U_S X_A`.

    There are fewer columns than r where F has fewer modes.
    """
    U_F, D_F, Vh_F = linalg.exact(
        torch.linalg.svd, whiten_T.mT @ core @ whiten_S, full_matrices=False
    )
    if not D_F[0] > 0:
        raise ValueError(
            f"layer {layer.name}: its gradient is zero in the curvature basis; drop it from"
            " model.targets"
        )
    first = rank if modes == "disjoint" else 0
    if modes == "disjoint" and len(D_F) < 2 * rank:
        raise ValueError(
            f"layer {layer.name}: modes=disjoint takes 2 x rank = {2 * rank} modes and the"
            f" curvature holds {len(D_F)}; lower rank, or raise init.samples or init.basis"
        )
    # L = U_T X for X = whiten_T U_F: the triangle of a QR of X is C_Lᵀ and its Q is X C_L⁻ᵀ, a
    # Cholesky factor of J_L = XᵀX without squaring what is ill-conditioned. The same for R.
    Q_L, C_Lh = torch.linalg.qr(whiten_T @ U_F[:, :rank])
    Q_R, C_Rh = torch.linalg.qr(whiten_S @ Vh_F.mT[:, first : first + rank])
    K = (
        torch.eye(rank, dtype=core.dtype)
        if modes == "disjoint"
        else _aligned(C_Lh, D_F[:rank], C_Rh)
    )
    U_K, D_K, Vh_K = linalg.exact(torch.linalg.svd, K)
    root = (D_K / D_K[0]).sqrt()
    return Q_L @ U_K * root, Q_R @ Vh_K.mT * root


def _aligned(C_Lh: Tensor, D_F: Tensor, C_Rh: Tensor) -> Tensor:
    """`K = C_Lᵀ Q* C_R = −C_L⁻¹ D_F C_R⁻ᵀ` (r, r), from the transposed Cholesky factors of J_L and
    J_R."""
    half = torch.linalg.solve_triangular(C_Lh.mT, torch.diag(-D_F), upper=False)
    core: Tensor = torch.linalg.solve_triangular(C_Rh, half, upper=True, left=False)
    return core


def _whitening(
    layer: Layer, side: Literal["S", "T"], D: Tensor, damping: float, rounding: float
) -> Tensor:
    """`D^{-1/2}` (m, kept) of one curvature factor, damped, with a column for each eigenvalue that
    is not zero."""
    if not 0 <= damping < float("inf"):
        raise ValueError(f"cg_lora: damping={damping}, expected a number of at least 0")
    if damping > 0:
        unit = layer.curvature.damping_S if side == "S" else layer.curvature.damping_T
        if unit is None:
            raise ValueError(
                f"layer {layer.name}: damping={damping:g} is relative to tr({side}) per dimension"
                f" and the curvature has no damping_{side}; pass Curvature(..., damping_{side}=...)"
                " or set init.damping=0"
            )
        D = D + damping * unit
    X = linalg.inverse_square_root(torch.diag(D), rounding)
    if X.shape[1] == 0:
        raise ValueError(
            f"layer {layer.name}: its curvature factor {side} is zero; drop it from model.targets"
        )
    return X


def _loss_curvature_root(
    layer: Layer, whiten_T: Tensor, small: Curvature, rounding: float
) -> Tensor:
    """`Φ^{-1/2}` of appendix A, up to an orthogonal matrix on its right, which the SVD of F
    absorbs."""
    if small.theta is None:
        raise ValueError(
            f"layer {layer.name}: curvature=cross_entropy and the curvature has no theta; collect"
            ' it with CurvatureRequest(loss="cross_entropy"), or set init.curvature=squared'
        )
    X = linalg.inverse_square_root(whiten_T.mT @ small.theta @ whiten_T, rounding)
    if X.shape[1] == 0:
        raise ValueError(
            f"layer {layer.name}: its theta is zero, expected positive; set init.curvature=squared"
        )
    return X


def _at_home(seen: Curvature) -> Curvature:
    """The vectors of m and the m by m matrices in float64 on the CPU, which decomposes them before
    a GPU has started; in one copy."""
    names = ["D_S", "D_T", "core", *(["theta"] if seen.theta is not None else [])]
    parts: list[Tensor] = [getattr(seen, name) for name in names]
    flat = torch.cat([part.flatten() for part in parts]).to("cpu", torch.float64)
    pieces = flat.split([part.numel() for part in parts])
    shaped = {n: x.reshape(p.shape) for n, x, p in zip(names, pieces, parts, strict=True)}
    return replace(seen, **shaped)


def _rounding(x: Tensor) -> float:
    """The relative size up to which an eigenvalue of `x`, or in `x`, is rounding."""
    return len(x) * torch.finfo(x.dtype).eps


def _factor(U: Tensor, X: Tensor, rank: int) -> Tensor:
    """`U X` (d, r), with zero columns for the modes that are missing."""
    there = X.to(U.device, U.dtype, non_blocking=True)
    return torch.nn.functional.pad(U @ there, (0, rank - X.shape[1]))
