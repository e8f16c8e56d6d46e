"""CG-LoRA and LoRA-DA against their slow transcriptions, and CG-LoRA's objective where K-FAC is
exact."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from loraexp.adapter import linalg
from loraexp.adapter.layer import Curvature, CurvatureRequest, Factors, Layer, MissingStatistic
from loraexp.initializers.cg_lora import cg_lora, request
from loraexp.initializers.lora_da import lora_da
from loraexp.initializers.lora_da_fa import lora_da_fa
from tests.reference import curvature as reference

SEEDS = range(5)
RANK, GAMMA = 2, 16.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def close(x: Tensor, y: Tensor, tolerance: float = 1e-9) -> bool:
    """Equal to `tolerance` in the Frobenius norm, relative to the second."""
    return bool((x.double() - y.double()).norm() <= tolerance * y.double().norm())


def row_space(A: Tensor) -> Tensor:
    """The orthogonal projector on the span of the rows of A."""
    Q = torch.linalg.qr(A.double().mT).Q
    return Q @ Q.mT


class Linear:
    """`f(x) = V W x` with squared loss, on which K-FAC is exact: inputs X (d_in, n), residuals (C,
    n), S, T, G."""

    def __init__(self, seed: int, d_in: int = 7, d_out: int = 6, C: int = 6, n: int = 12) -> None:
        self.V, self.X = normal(C, d_out, seed=seed), normal(d_in, n, seed=100 + seed)
        self.W = normal(d_out, d_in, seed=200 + seed)
        self.S = self.X @ self.X.T / n
        self.T = n * self.V.T @ self.V
        self.learn(normal(C, n, seed=300 + seed))

    def learn(self, residual: Tensor) -> None:
        self.residual = residual
        self.G = -self.V.T @ residual @ self.X.T  # of the sum of ½‖y − f(x)‖²

    def layer(self, m_S: int | None = None, m_T: int | None = None, **more: Any) -> Layer:
        return layer_of(self.S, self.T, self.G, self.W, m_S, m_T, **more)

    def objective(self, factors: Factors) -> float:
        A, B = factors.A.double(), factors.B.double()
        return float(reference.prediction_alignment(self.V, self.X, self.residual, A, B))

    def bound(self, after: int) -> float:
        """`(Σ_{i > after} s_i²(F))^{1/2}`."""
        U_S, D_S = reference.eigenvectors(self.S, int(torch.linalg.matrix_rank(self.S)))
        U_T, D_T = reference.eigenvectors(self.T, int(torch.linalg.matrix_rank(self.T)))
        return float(
            torch.linalg.svdvals(reference.whitened_gradient(U_S, D_S, U_T, D_T, self.G))[
                after:
            ].norm()
        )


def layer_of(
    S: Tensor,
    T: Tensor,
    G: Tensor,
    W: Tensor,
    m_S: int | None = None,
    m_T: int | None = None,
    **more: Any,
) -> Layer:
    U_S, D_S = reference.eigenvectors(S, m_S or len(S))
    U_T, D_T = reference.eigenvectors(T, m_T or len(T))
    curvature = Curvature(U_S=U_S, D_S=D_S, U_T=U_T, D_T=D_T, core=U_T.T @ G @ U_S, **more)
    return Layer(name="encoder.query", W=W, curvature=curvature)


def initialise(layer: Layer, rank: int = RANK, **keywords: Any) -> Factors:
    return cg_lora(
        layer, rank=rank, scaling=4.0, generator=generator(), **{"gamma": GAMMA, **keywords}
    )


# ---- CG-LoRA: the objective, literally


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("C", [6, 9])
def test_cg_lora_leaves_the_modes_beyond_r_unaligned(seed: int, C: int) -> None:
    problem = Linear(seed, C=C)
    assert problem.objective(initialise(problem.layer())) == pytest.approx(
        problem.bound(RANK), rel=1e-7
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_disjoint_modes_reach_the_lower_bound(seed: int) -> None:
    problem = Linear(seed)
    factors = initialise(problem.layer(), modes="disjoint")
    assert problem.objective(factors) == pytest.approx(problem.bound(2 * RANK), rel=1e-7)
    assert problem.bound(2 * RANK) < 0.9 * problem.bound(RANK)
    for factor in (factors.A, factors.B.mT):  # rows orthogonal, of the length that γ says
        assert close(factor @ factor.mT, (6**0.25 / GAMMA) ** 2 * torch.eye(RANK).double())
    assert abs((factors.product() * problem.G).sum()) < 1e-9 * problem.G.norm()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_factors_align_worse(seed: int) -> None:
    """On a problem whose F has the singular values 1, 0.4, 0.4²…; where they are all alike, none of
    them lead."""
    problem = Linear(seed)
    P, Q = torch.linalg.qr(problem.V).Q, torch.linalg.qr(problem.X.T).Q
    problem.learn(P * 0.4 ** torch.arange(6) @ Q[:, :6].T)
    leading = problem.objective(initialise(problem.layer()))
    disjoint = problem.objective(initialise(problem.layer(), modes="disjoint"))
    assert (leading, disjoint) == pytest.approx(
        (problem.bound(RANK), problem.bound(2 * RANK)), rel=1e-7
    )
    for draw in range(5):
        A, B = (
            normal(RANK, 7, seed=1000 + 10 * seed + draw),
            normal(6, RANK, seed=2000 + 10 * seed + draw),
        )
        assert problem.objective(Factors(A=A, B=B, start="shifted")) > 1.2 * leading > 2 * disjoint


# ---- CG-LoRA: the algorithm


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m", [RANK, 2 * RANK, None])
def test_cg_lora_is_algorithm_2(seed: int, m: int | None) -> None:
    problem = Linear(seed)
    layer = problem.layer(m, m)
    seen = layer.curvature
    A, B = reference.cg_lora(seen.U_S, seen.D_S, seen.U_T, seen.D_T, problem.G, RANK, GAMMA)
    factors = initialise(layer)
    assert close(factors.product(), B @ A)
    assert close(row_space(factors.A), row_space(A)) and close(
        row_space(factors.B.mT), row_space(B.mT)
    )
    assert (factors.start, factors.train) == ("pretrained", {"A", "B"})
    assert initialise(layer, start="shifted").start == "shifted"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sides_may_have_different_widths(seed: int) -> None:
    problem = Linear(seed)
    layer = problem.layer(m_S=5, m_T=3)
    seen = layer.curvature
    A, B = reference.cg_lora(seen.U_S, seen.D_S, seen.U_T, seen.D_T, problem.G, RANK, GAMMA)
    assert close(initialise(layer).product(), B @ A)


@pytest.mark.parametrize("seed", SEEDS)
def test_float32_statistics_give_the_same_product(seed: int) -> None:
    problem = Linear(seed)
    exact = problem.layer()
    seen = exact.curvature
    single = Curvature(
        *(getattr(seen, name).float() for name in ("U_S", "D_S", "U_T", "D_T", "core"))
    )
    for dtype in (torch.float32, torch.bfloat16):
        factors = initialise(Layer(name="encoder.query", W=problem.W.to(dtype), curvature=single))
        assert factors.A.dtype == factors.B.dtype == torch.float32
        assert close(factors.product(), initialise(exact).product(), 1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_m_equal_to_r_everything_but_the_subspaces_cancels(seed: int) -> None:
    problem = Linear(seed)
    U_S = torch.linalg.qr(normal(7, RANK, seed=seed + 50)).Q  # any bases, as a sketch gives them
    U_T = torch.linalg.qr(normal(6, RANK, seed=seed + 60)).Q
    curvature = Curvature(
        U_S, torch.tensor([3.0, 0.1]), U_T, torch.tensor([0.5, 0.2]), U_T.T @ problem.G @ U_S
    )
    product = initialise(Layer(name="x", W=problem.W, curvature=curvature)).product()
    projected = -U_T @ U_T.T @ problem.G @ U_S @ U_S.T
    assert close(product / product.norm(), projected / projected.norm())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m", [RANK, None])
def test_spectral_norms_and_descent(seed: int, m: int | None) -> None:
    problem = Linear(seed)
    factors = initialise(problem.layer(m, m), gamma=8.0)
    for factor in (factors.A, factors.B):
        assert float(torch.linalg.matrix_norm(factor, 2)) == pytest.approx(6**0.25 / 8.0, rel=1e-10)
    assert (
        factors.product() * problem.G
    ).sum() < -1e-3 * problem.G.norm() * factors.product().norm()


def test_scales_of_inputs_outputs_and_gradient_do_not_matter() -> None:
    problem = Linear(0)
    expected = initialise(problem.layer()).product()
    for h, delta, g in ((1e3, 1.0, 1.0), (1.0, 1e-4, 1.0), (1.0, 1.0, 1e-6), (1e-3, 1e2, 1e5)):
        scaled = layer_of(h**2 * problem.S, delta**2 * problem.T, g * problem.G, problem.W)
        assert close(initialise(scaled).product(), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_damping_is_relative_to_the_traces(seed: int) -> None:
    problem = Linear(seed)
    unit_S, unit_T = float(problem.S.trace()) / 7, float(problem.T.trace()) / 6
    layer = problem.layer(damping_S=unit_S, damping_T=unit_T)
    seen = layer.curvature
    A, B = reference.cg_lora(
        seen.U_S, seen.D_S + 0.3 * unit_S, seen.U_T, seen.D_T + 0.3 * unit_T, problem.G, RANK, GAMMA
    )
    assert close(initialise(layer, damping=0.3).product(), B @ A)
    assert not close(initialise(layer).product(), B @ A, 1e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("side", ["S", "T"])
def test_a_rank_above_that_of_the_curvature_leaves_zero_columns_and_warns(
    seed: int, side: str
) -> None:
    problem = Linear(seed, d_in=5, n=3) if side == "S" else Linear(seed, C=3)
    with pytest.warns(
        UserWarning, match=r"layer encoder\.query: rank=5.*share 3 modes.*lower rank.*init\.samples"
    ):
        factors = initialise(problem.layer(), rank=5)
    assert factors.A.shape[0] == factors.B.shape[1] == 5
    for lengths in (factors.A.norm(dim=1), factors.B.norm(dim=0)):
        assert (lengths[:3] > 1e-6).all() and (lengths[3:] == 0).all()
    assert problem.objective(factors) < 1e-6 * problem.residual.norm()  # Proposition 4.5 ii


def test_no_warning_where_the_modes_suffice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialise(Linear(0).layer(), rank=6)


def test_a_gradient_of_low_rank_leaves_zero_columns() -> None:
    problem = Linear(0)
    U, D, Vh = torch.linalg.svd(problem.G)
    G = U[:, :1] * D[:1] @ Vh[:1]
    with pytest.warns(UserWarning, match="share 1 modes"):
        factors = initialise(layer_of(problem.S, problem.T, G, problem.W))
    assert (factors.A[1] == 0).all() and (factors.B[:, 1] == 0).all()
    assert factors.product().isfinite().all() and (factors.product() * G).sum() < 0


# ---- CG-LoRA: cross entropy


def classification(seed: int, C: int) -> tuple[Tensor, Tensor, Tensor]:
    """S, centred T̃ and Θ of a classifier with C outputs (C = 1: one logit), as assumptions A.2 and
    A.9 define them."""
    n, d_in, d_out = 30, 7, 6
    H = normal(d_in, n, seed=seed)
    T, Theta = torch.zeros(d_out, d_out).double(), torch.zeros(d_out, d_out).double()
    gauge = torch.linalg.svd(torch.ones(1, C).double()).Vh[1:].T  # Ψ (C, C−1): ΨᵀΨ = I, Ψᵀ1 = 0
    for i in range(n):
        delta, logits = (
            normal(d_out, C, seed=1000 * seed + i),
            2 * normal(C, seed=5000 + 1000 * seed + i),
        )
        if C == 1:
            p = logits.sigmoid()
            T += delta @ delta.T
            Theta += p * (1 - p) * delta @ delta.T
        else:
            p = logits.softmax(0)
            T += delta @ gauge @ gauge.T @ delta.T
            Theta += delta @ (torch.diag(p) - torch.outer(p, p)) @ delta.T
    return H @ H.T / n, T, Theta


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("C", [1, 2, 4])
def test_the_cross_entropy_version_is_appendix_a(seed: int, C: int) -> None:
    S, T, Theta = classification(seed, C)
    G, W = normal(6, 7, seed=seed + 70), normal(6, 7, seed=seed + 80)
    U_T, _ = reference.eigenvectors(T, 6)
    layer = layer_of(S, T, G, W, theta=U_T.T @ Theta @ U_T)
    seen = layer.curvature
    A, B = reference.cg_lora(seen.U_S, seen.D_S, seen.U_T, seen.D_T, G, RANK, GAMMA, Theta)
    factors = initialise(layer, curvature="cross_entropy")
    assert close(factors.product(), B @ A)
    assert close(row_space(factors.B.mT), row_space(B.mT))
    assert not close(initialise(layer).product(), B @ A, 1e-3)  # squared: theta is not read


def test_a_loss_curvature_like_the_output_curvature_changes_nothing() -> None:
    problem = Linear(1)
    _, D_T = reference.eigenvectors(problem.T, 6)
    layer = problem.layer(theta=0.21 * torch.diag(D_T))
    assert close(
        initialise(layer, curvature="cross_entropy").product(), initialise(layer).product()
    )


# ---- CG-LoRA: what it asks for, and errors


@pytest.mark.parametrize(("basis", "m"), [("r", 8), ("2r", 16), ("4r", 32), ("full", None)])
def test_the_request_says_what_the_statistics_collect(basis: str, m: int | None) -> None:
    assert cg_lora.needs == {"curvature"} and cg_lora.request is request
    asked = request(
        8, basis=basis, iterations=3, bases="exact", probes=2, curvature="cross_entropy", gamma=16.0
    )
    assert asked == {
        "curvature": CurvatureRequest(
            m=m, iterations=3, bases="exact", probes=2, loss="cross_entropy"
        )
    }


def test_the_request_defaults_are_the_initializers() -> None:
    ours, asked = inspect.signature(cg_lora).parameters, inspect.signature(request).parameters
    shared = set(ours) & set(asked) - {"rank"}
    assert shared == {"basis", "iterations", "bases", "probes", "curvature", "modes"}
    assert all(ours[name].default == asked[name].default for name in shared)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"basis": "3r"}, "basis='3r': expected r, 2r, 4r or full"),
        ({"bases": "dense"}, "bases='dense': expected sketched or exact"),
        ({"curvature": "hinge"}, "curvature='hinge': expected squared or cross_entropy"),
        ({"modes": "all"}, "modes='all': expected leading or disjoint"),
        ({"probes": 0}, "probes=0: expected a number greater than 0"),
        ({"iterations": 0}, "iterations=0: expected a number greater than 0"),
        (
            {"modes": "disjoint"},
            (
                "cg_lora: basis=r holds r modes and modes=disjoint takes 2r; set init.basis=2r, 4r"
                " or full"
            ),
        ),
    ],
)
def test_requests_that_cannot_be_met_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        request(8, **keywords)
    assert str(error.value) == message


def test_cg_lora_errors_name_layer_value_and_remedy() -> None:
    problem = Linear(0)
    layer = problem.layer()

    def refused(match: str, of: Layer = layer, **keywords: Any) -> None:
        with pytest.raises(ValueError, match=match) as error:
            initialise(of, **keywords)
        assert "\n" not in str(error.value)

    refused("curvature='hinge': expected squared or cross_entropy", curvature="hinge")
    refused("modes='all': expected leading or disjoint", modes="all")
    refused("gamma=0: expected a number greater than 0", gamma=0)
    refused("damping=-1, expected a number of at least 0", damping=-1)
    refused(
        r"encoder\.query: curvature=cross_entropy .* no theta.*init\.curvature=squared",
        curvature="cross_entropy",
    )
    refused(r"encoder\.query: damping=0\.1 .* no damping_S.*init\.damping=0", damping=0.1)
    refused(
        r"takes 2 x rank = 8 modes and the curvature holds 6; lower rank", rank=4, modes="disjoint"
    )
    refused(
        r"encoder\.query: its gradient is zero",
        layer_of(problem.S, problem.T, 0 * problem.G, problem.W),
    )
    refused(r"curvature factor T is zero", layer_of(problem.S, 0 * problem.T, problem.G, problem.W))
    with pytest.raises(MissingStatistic, match=r"layer x has no curvature .*@needs"):
        initialise(Layer(name="x", W=problem.W))


# ---- LoRA-DA


N = 5000
UNDAMPED: dict[str, Any] = {"damping": 0.0}


def fisher_layer(
    seed: int,
    d_out: int = 16,
    d_in: int = 24,
    tokens: int = 400,
    dtype: torch.dtype = torch.float64,
) -> Layer:
    """A layer whose inputs and output gradients differ in strength by direction and depend on each
    other."""
    H = normal(tokens, d_in, seed=seed) * 0.9 ** torch.arange(d_in)
    H = H @ torch.linalg.qr(normal(d_in, d_in, seed=seed + 10)).Q
    mixing = normal(d_in, d_out, seed=seed + 20) * 0.8 ** torch.arange(d_out)
    M = 0.01 * (H @ mixing + normal(tokens, d_out, seed=seed + 30) * 0.9 ** torch.arange(d_out))
    return Layer(
        name="encoder.value",
        W=normal(d_out, d_in, seed=seed + 40).to(dtype),
        gradient=(M.T @ H / tokens).to(dtype),
        input_moment=(H.T @ H / tokens).to(dtype),
        output_moment=(M**2).mean(0).to(dtype),
        population=N,
    )


def statistics(layer: Layer) -> tuple[Tensor, Tensor, Tensor, int]:
    return (
        layer.gradient.double(),
        layer.input_moment.double(),
        layer.output_moment.double(),
        layer.population,
    )


def adapt(
    layer: Layer, rank: int = 4, initializer: Callable[..., Factors] = lora_da, **keywords: Any
) -> Factors:
    return initializer(layer, rank=rank, scaling=4.0, generator=generator(), **keywords)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (64, 96)])
def test_lora_da_paper_is_algorithm_1(seed: int, shape: tuple[int, int]) -> None:
    layer = fisher_layer(seed, *shape)
    A, B = reference.lora_da_paper(*statistics(layer), rank=4)
    factors = adapt(layer, flavour="paper")
    # the projector on Ω's eigenvectors, rows orthonormal
    assert close(factors.A.mT @ factors.A, A.mT @ A, 1e-6)
    assert close(factors.product(), B @ A, 1e-6)
    assert (factors.start, factors.train) == ("shifted", {"A", "B"})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.03, 30.0])
def test_lora_da_released_is_the_released_formula(seed: int, beta: float) -> None:
    layer = fisher_layer(seed)
    A, B = reference.lora_da_released(
        *statistics(layer), rank=4, damping=1e-6, beta=beta, gamma=1024.0
    )
    factors = adapt(layer) if beta == 0.03 else adapt(layer, variance_weight=beta)
    assert close(factors.A.mT @ factors.A, A.mT @ A, 1e-6)
    assert close(factors.product(), B @ A, 1e-6)
    assert float(torch.linalg.matrix_norm(factors.A, 2)) == pytest.approx(1 / 32)
    assert float(torch.linalg.matrix_norm(factors.B, 2)) <= 1 / 32 * (1 + 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_relative_damping_is_in_units_of_the_statistics(seed: int) -> None:
    layer = fisher_layer(seed)
    G, Z, y, n = statistics(layer)
    Z = Z + 0.1 * Z.diagonal().mean() * torch.eye(len(Z)).double()
    y = y + 0.1 * y.median()
    A, B = reference.lora_da_released(G, Z, y, n, rank=4, damping=0.0, beta=0.03, gamma=1024.0)
    relative: dict[str, Any] = {"damping": 0.1, "damping_mode": "relative"}
    assert close(adapt(layer, **relative).product(), B @ A, 1e-6)
    quieter = {
        **layer.statistics,
        "gradient": 1e-3 * G,
        "output_moment": 1e-6 * layer.output_moment,
    }
    scaled = Layer(name="x", W=layer.W, **quieter)
    # the scale of the loss does not matter
    assert close(adapt(scaled, **relative).product(), B @ A, 1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ablations_drop_their_terms(seed: int) -> None:
    layer = fisher_layer(seed)
    G, Z, y, n = statistics(layer)
    _, Delta = reference.guidance(G, Z, y, n)
    spans = {
        "no_bias": torch.linalg.eigh(Z).eigenvectors[:, -4:].mT,
        "no_variance": torch.linalg.svd(Delta).U[:, :4].mT,
        "no_variance_fisher": torch.linalg.svd(G).Vh[:4],
    }
    for terms, expected in spans.items():
        factors = adapt(layer, flavour="paper", terms=terms)
        step = -G.mT if terms == "no_variance_fisher" else Delta
        assert close(row_space(factors.A), row_space(expected), 1e-6), terms
        assert close(factors.product(), (row_space(expected) @ step).mT, 1e-6), terms
        assert not close(row_space(adapt(layer, flavour="paper").A), row_space(expected), 1e-2), (
            terms
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_at_full_rank_the_start_is_the_whole_step_downhill(seed: int) -> None:
    layer = fisher_layer(seed, d_in=10)
    _, Delta = reference.guidance(*statistics(layer))
    product = adapt(layer, rank=10, flavour="paper").product()
    assert close(product, Delta.mT, 1e-8)
    assert (product * layer.gradient).sum() < 0


def test_float32_statistics_of_a_bfloat16_layer() -> None:
    exact, single = fisher_layer(0), fisher_layer(0, dtype=torch.float32)
    single = Layer(name="x", W=single.W.bfloat16(), **single.statistics)
    factors = adapt(single)
    assert factors.A.dtype == factors.B.dtype == torch.float32
    assert close(factors.product(), adapt(exact).product(), 1e-3)


def test_lora_da_fa_is_lora_da_with_a_frozen() -> None:
    layer = fisher_layer(0)
    other: dict[str, Any] = {
        "flavour": "paper",
        "terms": "no_variance",
        "start": "pretrained",
        "gamma": 4.0,
    }
    for keywords in ({}, other):
        frozen, both = adapt(layer, initializer=lora_da_fa, **keywords), adapt(layer, **keywords)
        assert (
            torch.equal(frozen.A, both.A)
            and torch.equal(frozen.B, both.B)
            and frozen.start == both.start
        )
        assert frozen.train == {"B"}
    assert (
        lora_da_fa.needs
        == lora_da.needs
        == {"gradient", "input_moment", "output_moment", "population"}
    )
    assert lora_da_fa.trains == {"B"} and lora_da.trains == {"A", "B"}
    assert inspect.signature(lora_da_fa) == inspect.signature(lora_da)


def test_damping_above_the_fisher_warns_once_with_the_remedy() -> None:
    layer = fisher_layer(0)
    assert 1e-6 < layer.output_moment.median() < 1e-2
    with pytest.warns(UserWarning) as seen:
        adapt(layer, damping=1e-2)
    assert len(seen) == 1
    warning = str(seen[0].message)
    expected = (
        r"layer encoder\.value: damping=0\.01 exceeds the median .*e-0.*init\.damping_mode=relative"
    )
    assert re.search(expected, warning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(layer)
        adapt(layer, damping=1e-2, damping_mode="relative")


@pytest.mark.parametrize("flavour", ["paper", "released"])
@pytest.mark.parametrize("shape", [(24, 48), (160, 160)])
def test_products_decided_ahead_give_what_looking_gives(
    flavour: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accelerator is given its products ahead, a CPU looks after each few."""
    layer = fisher_layer(0, *shape)
    looked = adapt(layer, flavour=flavour, damping_mode="relative", damping=1e-3)
    monkeypatch.setattr(importlib.import_module(lora_da.__module__), "is_accelerator", bool)
    ahead = adapt(layer, flavour=flavour, damping_mode="relative", damping=1e-3)
    assert close(ahead.product(), looked.product(), 1e-6)


def test_lora_da_errors_name_layer_value_and_remedy() -> None:
    layer = fisher_layer(0)

    def refused(match: str, of: Layer = layer, **keywords: Any) -> None:
        with pytest.raises(ValueError, match=match) as error:
            adapt(of, **keywords)
        assert "\n" not in str(error.value)

    refused("flavour='peft': expected paper or released", flavour="peft")
    refused("terms='bias': expected all, no_bias, no_variance or no_variance_fisher", terms="bias")
    refused("damping_mode='tikhonov': expected absolute or relative", damping_mode="tikhonov")
    refused("gamma=-1: expected a number greater than 0", gamma=-1)
    refused("damping=-1, variance_weight=0.03: expected numbers of at least 0", damping=-1)
    refused(r"encoder\.value: rank=25, expected 1 to 24", rank=25)
    few, quiet, still = (dict(layer.statistics) for _ in range(3))
    few["input_moment"] = torch.ones(24, 24).double()
    quiet["output_moment"] = torch.cat([torch.zeros(1), layer.output_moment[1:]])
    still["gradient"] = 0 * layer.gradient
    singular = "is singular with damping=0.*init.damping"
    refused("input_moment " + singular, Layer(name="x", W=layer.W, **few), **UNDAMPED)
    refused("output_moment " + singular, Layer(name="x", W=layer.W, **quiet), **UNDAMPED)
    refused("layer x: its gradient is zero", Layer(name="x", W=layer.W, **still))
    with pytest.raises(MissingStatistic, match="layer x has no gradient"):
        adapt(Layer(name="x", W=layer.W, population=N))


# ---- the linear algebra behind them


def spectrum(values: Tensor, seed: int) -> Tensor:
    U = torch.linalg.qr(normal(len(values), len(values), seed=seed)).Q
    return U * values @ U.mT


@pytest.mark.parametrize("seed", SEEDS)
def test_leading_eigenpairs_are_those_of_eigh_and_found_by_few_products(seed: int) -> None:
    values = torch.cat([0.8 ** torch.arange(40), -torch.logspace(-6, -1, 160)]).double()
    P, widths = spectrum(values, seed), []

    def apply(X: Tensor) -> Tensor:
        widths.append(X.shape[1])
        return P @ X

    found, Q, _ = linalg.Krylov(apply, normal(200, 6, seed=seed + 5), 6).settled()
    expected = torch.linalg.eigh(P)
    assert max(widths) == 6 and sum(widths) <= 100  # never formed
    assert torch.allclose(found, expected.eigenvalues.flip(0)[:6], rtol=1e-10)
    assert close(Q @ Q.mT, row_space(expected.eigenvectors[:, -6:].mT), 1e-6)
    assert close(P @ Q, Q * found, 1e-7)


@pytest.mark.parametrize("kind", ["flat", "low rank", "all negative", "identity"])
@pytest.mark.parametrize("size", [9, 60])
def test_leading_eigenpairs_of_hard_operators_are_exact(kind: str, size: int) -> None:
    values = {
        "flat": torch.linspace(1.0, 0.9, size),
        "low rank": torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.zeros(size - 3)]),
        "all negative": -torch.logspace(-3, 6, size),
        "identity": torch.ones(size),
    }[kind].double()
    P = spectrum(values, seed=3)
    found, Q, _ = linalg.Krylov(lambda X: P @ X, normal(size, 4, seed=4), 3).settled()
    assert torch.allclose(found, values[:3], rtol=1e-6)
    assert (
        close(Q.mT @ Q, torch.eye(3).double())
        and (P @ Q - Q * found).norm() <= 1e-9 * values.abs().max()
    )


def test_leading_eigenpairs_far_below_the_norm_are_found_to_rounding_by_few_products() -> None:
    values = torch.cat([torch.tensor([3e-9, 2e-9, 1e-9]), -torch.ones(97)]).double()
    P, widths = spectrum(values, seed=5), []

    def apply(X: Tensor) -> Tensor:
        widths.append(X.shape[1])
        return P @ X

    found = linalg.Krylov(apply, normal(100, 4, seed=6), 3).settled().values
    assert sum(widths) <= 20 and torch.allclose(found, values[:3], rtol=0, atol=1e-14)


@pytest.mark.parametrize("products", [1, 4, 20])
@pytest.mark.parametrize(
    "kind", ["falling", "flat", "low rank", "all negative", "identity", "zero", "one"]
)
def test_products_decided_ahead_are_looked_at_once_and_gone_on_with(
    kind: str, products: int
) -> None:
    """Also far behind an invariant subspace, where what is left is rounding or nothing at all."""
    size = 300
    values = {
        "falling": 0.7 ** torch.arange(size),
        "flat": torch.linspace(1.0, 0.9, size),
        "low rank": torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.zeros(size - 3)]),
        "all negative": -torch.logspace(-3, 6, size),
        "identity": torch.ones(size),
        "zero": torch.zeros(size),
        "one": torch.cat([torch.tensor([1.0]), torch.zeros(size - 1)]),
    }[kind].double()
    exact = kind in ("identity", "zero", "one")  # no rounding fills what is left
    P = values.diag() if exact else spectrum(values, seed=3)
    space = linalg.Krylov(lambda X: P @ X, normal(size, 4, seed=4), 3)
    ahead = space.ahead(products)
    assert len(space.T) == 4 * products
    V = space.V
    assert close(V.mT @ V, torch.eye(V.shape[1]).double())
    # a product shows three directions at the most; four reach the end of a space of three
    enough = {"falling": 20, "flat": 99, "all negative": 99, "low rank": 4, "one": 4}.get(kind, 1)
    assert (ahead.excess <= 0) == (products >= enough)
    settled = space.settled() if ahead.excess > 0 else ahead
    found, Q, _ = settled
    assert torch.allclose(found, values[:3], rtol=1e-6, atol=1e-12)
    assert close(Q.mT @ Q, torch.eye(3).double())
    assert (P @ Q - Q * found).norm() <= 2e-9 * max(float(values.abs().max()), 1e-9)


def test_inverse_square_root_is_a_root_of_the_pseudo_inverse() -> None:
    M = spectrum(torch.tensor([4.0, 1.0, 0.25, 1e-18, -1e-18]).double(), seed=1)
    X = linalg.inverse_square_root(M, 1e-12)
    assert X.shape == (5, 3)
    assert close(X @ X.mT, torch.linalg.pinv(M, rtol=1e-12)) and close(
        X.mT @ M @ X, torch.eye(3).double()
    )
    assert linalg.inverse_square_root(torch.zeros(3, 3), 1e-12).shape == (3, 0)


# ---- configuration


@pytest.mark.parametrize("initializer", [cg_lora, lora_da, lora_da_fa])
def test_the_yaml_holds_every_hyper_parameter_at_its_default(initializer: Any) -> None:
    name = initializer.__name__
    path = Path(__file__).parents[2] / "conf" / "init" / f"{name}.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict) and config["_target_"] == f"loraexp.initializers.{name}.{name}"
    parameters = dict(list(inspect.signature(initializer).parameters.items())[4:])
    assert {key: config[key] for key in parameters} == {
        key: p.default for key, p in parameters.items()
    }
    calibration = set(config) - set(parameters) - {"name", "_target_", "_partial_"}
    assert (
        calibration == {"samples", "batch_size", "rows", "mode", "weighting"}
        and config["weighting"] is None
    )
    assert config["samples"] == (512 if name == "cg_lora" else 256)
