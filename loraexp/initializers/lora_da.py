"""LoRA-DA: A spans the directions that balance the bias of a rank-r update against the variance of
estimating it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from loraexp.adapter import linalg
from loraexp.adapter.layer import Factors, Layer, Start, needs
from loraexp.machine.device import is_accelerator, numbers


class Flavour(NamedTuple):
    """The values that a hyper-parameter left at None takes, and whether Δ is divided by its largest
    singular value."""

    damping: float
    variance_weight: float
    gamma: float
    normalised: bool


FLAVOURS = {
    "paper": Flavour(damping=0.0, variance_weight=1.0, gamma=1.0, normalised=False),
    "released": Flavour(damping=1e-6, variance_weight=0.03, gamma=1024.0, normalised=True),
}


# Products with Ω, and with Δ Δᵀ from there, before directions are looked at: layers of 384 to 4096
# take 9 to 20, and 3 or 4. To look costs a CPU half a product, and an accelerator all that it has
# been given ahead.
FIRST, THEN = 9, 3
PRODUCTS, FEW = 20, 6


@dataclass(frozen=True)
class Step:
    """`Δ = −Z⁻¹ Gᵀ diag(1/y)` (d_in, d_out), the Fisher-preconditioned step, known by its products
    and never formed.

    `C` is the Cholesky factor of Z; without it Z is the identity.
    """

    G: Tensor  # (d_out, d_in)
    y: Tensor  # (d_out, 1)
    C: Tensor | None  # (d_in, d_in)

    def solve(self, X: Tensor) -> Tensor:
        """`Z⁻¹ X` of `X` (d_in, b)."""
        return X if self.C is None else torch.cholesky_solve(X, self.C)

    def transposed(self, X: Tensor) -> Tensor:
        """`Δᵀ X` (d_out, b) of `X` (d_in, b)."""
        return -(self.G @ self.solve(X)) / self.y

    def bias_minus_variance(self, X: Tensor, variance: Tensor | float) -> Tensor:
        """`−Ω X = Δ Δᵀ X − variance · Z⁻¹ X` (d_in, b) of `X` (d_in, b)."""
        solved = self.solve(X)
        return self.solve(self.G.mT @ ((self.G @ solved) / self.y**2)) - variance * solved


@needs("gradient", "input_moment", "output_moment", "population", weighting="samples")
def lora_da(
    layer: Layer,
    *,
    rank: int,
    scaling: float,
    generator: torch.Generator,
    flavour: Literal["released", "paper"] = "released",
    terms: Literal["all", "no_bias", "no_variance", "no_variance_fisher"] = "all",
    damping: float | None = None,
    damping_mode: Literal["absolute", "relative"] = "absolute",
    variance_weight: float | None = None,
    gamma: float | None = None,
    start: Start = "shifted",
) -> Factors:
    """Project the Fisher-preconditioned step on the r directions of least estimation variance less
    explained bias.

    LoRA-DA, Algorithm 1 with the minus of its equation 21, equations 17 to 19, appendix D. `G =
    1/|S| Σ_j ∇ℓ_j` (d_out, d_in), each ℓ_j a sample's own mean loss (init.weighting); `Z = E[h hᵀ]`
    (d_in, d_in) and `y = E[μ²]` (d_out,) are means over unpadded tokens, μ the gradient of the
    sample's own loss; `N` is the size of the training set; β, γ are `variance_weight`, `gamma`:

        Δ = −Z⁻¹ Gᵀ diag(1/y)   (d_in, d_out)
            only the diagonal of the output Fisher is used (appendix D)
        Ω = β (Σ_i 1/y_i)/N · Z⁻¹ − Δ Δᵀ  (d_in, d_in)
        Q = the eigenvectors of the r smallest eigenvalues of Ω  (d_in, r)
        A0 = Qᵀ/√γ  (r, d_in),      B0 = Δᵀ Q/√γ  (d_out, r);      start at W0 + η B0 A0

        paper:     β = 1, γ = 1, no damping: at its word, and far too long a step on a real network
        released:  β = 0.03, γ = 1024, damping 1e-6, and Δ in B0 divided by its largest singular
                   value; Ω as a whole is divided by the square of it, which leaves its eigenvectors
                   alone

    A hyper-parameter left at None takes its flavour's value; η does not enter. Damping λ adds λ to
    the diagonal of Z and to y (absolute), or λ times the mean of the diagonal of Z and λ times the
    median of y (relative). `terms` are the ablations of Table 6: no_bias drops `ΔΔᵀ` from Ω,
    no_variance its first term, and no_variance_fisher that and the Fisher too (`Δ = −Gᵀ`).

    Warns when absolute damping exceeds the median of y: the output Fisher is then the same for all
    outputs. Raises ValueError for an unknown flavour, terms or damping_mode, a rank above d_in, a
    value out of range, a Z or y that damping leaves singular, a zero gradient; MissingStatistic
    without its statistics.
    """
    linalg.check_rank(layer.name, rank, layer.d_in, "eigenvectors of the guidance matrix Ω")
    linalg.check_choice(*FLAVOURS, flavour=flavour)
    linalg.check_choice("all", "no_bias", "no_variance", "no_variance_fisher", terms=terms)
    linalg.check_choice("absolute", "relative", damping_mode=damping_mode)
    own = FLAVOURS[flavour]
    damping = own.damping if damping is None else damping
    beta = own.variance_weight if variance_weight is None else variance_weight
    gamma = own.gamma if gamma is None else gamma
    linalg.check_positive(gamma=gamma, population=layer.population)
    if not (damping >= 0 and beta >= 0):
        raise ValueError(
            f"damping={damping}, variance_weight={beta}: expected numbers of at least 0"
        )
    step, facts = _step(layer, damping, damping_mode, fisher=terms != "no_variance_fisher")
    directions = linalg.Krylov(
        _guidance(layer, step, terms, beta),
        linalg.gaussian(layer.d_in, rank, generator, step.G),
        rank,
    )
    Q, largest = _directions(step, directions, own.normalised, facts)
    B = step.transposed(Q) / largest
    root = math.sqrt(gamma)
    return Factors(
        A=linalg.factor(Q.mT / root, layer.W), B=linalg.factor(B / root, layer.W), start=start
    )


class Facts(NamedTuple):
    """What a step is refused for, or warned of, before anybody has read it: single numbers on their
    device."""

    layer: str
    damping: float
    mode: str
    # max |G|, and with the Fisher the median of y, whether Z failed, the least of the damped y
    numbers: list[Tensor]

    def check(self, largest: float, *fisher: float) -> None:
        """Raises: ValueError as `lora_da` says."""
        if largest == 0:
            raise ValueError(
                f"layer {self.layer}: its gradient is zero and has no directions; drop it from"
                " model.targets"
            )
        if not fisher:
            return
        median, failed, least = fisher
        if self.mode == "absolute" and self.damping > median:
            warnings.warn(
                f"layer {self.layer}: damping={self.damping:g} exceeds the median {median:.1e} of"
                " output_moment, which makes the output Fisher uniform; init.damping_mode=relative"
                " scales it to the layer",
                stacklevel=4,
            )
        for statistic, singular in (("input_moment", failed > 0), ("output_moment", least <= 0)):
            if singular:
                raise ValueError(
                    f"layer {self.layer}: {statistic} is singular with damping={self.damping:g}"
                    f" ({self.mode}), expected one that can be inverted; raise init.damping or"
                    " init.samples"
                )


def _step(layer: Layer, damping: float, mode: str, *, fisher: bool) -> tuple[Step, Facts]:
    """The step Δ of a layer, with damped Fisher factors, or with the identity in their place; what
    is singular of them too, so that all can be computed before it is refused."""
    G, y = linalg.double(layer.gradient), linalg.double(layer.output_moment)
    facts = Facts(layer.name, damping, mode, [G.abs().max()])
    if not fisher:
        return Step(G, torch.ones_like(y)[:, None], None), facts
    median, relative = y.median(), mode == "relative"
    y = y + (damping * median if relative else damping)
    damped = linalg.double(layer.input_moment)
    if damped is layer.input_moment:
        damped = damped.clone()
    damped.diagonal().add_(damping * damped.diagonal().mean() if relative else damping)
    C, failed = linalg.cholesky_in_place(damped)
    facts.numbers.extend([median, failed.double(), y.min()])
    C = C.masked_fill_(failed > 0, 0.0)
    C.diagonal().add_(failed > 0)
    return Step(G, y.masked_fill(y <= 0, 1.0)[:, None], C), facts


def _guidance(layer: Layer, step: Step, terms: str, beta: float) -> Callable[[Tensor], Tensor]:
    """Products with −Ω, whose leading eigenvectors are those of the smallest eigenvalues of Ω."""
    if terms == "no_bias":  # a multiple of Z⁻¹, whose smallest eigenvalues are the largest of Z
        Z = linalg.double(layer.input_moment)
        return lambda X: Z @ X
    variance = beta * (1 / step.y).sum() / layer.population if terms == "all" else 0.0
    return lambda X: step.bias_minus_variance(X, variance)


def _directions(
    step: Step, guidance: linalg.Krylov, normalised: bool, facts: Facts
) -> tuple[Tensor, Tensor | float]:
    """The eigenvectors (d_in, r) of the r smallest eigenvalues of Ω, and the largest singular value
    of Δ (1 where it is not asked for).

    That is the root of the largest eigenvalue of `Δ Δᵀ`, known to far more digits than its vector,
    and found from the directions of Ω, of which `−Δ Δᵀ` is the larger part, by a few products. On a
    CPU both take as many products as they need. An accelerator, which would have to wait for every
    look, takes a number that is enough for most layers; one look then says whether it was, and
    whether the step was one at all.
    """

    def explained(X: Tensor) -> Tensor:
        return step.bias_minus_variance(X, 0.0)

    def size(of: linalg.Eigenpairs) -> linalg.Krylov:
        return linalg.Krylov(explained, of.vectors, 1, tolerance=1e-6)

    if not is_accelerator(step.G.device):
        facts.check(*numbers(facts.numbers))
        found = guidance.settled(FIRST, part=8)
        own = size(found).settled(THEN, part=8) if normalised else None
        return found.vectors, 1.0 if own is None else own.values[0].sqrt()
    found = guidance.ahead(PRODUCTS)
    length = size(found) if normalised else None
    largest = length.ahead(FEW) if length is not None else None
    excess = [each.excess for each in (found, largest) if each is not None]
    read = numbers([*facts.numbers, *excess])
    count = len(facts.numbers)
    facts.check(*read[:count])
    settled = [value <= 0 for value in read[count:]]
    if not settled[0]:
        found = guidance.settled()
        length = size(found) if normalised else None
    if length is not None and not all(settled):
        largest = length.settled()
    return found.vectors, 1.0 if largest is None else largest.values[0].sqrt()
