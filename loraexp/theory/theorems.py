"""The theorems of LoRA-One as numbers: what they bound, measured against the bound (3.3, C.17,
C.21, 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Values
from loraexp.statistics import layer_generator
from loraexp.theory import linear, shifts
from loraexp.theory.bands import band
from loraexp.theory.keywords import keywords
from loraexp.theory.linear import Batch, descend, first_step, logs, thin_norms
from loraexp.theory.starts import spectral

# a bound below this, relative to λ_r*, is compared with nothing: float64 ends there
ROUNDING = 1e-11
CLOSE = 1e-6  # the error, relative to λ_r*, that steps are counted to


def spectrum(rank: int, kappa: float) -> list[float]:
    """r* singular values from 1 down to 1/κ, each the same share of the one before."""
    return [kappa ** (-i / max(rank - 1, 1)) for i in range(rank)]


def concentrated(d: int, epsilon: float) -> Callable[[torch.Generator], Tensor]:
    """A second moment with `‖Σ − I‖_op = ε` exactly: the event that the theorems hold on, without
    the N that makes it likely."""

    def gram(generator: torch.Generator) -> Tensor:
        Q = shifts.directions(d, d, generator)
        return (
            torch.eye(d, dtype=torch.float64)
            + epsilon * (Q * torch.linspace(-1, 1, d, dtype=torch.float64)) @ Q.mT
        )

    return gram


def frobenius_error(batch: Batch) -> Tensor:
    """`‖A_t B_t − Δ‖_F`."""
    return thin_norms(*batch.error())


def worst(errors: Tensor, bounds: Tensor) -> list[float]:
    """The largest error over its bound, by seed, where the bound (steps,) is above rounding; errors
    (steps, seeds)."""
    kept = bounds > ROUNDING
    return (errors[kept] / bounds[kept, None]).amax(0).tolist()


def contraction(errors: Tensor, floor: float) -> list[float]:
    """The mean factor per step, by seed, until the error is below `floor`."""
    rates = []
    for error in errors.mT:
        last = max(int((error > floor).sum()) - 1, 1)
        rates.append(float((error[last] / error[0]) ** (1 / last)))
    return rates


@dataclass(frozen=True)
class Setting:
    """What the theorems on the linear task share: Δ of rank r* with `λ_1 = 1`, `λ_r* = 1/κ`, learnt
    at rank r in d x d."""

    d: int
    rank: int
    true_rank: int
    seeds: int

    def batch(self, kappa: float, epsilon: float) -> Batch:
        given = shifts.tasks(
            self.seeds,
            self.d,
            self.d,
            spectrum(self.true_rank, kappa),
            1,
            gram=concentrated(self.d, epsilon),
        )
        return Batch(given, {"spectral": partial(spectral, rank=self.rank)}, self.rank)

    def errors(
        self,
        rule: str,
        kappa: float,
        bounds: tuple[float, float],
        steps: int,
        progress: Callable[[int], None],
    ) -> Tensor:
        """`‖A_t B_t − Δ‖_F` (steps, seeds) in units of λ_r*, with ε and η of `bounds`."""
        epsilon, lr = bounds
        batch = self.batch(kappa, epsilon)
        trace = descend(batch, rule, lr, steps, {"error": frobenius_error}, progress=progress)
        return trace["error"] * kappa


def theorem_3_3(setting: Setting, kappas: Sequence[float], rows: int) -> Values:
    """`‖A0 B0 − Δ‖_op ≤ ε ‖Δ‖_op` with the ε of N sampled rows, and `≤ λ_r*/2` where `ε =
    1/(2κ)`."""
    d, true_rank, seeds = setting.d, setting.true_rank, setting.seeds
    values: Values = {}
    for kappa in kappas:
        given = shifts.tasks(seeds, d, d, spectrum(true_rank, kappa), rows)
        epsilon = torch.linalg.matrix_norm(given.gram - torch.eye(d, dtype=torch.float64), 2)
        error = linear.operator_error(
            Batch(given, {"spectral": partial(spectral, rank=true_rank)}, true_rank)
        )
        values[f"3.3/error over ε/κ {kappa:g}"] = (error / epsilon).tolist()
        at_half = replace(setting, rank=true_rank).batch(kappa, 1 / (2 * kappa))
        half = linear.operator_error(at_half)
        values[f"3.3/error over half λ/κ {kappa:g}"] = (half / (0.5 / kappa)).tolist()
    return values


def bounds_c17(kappa: float) -> tuple[float, float]:
    """The largest ε and η that Theorem C.17 allows (λ_1 = 1)."""
    smallest = 1 / kappa
    epsilon = min(1 / (2 * kappa), smallest / (32 * kappa * (32 + 128 * kappa**2)))
    return epsilon, min(1 / (128 * kappa), (1 - epsilon / kappa) / 1152)


def bounds_c21(kappa: float, true_rank: int) -> tuple[float, float]:
    """The largest ε that Theorem C.21 allows short of leaving no step, and η just inside its
    interval."""
    epsilon = min(1 / (2 * true_rank**0.5 * kappa), 0.125)  # at 1/4 the interval of η is empty
    return epsilon, 0.99 * (0.5 - 2 * epsilon) / (1 + epsilon) ** 2


@keywords
def linear_rates(
    setting: Setting,
    kappas: list[float],
    rows: int,
    steps: int,
    rate: float,
    progress: Progress,
) -> Computed:
    """Theorems 3.3, C.17 and C.21: errors over their bounds, and how the steps that are needed
    depend on κ.

    Values by κ: `C.17/worst/…`, `C.21/worst/…`: the largest error over its bound, with ε and η at
    the theorem's own limits (1 or less: it holds); `C.17/factor/…`, `C.21/factor/…` and
    `…/bound/…`: the contraction per step, measured and proven; `steps/gd/…`, `steps/prec_gd/…`:
    until the error is 1e-6 λ_r*, both at η = `rate` and ε = 0.01/κ, and `steps/<rule>/growth`: at
    the largest κ over the smallest. Values of Theorem 3.3 as `theorem_3_3` names them.
    """
    values = theorem_3_3(setting, kappas, rows)
    curves = []
    total = 4 * len(kappas) * steps
    for i, kappa in enumerate(kappas):
        part = [linear.share(progress, (4 * i + j) * steps, total) for j in range(4)]
        values |= convergence(setting, kappa, steps, part[:2])
        for (rule, label), progressed in zip(PLAIN_AND_PRECONDITIONED, part[2:], strict=True):
            errors = setting.errors(rule, kappa, (0.01 / kappa, rate), steps, progressed)
            curves.append(band(label, f"κ = {kappa:g}", range(len(errors)), logs(errors)))
            until = first_step(range(len(errors)), errors <= CLOSE).clamp_max(steps)
            values[f"steps/{rule}/κ {kappa:g}"] = until.tolist()
    for rule, _ in PLAIN_AND_PRECONDITIONED:
        most, least = (
            torch.tensor(values[f"steps/{rule}/κ {kappa:g}"]).mean()
            for kappa in (kappas[-1], kappas[0])
        )
        values[f"steps/{rule}/growth"] = float(most / least)
    axes = {
        label: {"x": "step", "y": "log10 of ‖BA − Δ‖_F / λ_r*"}
        for _, label in PLAIN_AND_PRECONDITIONED
    }
    return Computed(values=values, curves=curves, axes=axes)


PLAIN_AND_PRECONDITIONED = (("gd", "gradient descent"), ("prec_gd", "preconditioned"))


def convergence(
    setting: Setting, kappa: float, steps: int, progress: Sequence[Callable[[int], None]]
) -> Values:
    """Theorems C.17 and C.21 at their own limits of ε and η: errors over bounds, and contractions.

    C.17: `√(2r*) (1 − η/(64κ²))^t λ_r*`; C.21: `½ (1 − η/2)^t λ_r*`.
    """
    at = torch.arange(steps + 1, dtype=torch.float64)
    plain, preconditioned = bounds_c17(kappa), bounds_c21(kappa, setting.true_rank)
    values: Values = {}
    for theorem, rule, bounds, first, factor, progressed in (
        (
            "C.17",
            "gd",
            plain,
            (2 * setting.true_rank) ** 0.5,
            1 - plain[1] / (64 * kappa**2),
            progress[0],
        ),
        ("C.21", "prec_gd", preconditioned, 0.5, 1 - preconditioned[1] / 2, progress[1]),
    ):
        errors = setting.errors(rule, kappa, bounds, steps, progressed)
        values[f"{theorem}/worst/κ {kappa:g}"] = worst(errors, first * factor**at)
        values[f"{theorem}/factor/κ {kappa:g}"] = contraction(errors, ROUNDING)
        values[f"{theorem}/bound/κ {kappa:g}"] = factor
    return values


# --------------------------------------------------------------------------------------------------
# Theorem 4.2


@dataclass(frozen=True)
class ReluTasks(shifts.Tasks):
    """`y = σ((W0 + Δ) x)` of standard normal inputs `X` (n, N, d): one layer with ReLU outputs
    (LoRA-One, section 4)."""

    X: Tensor
    Y: Tensor  # (n, N, k)
    # the slides' GLM-tron direction, without the derivative σ' of the activation
    surrogate: bool = False

    @property
    def gradient(self) -> Tensor:
        return self.at(self.W)

    def at(self, W: Tensor) -> Tensor:
        """`∇_W 1/(2N) ‖σ(X Wᵀ) − Y‖²` (n, k, d), the negative of the paper's J_W: its sum over
        pieces of the rows.

        With `surrogate` the slides' `−J_W^GLM = (1/N)(σ(X Wᵀ) − Y)ᵀ X`, whose mean is `½ (W − W0 −
        Δ)`.
        """
        total = torch.zeros_like(W)
        for X, Y in zip(self.X.split(shifts.ROWS, 1), self.Y.split(shifts.ROWS, 1), strict=True):
            ours = X @ W.mT
            error = ours.clamp_min(0) - Y
            total += (error if self.surrogate else error * (ours > 0)).mT @ X
        return total / self.rows


class ReluBatch(Batch):
    given: ReluTasks

    def gradients(self) -> dict[str, Tensor]:
        left, A = self.product()
        J = self.given.at(self.given.W + left @ A)
        return {"A": left.mT @ J, "B": self.scaling * J @ A.mT}


@dataclass(frozen=True, kw_only=True)
class ReluSetting:
    """The ReLU layer in d x d with N `rows`; the rows of W0 have length `signal · κ r*` (Assumption
    4.1 ii)."""

    d: int
    true_rank: int
    kappas: list[float]
    rows: int
    signal: float
    seeds: int

    def tasks(self) -> ReluTasks:
        """A task for each seed and κ on the same inputs."""
        d, true_rank = self.d, self.true_rank
        made = []
        for seed in range(self.seeds):
            generator = layer_generator(seed, f"{d} {self.rows}", "relu task")
            X = torch.randn(self.rows, d, generator=generator, dtype=torch.float64)
            U = shifts.directions(d, true_rank, generator)
            V = shifts.directions(d, true_rank, generator)
            W = torch.randn(d, d, generator=generator, dtype=torch.float64)
            W = torch.nn.functional.normalize(W, dim=1)
            for kappa in self.kappas:
                S = torch.tensor(spectrum(true_rank, kappa), dtype=torch.float64)
                made.append((self.signal * kappa * true_rank * W, U * S, V.mT, X))
        W, left, right, X = (torch.stack(parts) for parts in zip(*made, strict=True))
        Y = (X @ (W + left @ right).mT).clamp_min(0)
        gram = torch.eye(d, dtype=torch.float64).expand(len(W), d, d)
        return ReluTasks(W, left, right, gram, self.rows, X=X, Y=Y)


@keywords
def relu_rates(setting: ReluSetting, lr: float, steps: int, progress: Progress) -> Computed:
    """Theorem 4.2: preconditioned gradient descent on a ReLU layer, from the spectral start with γ
    = 2, at rank r = r*.

    Values by κ: `4.2/ρ/…`: `‖A0 B0 − Δ‖_F / λ_r*`, which the theorem wants at most 1/20;
    `4.2/worst/…`: the largest `‖A_t B_t − Δ‖_F` after the start over `(1 − η/4)^t ‖A0 B0 − Δ‖_F`;
    `4.2/factor/…`: the contraction per step. `4.2/bound`: `1 − η/4`, and `4.2/spread`: the largest
    factor less the smallest over κ. `GLM/…`: the same of the slides' direction, that of GLM-tron,
    which leaves the derivative of the activation out; `…/worst over λ/…`: the largest error over
    `(1 − η/4)^t λ_r*(Δ)`, as they print it.
    """
    plain, kappas, true_rank = setting.tasks(), setting.kappas, setting.true_rank
    values: Values = {}
    curves = []
    for i, (name, panel) in enumerate({"4.2": RELU, "GLM": GLM}.items()):
        given = replace(plain, surrogate=name == "GLM")
        batch = ReluBatch(
            given, {"spectral": partial(spectral, rank=true_rank, gamma=2.0)}, true_rank
        )
        part = linear.share(progress, i * steps, 2 * steps)
        trace = descend(batch, "prec_gd", lr, steps, {"error": frobenius_error}, progress=part)
        # (steps, seeds, κ), in λ_r*
        errors = linear.by_seed(trace["error"], len(kappas)) * torch.tensor(
            kappas, dtype=torch.float64
        )
        values |= rates_of(name, errors, kappas, lr)
        curves += [
            band(panel, f"κ = {kappa:g}", trace.steps, logs(errors[..., j]))
            for j, kappa in enumerate(kappas)
        ]
    axes = {panel: {"x": "step", "y": "log10 of ‖BA − Δ‖_F / λ_r*"} for panel in (RELU, GLM)}
    return Computed(values=values, curves=curves, axes=axes)


RELU, GLM = "ReLU layer, preconditioned", "ReLU layer, GLM-tron, preconditioned"


def rates_of(name: str, errors: Tensor, kappas: Sequence[float], lr: float) -> Values:
    """The values of one direction, from errors (steps, seeds, κ) in units of λ_r*."""
    at = torch.arange(len(errors), dtype=torch.float64)[:, None]
    values: Values = {f"{name}/bound": 1 - lr / 4}
    factors = []
    for j, kappa in enumerate(kappas):
        error = errors[..., j]
        bound = (1 - lr / 4) ** at * error[0]
        kept = error[1:] > ROUNDING
        values[f"{name}/ρ/κ {kappa:g}"] = error[0].tolist()
        values[f"{name}/worst/κ {kappa:g}"] = (
            torch.where(kept, error[1:] / bound[1:], 0.0).amax(0).tolist()
        )
        values[f"{name}/worst over λ/κ {kappa:g}"] = (
            torch.where(kept, error[1:] / (1 - lr / 4) ** at[1:], 0.0).amax(0).tolist()
        )
        values[f"{name}/factor/κ {kappa:g}"] = rates = contraction(error, ROUNDING)
        factors.append(sum(rates) / len(rates))
    values[f"{name}/spread"] = max(factors) - min(factors)
    return values
