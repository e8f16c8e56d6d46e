"""What an initializer reads and what it returns: `Layer`, `Factors`, and the declaration of its
needs.

This module is the whole vocabulary that an initializer shares with the rest of the house. It knows
no model, no configuration and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor

from loraexp.adapter import linalg

Start = Literal["pretrained", "shifted"]
Weighting = Literal["samples", "tokens"]


class MissingStatistic(LookupError):
    """An initializer asked a layer for a statistic that nobody collected."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The adapter of one layer at step 0: `y = W0 x + η B R A x − η B0 A0 x`.

    `start="pretrained"` trains from `W0`: the product at step 0 is taken off again by the frozen
    offset `(A0, B0) = (A, R-folded B)`. `start="shifted"` trains from `W0 + η B R A` and has no
    offset. `train` says which factors receive gradients; it is said, never inferred.
    """

    A: Tensor  # (r, d_in)
    B: Tensor  # (d_out, r)
    R: Tensor | None = None  # (r, r), LoRA-XS and LoRA-SB
    start: Start
    train: frozenset[str] = frozenset({"A", "B"})

    def __post_init__(self) -> None:
        if self.start not in ("pretrained", "shifted"):
            raise ValueError(f"start={self.start!r}: expected pretrained or shifted")
        rank = self.A.shape[0]
        if self.B.shape[1] != rank or (self.R is not None and self.R.shape != (rank, rank)):
            shapes = [tuple(x.shape) for x in (self.A, self.B, self.R) if x is not None]
            raise ValueError(
                f"factors of shapes {shapes} do not multiply: expected A (r, d_in), B (d_out, r), R"
                " (r, r)"
            )
        unknown = self.train - {"A", "B", "R"}
        if unknown or ("R" in self.train and self.R is None):
            raise ValueError(
                f"train={sorted(self.train)}: expected a subset of A, B and, where R is given, R"
            )

    def has_product(self) -> bool:
        """Whether neither A nor B is zero; the device is asked once."""
        return bool(self.A.any() & self.B.any())

    def copied(self, device: torch.device) -> Factors:
        """Copies on `device`."""
        A, B = (x.to(device, copy=True) for x in (self.A, self.B))
        return replace(self, A=A, B=B, R=None if self.R is None else self.R.to(device, copy=True))

    def product(self) -> Tensor:
        """`B R A` (d_out, d_in), without the scaling η; dense, for tests and ledgers."""
        return self.B @ self.A if self.R is None else self.B @ self.R @ self.A


@dataclass(frozen=True)
class Curvature:
    """K-FAC-reduce curvature of one layer in its leading eigenvectors, and the gradient seen in
    them.

    `S ≈ U_S D_S U_Sᵀ` (input side), `T ≈ U_T D_T U_Tᵀ` (output side), `core = U_Tᵀ G U_S`. `theta`
    is `U_Tᵀ Θ U_T` (m, m), only for the cross-entropy version of CG-LoRA. `damping_S`, `damping_T`
    are traces per dimension, `tr(S)/d_in` and `tr(T)/d_out`: the unit of relative damping. `notes`
    are remarks for the ledger (for example that unpooled δ were used).
    """

    U_S: Tensor  # (d_in, m)
    D_S: Tensor  # (m,)
    U_T: Tensor  # (d_out, m)
    D_T: Tensor  # (m,)
    core: Tensor  # (m_T, m_S)
    theta: Tensor | None = None  # (m_T, m_T)
    damping_S: float | None = None
    damping_T: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeadingRequest:
    """The leading `k` singular triplets of the gradient by a randomised SVD with `k + oversample`
    columns and `iterations` subspace iterations; what `@needs("leading_gradient")` asks the
    statistics for."""

    k: int
    oversample: int
    iterations: int


@dataclass(frozen=True)
class CurvatureRequest:
    """What CG-LoRA asks of the statistics. `m=None` stands for every eigenvector (full)."""

    m: int | None
    iterations: int = 1  # q, subspace iterations; used by bases="sketched"
    bases: Literal["sketched", "exact"] = "sketched"
    probes: int = 1
    loss: Literal["squared", "cross_entropy"] = "squared"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What an initializer may ask of the training that follows it: `lr · factor` is the rate of its
    first step."""

    lr: float
    factor: float  # of the schedule at step 0, warm-up included
    warmup_ratio: float
    steps: int
    epochs: float
    rows: int  # of the training set


STATISTICS: dict[str, str] = {
    "gradient": (
        "mean-loss gradient (d_out, d_in), the mean over samples or label tokens as init.weighting"
        " says"
    ),
    "leading_gradient": "leading singular triplets of the mean-loss gradient",
    "gradient_norm": (
        "Frobenius norm of the mean-loss gradient, for the ledger; absent where no whole gradient"
        " was held"
    ),
    "summed_gradient": "gradient of the sum of the samples' losses (d_out, d_in)",
    "input_moment": "E[h hᵀ] over unpadded tokens (d_in, d_in)",
    "output_moment": "E[μ²] over unpadded tokens (d_out,), μ the gradient of the sample's own loss",
    "population": "size N of the training set",
    "curvature": "Curvature: leading K-FAC eigenvectors and the gradient in them",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One adapted linear layer as an initializer sees it: its weight and the statistics that were
    collected.

    Statistics are given by keyword (`Layer(name="x", W=W, gradient=G)`) and read as attributes;
    reading one that was not collected raises `MissingStatistic`, naming layer, statistic and fix.
    """

    name: str
    W: Tensor  # (d_out, d_in)
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, *, name: str, W: Tensor, **statistics: object) -> None:
        unknown = set(statistics) - set(STATISTICS)
        if unknown:
            raise TypeError(
                f"layer {name}: unknown statistics {sorted(unknown)}; expected some of"
                f" {', '.join(STATISTICS)}"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "W", W)
        object.__setattr__(
            self, "statistics", {k: v for k, v in statistics.items() if v is not None}
        )

    def __getattr__(self, statistic: str) -> Any:
        if statistic.startswith("_") or statistic not in STATISTICS:
            raise AttributeError(f"Layer has no attribute {statistic!r}")
        if statistic not in self.statistics:
            raise MissingStatistic(
                f"layer {self.name} has no {statistic} ({STATISTICS[statistic]}): "
                f'declare @needs("{statistic}") on the initializer, or pass Layer(...,'
                f" {statistic}=...)"
            )
        return self.statistics[statistic]

    @property
    def d_out(self) -> int:
        return self.W.shape[0]

    @property
    def d_in(self) -> int:
        return self.W.shape[1]

    def leading_gradient(
        self, request: LeadingRequest, generator: torch.Generator | None
    ) -> linalg.SVD:
        """Leading singular triplets of the gradient, `G ≈ U diag(S) Vh`.

        The statistics leave them here, from the whole gradient within the memory budget and from `Σ
        μ (hᵀ Ω)` sketches beyond it; a layer made by hand with a `gradient` decomposes that. All
        run the same iteration on the same test matrix, drawn from a generator in the same state, so
        all give the same factors.
        """
        stored: linalg.SVD | None = self.statistics.get("leading_gradient")
        if stored is not None:
            return stored
        if "gradient" not in self.statistics:
            raise MissingStatistic(
                f"layer {self.name} has no leading_gradient and no gradient to take it from:"
                ' declare @needs("leading_gradient") on the initializer, or pass Layer(...,'
                " gradient=...)"
            )
        return linalg.randomized_svd(
            self.gradient, request.k, request.oversample, request.iterations, generator
        )


class Initializer(Protocol):
    """A method that `needs` has declared: its function, and what is asked of it before it runs."""

    needs: frozenset[str]
    request: Callable[..., dict[str, LeadingRequest | CurvatureRequest]]
    trains: frozenset[str]
    weighting: Weighting
    settle: Callable[[dict[str, Any], Training], dict[str, Any]]

    def __call__(
        self,
        layer: Layer,
        *,
        rank: int,
        scaling: float,
        generator: torch.Generator,
        **hyper: object,
    ) -> Factors: ...


def as_initializer(initializer: Callable[..., Any]) -> Initializer:
    """The initializer as what its declaration made of it."""
    return cast(Initializer, initializer)


Method = TypeVar("Method", bound=Callable[..., Factors | None])


def needs(
    *statistics: str,
    request: Callable[..., Any] | None = None,
    trains: Iterable[str] = ("A", "B"),
    weighting: Weighting = "tokens",
    settle: Callable[[dict[str, Any], Training], dict[str, Any]] | None = None,
) -> Callable[[Method], Method]:
    """Declare what an initializer reads and which factors it lets train: one truth, known before
    anything is loaded.

    `request(rank, **hyper_parameters)` gives the sizes that some statistics depend on, as
    `{"leading_gradient": LeadingRequest(...)}` or `{"curvature": CurvatureRequest(...)}`. It is
    called with the hyper-parameters of the initializer as configured. `weighting` is the method's
    own value of `init.weighting`: what the loss of its statistics is a mean over.
    `settle(hyper_parameters, training)` gives the hyper-parameters with those filled in that follow
    from the training.
    """
    unknown = set(statistics) - set(STATISTICS)
    if unknown:
        raise ValueError(
            f"@needs: unknown statistics {sorted(unknown)}; expected some of"
            f" {', '.join(STATISTICS)}"
        )

    def declare(initializer: Method) -> Method:
        made = as_initializer(initializer)
        made.needs, made.trains = frozenset(statistics), frozenset(trains)
        made.request = request or (lambda rank, **_: {})
        made.weighting = weighting
        made.settle = settle or (lambda hyper, training: hyper)
        return initializer

    return declare
