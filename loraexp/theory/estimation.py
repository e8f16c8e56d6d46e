"""LoRA-DA's theorems as numbers: the estimation error of a frozen A, against the bound that the
method minimises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loraexp.adapter.layer import Factors, Layer
from loraexp.initializers.lora_da import lora_da
from loraexp.initializers.lora_ga import lora_ga
from loraexp.initializers.lora_one import lora_one
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed
from loraexp.statistics import layer_generator
from loraexp.theory.keywords import keywords
from loraexp.theory.shifts import directions

DRAWS = 50  # training sets that are drawn at once


@dataclass(frozen=True)
class Regression:
    """`y = Δᵀx + ε` with `x ~ N(0, Σ)` (d_1) and independent `ε_i ~ N(0, σ_i²)` (d_2): its Fisher
    matrix is `diag(1/σ²) ⊗ Σ`.

    Δ (d_1, d_2) is `W_tgt − W_0`; its norm is `distance/√N`, the order that the paper assumes.
    """

    moment: Tensor  # Σ
    shift: Tensor  # Δ
    variances: Tensor  # σ² (d_2,)
    samples: int  # N

    @property
    def guidance(self) -> Tensor:
        """`Ω = Σ_i J_[i]⁻¹/N − Δ Δᵀ` (equation 19; 13 where d_2 = 1)."""
        return (
            self.variances.sum() / self.samples * torch.linalg.inv(self.moment)
            - self.shift @ self.shift.mT
        )

    def layer(self, name: str) -> Layer:
        """What exact statistics tell an initializer: `G = −Σ Δ diag(1/σ²)`, `Z = Σ`, `y = 1/σ²`,
        N."""
        return Layer(
            name=name,
            W=torch.zeros_like(self.shift).mT,
            gradient=-(self.moment @ self.shift / self.variances).mT,
            input_moment=self.moment,
            output_moment=1 / self.variances,
            population=self.samples,
        )

    def bound(self, Q: Tensor) -> float:
        """Equation 47 without its o(1/N): `‖Δ‖² + tr(Qᵀ Ω Q)` of an orthonormal A = Q (d_1, r)."""
        return float(self.shift.square().sum() + (Q.mT @ self.guidance @ Q).trace())

    def errors(
        self, bases: dict[str, Tensor], draws: int, generator: torch.Generator
    ) -> dict[str, float]:
        """`E ‖W_0 + A B̂ − W_tgt‖²` with A frozen and B̂ of maximum likelihood, a mean over
        training sets that all A share.
        """
        d_1, d_2 = self.shift.shape
        root = torch.linalg.cholesky(self.moment)
        total = dict.fromkeys(bases, 0.0)
        for first in range(0, draws, DRAWS):
            count = min(DRAWS, draws - first)
            shape = (count, self.samples)
            X = torch.randn(*shape, d_1, generator=generator, dtype=torch.float64) @ root.mT
            noise = (
                torch.randn(*shape, d_2, generator=generator, dtype=torch.float64)
                * self.variances.sqrt()
            )
            gram, cross = X.mT @ X, X.mT @ (X @ self.shift + noise)
            for name, Q in bases.items():
                B = torch.linalg.solve(Q.mT @ gram @ Q, Q.mT @ cross)
                total[name] += float((Q @ B - self.shift).square().sum())
        return {name: value / draws for name, value in total.items()}


@dataclass(frozen=True, kw_only=True)
class Regressions:
    """Inputs whose variances fall as `i^-decay` in random directions, outputs of different noise, a
    Δ of rank r*.
    """

    d_in: int
    true_rank: int
    samples: int
    decay: float
    noise: float
    distance: float

    def draw(self, seed: int, d_out: int) -> Regression:
        d_in = self.d_in
        g = layer_generator(seed, f"{d_in} {d_out}", "estimation")
        U = directions(d_in, d_in, g)
        moment = (U * torch.arange(1, d_in + 1, dtype=torch.float64) ** -self.decay) @ U.mT
        left = torch.randn(d_in, self.true_rank, generator=g, dtype=torch.float64)
        shift = left @ torch.randn(self.true_rank, d_out, generator=g, dtype=torch.float64)
        shift = self.distance / self.samples**0.5 * shift / shift.norm()
        variances = self.noise**2 * (0.5 + torch.rand(d_out, generator=g, dtype=torch.float64))
        return Regression(moment, shift, variances, self.samples)


Arm = Callable[[Layer, torch.Generator], Tensor]


def arms(rank: int) -> dict[str, Arm]:
    """A's input directions (d_in, r), orthonormal, by the initializers that a run has."""

    def span(make: Callable[..., Factors], **options: object) -> Arm:
        def basis(layer: Layer, generator: torch.Generator) -> Tensor:
            factors = make(layer, rank=rank, scaling=1.0, generator=generator, **options)
            return torch.linalg.qr(factors.A.mT).Q

        return basis

    own = partial(span, lora_da, flavour="paper", damping=0.0)
    return {
        "lora_da": own(),
        "no_variance": own(terms="no_variance"),
        "no_bias": own(terms="no_bias"),
        "gradient": own(terms="no_variance_fisher"),
        "lora_one": span(lora_one),
        "lora_ga": span(lora_ga),
        "random": lambda layer, generator: directions(layer.d_in, rank, generator),
    }


def sine(P: Tensor, Q: Tensor) -> float:
    """The sine of the largest principal angle between two spans of orthonormal columns."""
    return float(torch.linalg.matrix_norm(P - Q @ (Q.mT @ P), 2))


@keywords
def frozen_subspaces(
    problems: Regressions,
    outputs: dict[str, int],
    rank: int,
    draws: int,
    seeds: int,
    progress: Progress,
) -> Computed:
    """LoRA-DA's Theorems 1 (d_2 = 1) and 2, and Remark 3: which frozen A estimates the target best.

    On a linear regression, where maximum likelihood and the Fisher matrix are exact and Δ is known.
    `outputs`: d_2 by name. Each A is an initializer's, of exact statistics; `random` is a random
    one. Values, one a problem: `<arm>/error_<name>`: the mean squared error over `draws` training
    sets of N, and `<arm>/bound_<name>`: equation 47, both over ‖Δ‖². `over bound/<arm>_<name>`: the
    error over the bound. `excess bound_<name>`, `excess error_<name>`: the least of any other arm
    less LoRA-DA's, of the means over problems. `remark 3/<lora_one|lora_ga>_<name>`: the sine of
    the largest angle between A without variance and Fisher and theirs.
    """
    made = arms(rank)
    table: dict[str, list[float]] = {}
    for done, (name, d_out) in enumerate(
        (name, d) for name, d in outputs.items() for _ in range(seeds)
    ):
        given = problems.draw(done % seeds, d_out)
        layer = given.layer(f"{name} {done % seeds}")
        possible = {
            arm: make
            for arm, make in made.items()
            if directions_of(arm, rank) <= min(problems.d_in, d_out)
        }
        bases = {arm: make(layer, layer_generator(done, arm)) for arm, make in possible.items()}
        whole = float(given.shift.square().sum())
        errors = given.errors(bases, draws, layer_generator(done, "draws"))
        for arm, Q in bases.items():
            bound = given.bound(Q)
            table.setdefault(f"{arm}/error_{name}", []).append(errors[arm] / whole)
            table.setdefault(f"{arm}/bound_{name}", []).append(bound / whole)
            table.setdefault(f"over bound/{arm}_{name}", []).append(errors[arm] / bound)
        for other in ("lora_one", "lora_ga"):
            if other in bases:
                table.setdefault(f"remark 3/{other}_{name}", []).append(
                    sine(bases["gradient"], bases[other])
                )
        progress(done + 1, len(outputs) * seeds)
    columns = [f"{kind}_{name}" for name in outputs for kind in ("bound", "error")]
    return Computed(values={**table, **{f"excess {x}": excess(table, x) for x in columns}})


def excess(table: Mapping[str, list[float]], column: str) -> float:
    """What the best of the other arms has above LoRA-DA, of the means over problems."""
    means = {k: sum(v) / len(v) for k, v in table.items() if k.endswith(f"/{column}")}
    own = means.pop(f"lora_da/{column}")
    return min(means.values()) - own


def directions_of(arm: str, rank: int) -> int:
    """How many triplets of the gradient an arm takes: those of a gradient with fewer outputs do not
    exist.
    """
    return {"lora_one": rank, "lora_ga": 2 * rank}.get(arm, 1)
