"""Truncated SVD, inverse roots, sketches: the linear algebra that initializers and optimizers
share.

Everything here works in float32 or float64, on any device, with an explicit generator, and says in
its docstring which slow reference the tests hold it against.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SVD(NamedTuple):
    """Thin singular value decomposition `U diag(S) Vh`; S descending, columns of U and rows of Vh
    orthonormal."""

    U: Tensor  # (d_out, k)
    S: Tensor  # (k,)
    Vh: Tensor  # (k, d_in)

    def leading(self, rank: int) -> SVD:
        """The `rank` largest triplets."""
        return SVD(self.U[:, :rank], self.S[:rank], self.Vh[:rank])

    def trailing(self, rank: int) -> SVD:
        """The `rank` smallest triplets."""
        return SVD(self.U[:, -rank:], self.S[-rank:], self.Vh[-rank:])


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself in float32 or float64, a float32 copy of anything narrower."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def gaussian(rows: int, columns: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """A standard normal matrix, drawn on the CPU so that every device sees the same numbers."""
    drawn = torch.randn(rows, columns, generator=generator, dtype=like.dtype)
    return drawn.to(like.device, non_blocking=True)


def factor(x: Tensor, W: Tensor) -> Tensor:
    """`x` as an adapter factor of the weight `W`: on its device, in float64 if `W` is and in
    float32 otherwise.

    Always a compact copy: a slice of a decomposition would keep the whole decomposition in memory.
    """
    dtype = torch.float64 if W.dtype == torch.float64 else torch.float32
    here = x.device.type == "cpu"  # a copy from the host need not be waited for
    return x.to(
        device=W.device,
        dtype=dtype,
        non_blocking=here,
        copy=True,
        memory_format=torch.contiguous_format,
    )


def check_rank(layer: str, rank: int, available: int, what: str) -> None:
    """Refuse a rank that asks for more directions than there are; `what` names them and how many
    the rank takes."""
    if rank < 1 or rank > available:
        raise ValueError(
            f"layer {layer}: rank={rank}, expected 1 to {available} ({what}); choose a rank in that"
            " range"
        )


def check_positive(**values: float) -> None:
    """Refuse a hyper-parameter that has to be a positive number and is not."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: expected a number greater than 0")


def check_choice(*expected: str, **values: str) -> None:
    """Refuse a named choice that is not one of the expected ones."""
    for name, value in values.items():
        if value not in expected:
            raise ValueError(
                f"{name}={value!r}: expected {', '.join(expected[:-1])} or {expected[-1]}"
            )


def exact(decompose: Callable[..., Any], matrix: Tensor, **how: object) -> Any:
    """`decompose(matrix)`, such as `torch.linalg.svd` or `torch.linalg.eigh`; where the device's
    library does not converge, in float64 by LAPACK on the CPU, with a warning that says so.

    Raises: LinAlgError where that does not converge either, or the matrix is not finite.
    """
    try:
        return decompose(matrix, **how)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if not bool(matrix.isfinite().all()):
            raise
        reason = next(iter(str(error).splitlines()), "no reason given")
    shape = " × ".join(map(str, matrix.shape))
    warnings.warn(
        f"{decompose.__name__} of a {shape} matrix did not converge on {matrix.device.type}"
        f" ({reason[:120]}): computed in float64 on the CPU instead",
        stacklevel=2,
    )
    parts = decompose(matrix.cpu().double(), **how)
    return type(parts)([part.to(matrix.device, matrix.dtype) for part in parts])


def svd(matrix: Tensor) -> SVD:
    """Every singular triplet, in float32 or better: for the methods that want an exact one, or the
    smallest ones."""
    return SVD(*exact(torch.linalg.svd, at_least_float32(matrix), full_matrices=False))


class Product(NamedTuple):
    """A product that a subspace iteration asks for: `G @ block` where `side` is "right", `Gᵀ @
    block` where "left"."""

    side: str
    block: Tensor


def randomized_svd_steps(
    d_out: int,
    d_in: int,
    k: int,
    oversample: int,
    iterations: int,
    generator: torch.Generator | None,
    like: Tensor,
) -> Generator[Product, Tensor, SVD]:
    """Randomised SVD of a matrix that is only known through its products.

    Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1. Yields each product it needs and is sent
    the answer, so that one iteration serves a matrix in memory and a gradient that is streamed from
    the calibration batches alike. Takes `2 + 2·iterations` products.
    """
    width = min(k + oversample, d_out, d_in)
    # one block is held beside the product that is asked for, and none of those before
    Q = gaussian(d_in, width, generator, like)
    Q = torch.linalg.qr((yield Product("right", Q))).Q
    for _ in range(iterations):
        Q = torch.linalg.qr((yield Product("left", Q))).Q
        Q = torch.linalg.qr((yield Product("right", Q))).Q
    projected = (yield Product("left", Q)).mT  # QᵀG (width, d_in)
    U, S, Vh = exact(torch.linalg.svd, projected, full_matrices=False)
    k = min(k, width)
    return SVD((Q @ U)[:, :k], S[:k], Vh[:k])


def randomized_svd(
    matrix: Tensor, k: int, oversample: int, iterations: int, generator: torch.Generator | None
) -> SVD:
    """Leading `k` singular triplets of `matrix` by randomised subspace iteration; reference:
    `torch.linalg.svd`."""
    matrix = at_least_float32(matrix)
    d_out, d_in = matrix.shape
    steps = randomized_svd_steps(d_out, d_in, k, oversample, iterations, generator, matrix)
    try:
        product = next(steps)
        while True:
            answer = (
                matrix @ product.block if product.side == "right" else matrix.mT @ product.block
            )
            product = steps.send(answer)
    except StopIteration as stop:
        triplets: SVD = stop.value
        return triplets


def double(x: Tensor) -> Tensor:
    """`x` in float64, on its own device, or on the CPU where the device knows no float64 (MPS)."""
    return x.to("cpu", torch.float64) if x.device.type == "mps" else x.double()


def cholesky_in_place(matrix: Tensor, *, check: bool = False) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor of a symmetric positive matrix, in its own memory, and whether it
    failed (0: it did not), on its device; `check` reads that and raises LinAlgError. Reference:
    `torch.linalg.cholesky_ex`."""
    columns = matrix.mT  # the same matrix, stored as LAPACK and cuSOLVER write a factor
    info = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(columns, check_errors=check, out=(columns, info))
    return factor, failed


def inverse_square_root(matrix: Tensor, floor: float) -> Tensor:
    """A root `X` (m, k) of the pseudo-inverse of a symmetric positive matrix: `X Xᵀ = matrix⁺`, `Xᵀ
    matrix X = I`.

    Eigenvalues not above `floor` times the largest count as zero, and have no column in `X`. The
    symmetric root is `X` times an orthogonal matrix. Reference: the dense pseudo-inverse.
    """
    values, U = exact(torch.linalg.eigh, matrix)
    kept = values > floor * values.max().clamp_min(0)
    root: Tensor = U[:, kept] * values[kept].rsqrt()
    return root


class Eigenpairs(NamedTuple):
    """The `k` largest eigenvalues, descending, and eigenvectors (size, k), with the `excess` of the
    largest residual over what is tolerated, on their device: they are exact where it is at most
    0."""

    values: Tensor
    vectors: Tensor
    excess: Tensor


class Krylov:
    """The block Krylov subspace of a symmetric operator, given by products with it, from the
    columns of `start` (size, b): grown product by product and fully reorthogonalised, with
    Rayleigh-Ritz (Golub and Van Loan, Matrix Computations, section 10.3).

    Residuals are tolerated up to `tolerance` times the largest of the k eigenvalues. An operator
    that would need more than half of its space is formed and decomposed densely: slow, never
    inexact. Reference: `torch.linalg.eigh`.
    """

    def __init__(
        self, apply: Callable[[Tensor], Tensor], start: Tensor, k: int, tolerance: float = 1e-9
    ) -> None:
        self.apply, self.k, self.tolerance = apply, k, tolerance
        self.V = self.Q = self.first = torch.linalg.qr(start).Q
        self.T = start.new_zeros(0, 0)  # VᵀPV, grown by a border with each product
        self.R = self.T  # what the last product left outside

    def fits(self, products: int = 1) -> bool:
        """Whether so many more products stay within half of the space."""
        size, width = self.V.shape
        return bool(width + (products - 1) * self.Q.shape[1] <= size // 2)

    def grow(self) -> None:
        """One product more."""
        residual = self.apply(self.Q)
        border = self.V.mT @ residual
        self.T = torch.cat([torch.cat([self.T, border[: len(self.T)]], 1), border.mT])
        block, self.R = torch.linalg.qr(residual - self.V @ border)
        # orthogonal to V a second time: twice is enough, for what is more than rounding; the rest
        # gives way to other directions, where a subspace that nothing leaves is gone on from
        both = torch.cat([block, self.first.roll(self.V.shape[1], 0)], 1)
        block, others = (both - self.V @ (self.V.mT @ both)).chunk(2, 1)
        self.Q = torch.linalg.qr(torch.where(block.norm(dim=0) < 0.5, others, block)).Q
        self.V = torch.cat([self.V, self.Q], 1)

    def pairs(self) -> Eigenpairs:
        """Of the subspace, as it is; nothing is read but the decomposition's outcome."""
        values, X = exact(torch.linalg.eigh, self.T)
        values, X = values[-self.k :].flip(0), X[:, -self.k :].flip(1)
        errors = (self.R @ X[-self.Q.shape[1] :]).norm(dim=0)
        excess = errors.max() - self.tolerance * values.abs().max()
        return Eigenpairs(values, self.V[:, : len(X)] @ X, excess)

    def dense(self) -> Eigenpairs:
        """Of the operator, formed."""
        eye = torch.eye(len(self.V), dtype=self.V.dtype, device=self.V.device)
        whole = self.apply(eye)
        values, X = exact(torch.linalg.eigh, (whole + whole.mT) / 2)
        values, X = values[-self.k :].flip(0), X[:, -self.k :].flip(1)
        return Eigenpairs(values, X, values.new_zeros(()))

    def ahead(self, products: int) -> Eigenpairs:
        """After a number of products decided ahead, whatever is left to do; of a space of which so
        many would take all, exactly."""
        if not self.fits((products + 1) // 2):
            return self.dense()
        for _ in range(products):
            if self.fits():
                self.grow()
        return self.pairs()

    def settled(self, first: int = 0, part: int = 4) -> Eigenpairs:
        """After as many products as it takes, looked at when `first` of them are there, and then
        whenever there is a `part`-th more of the space: all looks cost as a few products do."""
        due = max(self.k, first * self.Q.shape[1], len(self.T) + len(self.T) // part)
        while self.fits():
            self.grow()
            if len(self.T) >= due:
                found = self.pairs()
                if found.excess <= 0:
                    return found
                due = len(self.T) + len(self.T) // part
        return self.dense()
