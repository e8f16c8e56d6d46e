"""CG-LoRA's prediction alignment of every initializer, exact and with K-FAC, on a linear and a
two-layer network."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from loraexp import config
from loraexp.adapter.layer import Curvature, Factors, Layer, Training, as_initializer
from loraexp.config import ConfigError
from loraexp.config.settings import CalibrationSettings
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed
from loraexp.statistics import Calibration, collect, layer_generator, weight
from loraexp.theory.keywords import keywords

TARGET = "0"  # the adapted layer: the first linear one of either network
NETWORKS = ("linear", "two_layer")


@dataclass(frozen=True)
class Problem:
    """A network, its rows, and the exact quantities of CG-LoRA's section 4 for its first layer W
    (d_out, d_in).

    `J` (n C, d_out, d_in) is the Jacobian of the outputs, `Z` (n C,) the residuals y − f, `S` and
    `T` the K-FAC factors of Assumption 4.3 (i), `F` the whitened gradient of Definition 4.4 in the
    eigenvectors `U_T`, `U_S`, with eigenvalues `D_T`, `D_S`.
    """

    model: nn.Sequential
    x: Tensor
    y: Tensor
    J: Tensor
    Z: Tensor
    U_S: Tensor
    D_S: Tensor
    U_T: Tensor
    D_T: Tensor

    @property
    def G(self) -> Tensor:
        """The gradient (d_out, d_in) of the sum of `½ ‖y − f(x)‖²`."""
        return -torch.einsum("aoi,a->oi", self.J, self.Z)

    @property
    def F(self) -> Tensor:
        return self.D_T.rsqrt()[:, None] * (self.U_T.mT @ self.G @ self.U_S) * self.D_S.rsqrt()

    def curvature(self) -> Curvature:
        """What the initializer would be told by exact statistics with every eigenvector."""
        return Curvature(
            U_S=self.U_S,
            D_S=self.D_S,
            U_T=self.U_T,
            D_T=self.D_T,
            core=self.U_T.mT @ self.G @ self.U_S,
        )

    def calibration(self) -> Calibration:
        return Calibration(
            batches=[{"x": self.x, "labels": self.y}],
            loss_sum=lambda model, batch: (
                (model(batch["x"]) - batch["labels"]).square().sum() / 2,
                len(batch["x"]),
            ),
            outputs=lambda model, batch: model(batch["x"]),
            population=len(self.x),
        )


@dataclass(frozen=True, kw_only=True)
class Regressions:
    """Rows whose input variances fall as `i^-decay`, answers of the same network with other
    weights, and noise. The two-layer network has `outputs`, the linear one d_out."""

    d_in: int
    d_out: int
    outputs: int
    rows: int
    decay: float
    noise: float

    def check(self, rank: int) -> None:
        """Raises: ConfigError for a rank above half of a side, or too few rows."""
        most = min(self.d_in, self.d_out) // 2
        if not 1 <= rank <= most:
            raise ConfigError(
                f"rank={rank}: expected 1 to {most}, half of the smaller of d_in={self.d_in} and"
                f" d_out={self.d_out}"
            )
        if self.rows < self.d_in:
            raise ConfigError(
                f"rows={self.rows}: expected at least d_in={self.d_in}, or the input curvature is"
                " singular"
            )

    def draw(self, kind: str, seed: int) -> Problem:
        d_in, d_out, rows = self.d_in, self.d_out, self.rows
        g = layer_generator(seed, kind, "prediction alignment")

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        mix = torch.linalg.qr(normal(d_in, d_in)).Q
        falling = torch.arange(1, d_in + 1, dtype=torch.float64) ** (-self.decay / 2)
        x = normal(rows, d_in) * falling @ mix
        first = nn.Linear(d_in, d_out, bias=False, dtype=torch.float64)
        first.weight.data = normal(d_out, d_in) / d_in**0.5
        model = nn.Sequential(first)
        if kind == "two_layer":
            second = nn.Linear(d_out, self.outputs, bias=False, dtype=torch.float64)
            second.weight.data = normal(self.outputs, d_out) / d_out**0.5
            model = nn.Sequential(first, nn.Tanh(), second)
        W = first.weight.detach()

        def predict(W: Tensor) -> Tensor:
            return torch.func.functional_call(model, {f"{TARGET}.weight": W}, (x,))

        y = predict(W + normal(d_out, d_in) / d_in**0.5).detach()
        y = y + self.noise * normal(*y.shape)
        J = torch.func.jacrev(predict)(W).detach()  # (n, C, d_out, d_in)
        Z = (y - predict(W)).detach().flatten()
        # J of one row and output is δ hᵀ: δ = J h / ‖h‖².
        delta = torch.einsum("ncoi,ni->nco", J, x) / x.square().sum(-1)[:, None, None]
        D_S, U_S = torch.linalg.eigh(x.mT @ x / rows)
        D_T, U_T = torch.linalg.eigh(torch.einsum("nco,ncp->op", delta, delta))
        return Problem(model, x, y, J.flatten(0, 1), Z, U_S, D_S, U_T, D_T)


def basis(columns: Tensor) -> Tensor:
    """Orthonormal columns of the same span, without those that are rounding."""
    U, S, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, 1e-10 * S[:1] < S]


def exact_share(given: Problem, factors: Factors | None) -> float:
    """`‖(Π_J − Π_{J_LoRA}) Z‖ / ‖Π_J Z‖` (Corollary 4.2): what of full fine-tuning's change the
    adapter cannot follow."""
    if factors is None:
        return 0.0
    J, (B, A) = given.J, (basis(factors.B), basis(factors.A.mT))
    spans = {
        "A": torch.einsum("aoi,or->ari", J, B),
        "B": torch.einsum("aoi,ir->aor", J, A),
        "R": torch.einsum("aoi,or,is->ars", J, B, A),
    }
    columns = torch.cat([spans[name].flatten(1) for name in sorted(factors.train)], 1)
    whole, reached = (U @ (U.mT @ given.Z) for U in (basis(J.flatten(1)), basis(columns)))
    return float((whole - reached).norm() / whole.norm())


def kfac_share(given: Problem, factors: Factors | None) -> float:
    """The same where `JᵀJ = S ⊗ T` (equation 9): the part of F outside what the trained factors
    reach, over `‖F‖_F`."""
    if factors is None:
        return 0.0
    F = given.F
    reach_B = basis(given.D_T.sqrt()[:, None] * (given.U_T.mT @ factors.B))
    reach_A = basis(given.D_S.sqrt()[:, None] * (given.U_S.mT @ factors.A.mT))
    P_B, P_A = reach_B @ reach_B.mT, reach_A @ reach_A.mT
    if factors.train == {"R"}:
        left = F - P_B @ F @ P_A
    else:
        left = F - P_B @ F if "A" in factors.train else F
        left = left - left @ P_A if "B" in factors.train else left
    return float(left.norm() / F.norm())


# --------------------------------------------------------------------------------------------------
# the initializers


def initializer(arm: str, given: Mapping[str, Any], lr: float) -> dict[str, Any]:
    """The checked node of an initializer: the file of its group, the arm's own values, and what
    follows from a constant rate."""
    name = given.get("init", arm)
    if name not in config.names("init"):
        raise ConfigError(
            f"compute.arms.{arm}: init={name}: there is no such initializer;"
            f" {config.nearest(name, config.names('init'))}"
        )
    calibration = {f.name for f in dataclasses.fields(CalibrationSettings)}
    node = {
        key: value
        for key, value in config.read_yaml("init", name).items()
        if key not in calibration
    }
    node |= {key: value for key, value in given.items() if key not in ("init", "exact")}
    component = config.Component.of(node, "init")
    component.check()
    training = Training(lr=lr, factor=1.0, warmup_ratio=0.0, steps=1, epochs=1.0, rows=1)
    function = as_initializer(component.function)
    return function.settle(node, training)


def factors_of(
    node: Mapping[str, object], given: Problem, rank: int, seed: int, exact: bool
) -> Factors | None:
    """The factors that an initializer makes of the statistics collected from the network, or of
    exact curvature."""
    component = config.Component.of(node, "init")
    made = as_initializer(component.function)
    options = component.keywords
    first = given.model.get_submodule(TARGET)
    targets = {TARGET: first}
    if exact:
        layer = Layer(name=TARGET, W=weight(first, given.x.device), curvature=given.curvature())
    else:
        request = made.request(rank, **options)
        layer = next(
            iter(
                collect(
                    given.model,
                    targets,
                    replace(given.calibration(), seed=seed),
                    made.needs,
                    request,
                    budget=2**30,
                ).layers
            )
        )
    return made(layer, rank=rank, scaling=1.0, generator=layer_generator(seed, TARGET), **options)


@keywords
def prediction_alignment(
    arms: dict[str, dict[str, Any]],
    rank: int,
    problems: Regressions,
    lr: float,
    seeds: int,
    progress: Progress,
) -> Computed:
    """The objective that CG-LoRA minimises, of each initializer (an arm), as a share of full
    fine-tuning's change of the predictions.

    CG-LoRA, equations 6, 9 and 10, and Theorem 5.3. Values `<arm>/<exact|kfac>_<linear|two_layer>`,
    one for each seed: 0 follows full fine-tuning wholly, 1 not at all; `bound_r/…`, `bound_2r/…`:
    `(Σ_{i>r} s_i²(F))^{1/2}` and `(Σ_{i>2r} s_i²(F))^{1/2}` over `‖F‖_F`. K-FAC is exact on the
    linear network `f(x) = W x`, and an approximation on the two-layer one, `V tanh(W x)`. An arm
    names `init` (its own name if it does not) and hyper-parameters; `exact: true` gives CG-LoRA
    exact curvature in place of the collected one. `theorem/<arm>/…`: the largest distance from
    Theorem 5.3 or the bound (10) over seeds, for arms with exact curvature; `lowest/…`: the least
    of what any arm that trains A and B lies above the bound (10); `kfac error`: the largest
    difference of the two objectives on the linear network. `spectrum/<lower|upper>_<where>`: the
    bounds (11) on the singular values of F: the largest lower bound over its singular value, and
    the largest singular value over its upper bound, with the spectrum of `JᵀJ` of K-FAC, or of the
    exact J.
    """
    problems.check(rank)
    arms = {arm: own or {} for arm, own in arms.items()}
    nodes = {arm: initializer(arm, own, lr) for arm, own in arms.items()}
    table: dict[str, list[float]] = defaultdict(list)
    trained: set[str] = set()
    for done, (kind, seed) in enumerate(itertools.product(NETWORKS, range(seeds))):
        given = problems.draw(kind, seed)
        for name, value in bounds(given, kind, rank).items():
            table[name].append(value)
        for place, (arm, node) in enumerate(nodes.items(), 1):
            factors = factors_of(node, given, rank, seed, bool(arms[arm].get("exact")))
            if factors is not None and factors.train == {"A", "B"}:
                trained.add(arm)
            table[f"{arm}/exact_{kind}"].append(exact_share(given, factors))
            table[f"{arm}/kfac_{kind}"].append(kfac_share(given, factors))
            progress(done * len(arms) + place, len(NETWORKS) * seeds * len(arms))
    return Computed(values={**table, **gaps(table, arms, trained)})


def bounds(given: Problem, kind: str, rank: int) -> dict[str, float]:
    """The bounds (11) on the spectrum of F, and (10) on the objective at rank r and 2r."""
    found, spectrum = bounds_of_spectrum(given, kind), torch.linalg.svdvals(given.F)
    for name, count in (("bound_r", rank), ("bound_2r", 2 * rank)):
        found[f"{name}/kfac_{kind}"] = float(spectrum[count:].norm() / spectrum.norm())
        if kind == "linear":  # where K-FAC is exact
            found[f"{name}/exact_{kind}"] = found[f"{name}/kfac_{kind}"]
    return found


def bounds_of_spectrum(given: Problem, kind: str) -> dict[str, float]:
    """`s_i(G)/√s_1(JᵀJ) ≤ s_i(F) ≤ s_i(G)/√s⁺_min(JᵀJ)` (11): lower over s_i(F), and s_i(F) over
    upper, the largest i of each."""
    count = min(given.F.shape)
    s_F, s_G = torch.linalg.svdvals(given.F)[:count], torch.linalg.svdvals(given.G)[:count]
    kept = s_G > 1e-10 * s_G[0]
    exact = torch.linalg.svdvals(given.J.flatten(1)).square()
    products = given.D_S.clamp_min(0)[:, None] * given.D_T.clamp_min(0)
    found = {}
    for name, eigenvalues in (("kfac", products.flatten()), ("exact", exact)):
        most, least = eigenvalues.max(), eigenvalues[eigenvalues > 1e-10 * eigenvalues.max()].min()
        found[f"spectrum/lower_{name}_{kind}"] = float((s_G / most.sqrt() / s_F)[kept].max())
        found[f"spectrum/upper_{name}_{kind}"] = float((s_F / (s_G / least.sqrt()))[kept].max())
    return found


def gaps(
    values: Mapping[str, list[float]], arms: Mapping[str, Mapping[str, object]], trained: set[str]
) -> dict[str, float]:
    """How far the objectives are from what Theorem 5.3, the bound (10) and K-FAC's exactness
    say."""
    found = {}

    def distances(arm: str, bound: str, column: str) -> list[float]:
        return [
            a - b
            for a, b in zip(values[f"{arm}/{column}"], values[f"{bound}/{column}"], strict=True)
        ]

    for column in ("exact_linear", "kfac_linear", "kfac_two_layer"):
        for arm, given in arms.items():
            if given.get("exact"):
                bound = "bound_2r" if given.get("modes") == "disjoint" else "bound_r"
                found[f"theorem/{arm}/{column}"] = max(
                    abs(x) for x in distances(arm, bound, column)
                )
        found[f"lowest/{column}"] = min(
            x for arm in trained for x in distances(arm, "bound_2r", column)
        )
    pairs = [(values[f"{arm}/exact_linear"], values[f"{arm}/kfac_linear"]) for arm in arms]
    found["kfac error"] = max(
        abs(a - b) for exact, kfac in pairs for a, b in zip(exact, kfac, strict=True)
    )
    return found
