"""Every weight and gradient initializer against its slow transcription, its theory, and PEFT where
PEFT has it too."""

from __future__ import annotations

import inspect
import typing
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from loraexp.adapter import linalg
from loraexp.adapter.layer import (
    Curvature,
    Factors,
    Layer,
    LeadingRequest,
    MissingStatistic,
    Training,
    needs,
)
from loraexp.initializers.corda import corda
from loraexp.initializers.eva import eva
from loraexp.initializers.lora import lora
from loraexp.initializers.lora_fa import lora_fa
from loraexp.initializers.lora_ga import lora_ga
from loraexp.initializers.lora_one import lora_one
from loraexp.initializers.lora_sb import lora_sb
from loraexp.initializers.lora_xs import lora_xs
from loraexp.initializers.milora import milora
from loraexp.initializers.olora import olora
from loraexp.initializers.one_step import one_step
from loraexp.initializers.pissa import pissa
from tests.reference import gradients, weights

SEEDS = range(5)
SHAPES = [(48, 32), (32, 48)]
RANK, ETA = 4, 2.5
Initializer = Any  # a function with the attributes that @needs gives it
EVERY: list[Initializer] = [
    lora,
    lora_fa,
    pissa,
    milora,
    olora,
    lora_xs,
    lora_ga,
    lora_one,
    lora_sb,
    one_step,
    corda,
    eva,
]
REQUIRED: dict[Initializer, dict[str, Any]] = {
    lora_sb: {"step_size": 1e-3},
    one_step: {"step_size": 0.1},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying(d_out: int, d_in: int, seed: int, decay: float = 0.7) -> Tensor:
    """A random matrix with singular values 1, decay, decay², …: what a randomised SVD finds to
    machine precision."""
    g = generator(1000 + seed)
    U = torch.linalg.qr(torch.randn(d_out, d_out, generator=g, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(d_in, d_in, generator=g, dtype=torch.float64)).Q
    n = min(d_out, d_in)
    return (U[:, :n] * decay ** torch.arange(n, dtype=torch.float64)) @ V[:, :n].T


def inputs(tokens: int, d_in: int, seed: int) -> Tensor:
    """Layer inputs (tokens, d_in) whose mean is zero and whose directions differ in strength."""
    H = torch.randn(tokens // 2, d_in, generator=generator(2000 + seed)) * 0.85 ** torch.arange(
        d_in
    )
    return torch.cat([H, -H])


def layer(
    d_out: int = 48, d_in: int = 32, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Layer:
    """A layer with its weight and every statistic that an initializer of this file reads (float64
    for a float64 W)."""
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    H = inputs(200, d_in, seed).to(statistics)
    return Layer(
        name="encoder.query",
        W=torch.randn(d_out, d_in, generator=generator(seed)).to(dtype),
        gradient=decaying(d_out, d_in, seed).to(statistics),
        summed_gradient=decaying(d_out, d_in, seed + 50).to(statistics),
        input_moment=H.T @ H / len(H),
    )


def initialize(
    function: Initializer, at: Layer, rank: int = RANK, seed: int = 0, **options: Any
) -> Factors:
    return function(
        at,
        rank=rank,
        scaling=ETA,
        generator=generator(seed),
        **(REQUIRED.get(function, {}) | options),
    )


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Relative Frobenius distance."""
    distance = torch.linalg.norm(actual.double() - expected.double()) / torch.linalg.norm(
        expected.double()
    )
    assert distance < tolerance, f"relative distance {distance:.2e}, tolerance {tolerance:.0e}"


def rows(A: Tensor) -> Tensor:
    """Projector on the row space of A."""
    Q = torch.linalg.qr(A.double().T).Q
    return Q @ Q.T


def columns(B: Tensor) -> Tensor:
    """Projector on the column space of B."""
    return rows(B.T)


def flipped_to(factors: Factors, A: Tensor) -> Factors:
    """The same factors with the sign of each rank-one term's A side as in `A`; only B's sign is
    left to an SVD."""
    signs = torch.sign((factors.A.double() * A.double()).sum(1)).to(factors.A)
    return Factors(A=signs[:, None] * factors.A, B=factors.B, start=factors.start)


def assert_same_up_to_signs(
    factors: Factors, A: Tensor, B: Tensor, tolerance: float = 1e-5
) -> None:
    """Products agree after each column of B is given the sign it has in the expected B, as A and B
    are independent."""
    aligned = flipped_to(factors, A)
    signs = torch.sign((aligned.B.double() * B.double()).sum(0)).to(aligned.B)
    assert_same((aligned.B * signs) @ aligned.A, B.double() @ A.double(), tolerance)
    assert_same(rows(factors.A), rows(A), tolerance)
    assert_same(columns(factors.B), columns(B), tolerance)


# --------------------------------------------------------------------------------------------------
# weights


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [pissa, milora])
def test_singular_triplets_of_the_weight(
    function: Initializer, shape: tuple[int, int], seed: int
) -> None:
    at = layer(*shape, seed, torch.float64)
    A, B = getattr(weights, function.__name__)(at.W, RANK, ETA)
    factors = initialize(function, at)
    assert factors.start == "pretrained"
    assert_same(factors.product(), B @ A, 1e-9)
    assert_same(rows(factors.A), rows(A), 1e-9)
    assert_same(columns(factors.B), columns(B), 1e-9)
    assert_same(factors.A @ factors.A.T, A @ A.T, 1e-9)
    assert_same(factors.B.T @ factors.B, B.T @ B, 1e-9)


def test_pissa_leaves_the_residual_of_the_best_approximation_whatever_the_scaling() -> None:
    at = layer()
    for scaling in (0.5, 1.0, 16.0):
        factors = pissa(at, rank=RANK, scaling=scaling, generator=generator())
        assert_same(scaling * factors.product(), gradients.best_approximation(at.W, RANK))


@pytest.mark.parametrize("seed", SEEDS)
def test_pissa_randomised_finds_the_exact_product(seed: int) -> None:
    at = Layer(name="x", W=decaying(48, 32, seed, decay=0.5).float())
    A, B = weights.pissa(at.W, RANK, ETA)
    assert_same(initialize(pissa, at, iterations=16).product(), B @ A)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pissa_and_milora_of_complementary_ranks_add_up_to_the_weight(
    shape: tuple[int, int], seed: int
) -> None:
    at = layer(*shape, seed, torch.float64)
    both = initialize(pissa, at, rank=12).product() + initialize(milora, at, rank=32 - 12).product()
    assert_same(ETA * both, at.W, 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("flavour", ["paper", "released"])
def test_lora_xs(flavour: str, seed: int) -> None:
    at = layer(seed=seed, dtype=torch.float64)
    A, B = weights.lora_xs(at.W, RANK, flavour)
    factors = initialize(lora_xs, at, flavour=flavour)
    assert_same(factors.B @ factors.A, B @ A, 1e-9)
    assert_same(factors.A @ factors.A.T, A @ A.T, 1e-9)
    assert_same(factors.B.T @ factors.B, B.T @ B, 1e-9)
    assert factors.train == {"R"} and factors.start == "shifted"


def test_lora_xs_draws_R_with_its_sigma() -> None:
    R = initialize(lora_xs, Layer(name="x", W=torch.eye(200)), rank=200, sigma=1e-3).R
    assert R is not None and R.shape == (200, 200)
    # 4 standard errors
    assert abs(R.std().item() / 1e-3 - 1) < 0.02 and abs(R.mean().item()) < 2e-5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_olora(shape: tuple[int, int], seed: int) -> None:
    at = layer(*shape, seed, torch.float64)
    factors = initialize(olora, at)
    assert_same(factors.product(), weights.olora_product(at.W, RANK), 1e-9)
    assert_same(factors.B.T @ factors.B, torch.eye(RANK), 1e-9)


def test_lora_is_the_zero_map_with_linears_draw() -> None:
    factors = initialize(lora, layer(d_out=20, d_in=400), rank=50)
    assert factors.A.shape == (50, 400) and factors.B.shape == (20, 50)
    assert not factors.B.any() and factors.train == {"A", "B"}
    bound = 400**-0.5
    assert factors.A.abs().max() <= bound
    # the standard deviation of U(-bound, bound)
    assert abs(factors.A.std().item() / (bound / 3**0.5) - 1) < 0.02


def test_lora_fa_is_lora_with_A_frozen() -> None:
    at = layer()
    plain, frozen = initialize(lora, at, seed=3), initialize(lora_fa, at, seed=3)
    assert torch.equal(plain.A, frozen.A) and torch.equal(plain.B, frozen.B)
    assert frozen.train == {"B"}


# --------------------------------------------------------------------------------------------------
# inputs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flavour", ["ipm", "kpm"])
def test_corda(flavour: str, shape: tuple[int, int], seed: int) -> None:
    at = layer(*shape, seed, torch.float64)
    A, B = weights.corda(at.W, at.input_moment, RANK, ETA, flavour, 0.01)
    factors = initialize(corda, at, flavour=flavour)
    assert_same(factors.product(), B @ A, 1e-9)
    assert_same(rows(factors.A), rows(A), 1e-9)
    assert_same(columns(factors.B), columns(B), 1e-9)


def test_corda_of_every_triplet_is_the_weight_and_its_product_ignores_the_moments_scale() -> None:
    at = layer()
    assert_same(ETA * initialize(corda, at, rank=32).product(), at.W, 1e-4)
    scaled = Layer(name="x", W=at.W, input_moment=100 * at.input_moment)
    one, other = initialize(corda, at), initialize(corda, scaled)
    assert_same(other.product(), one.product(), 1e-4)
    assert_same(other.B.T @ other.B, 100 * one.B.T @ one.B, 1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_eva(seed: int) -> None:
    factors = initialize(eva, layer(seed=seed, dtype=torch.float64))
    assert_same(factors.A.T @ factors.A, weights.eva_projector(inputs(200, 32, seed), RANK), 1e-9)
    assert not factors.B.any()


def test_eva_keeps_the_strongest_directions_first() -> None:
    at = layer()
    energy = (initialize(eva, at).A @ at.input_moment).norm(dim=1)
    assert (energy.diff() < 0).all()


def test_eva_refuses_fewer_directions_than_the_rank() -> None:
    H = torch.randn(3, 32, generator=generator())
    at = Layer(
        name="encoder.query", W=torch.randn(48, 32, generator=generator()), input_moment=H.T @ H / 3
    )
    with pytest.raises(
        ValueError, match="layer encoder.query: rank=4, expected 1 to 3 .*init.samples"
    ):
        initialize(eva, at)


# --------------------------------------------------------------------------------------------------
# gradients


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flavour", ["paper", "released", "peft"])
def test_lora_ga(flavour: str, shape: tuple[int, int], seed: int) -> None:
    at = layer(*shape, seed)
    A, B = gradients.lora_ga(at.gradient, RANK, 16.0, flavour)
    factors = initialize(lora_ga, at, flavour=flavour)
    assert factors.start == "pretrained"
    assert_same_up_to_signs(factors, A, B, 1e-4)


def test_lora_ga_says_which_gamma() -> None:
    at = layer()
    paper, released = (
        initialize(lora_ga, at, gamma=4.0),
        initialize(lora_ga, at, gamma=16.0, flavour="released"),
    )
    assert torch.equal(paper.A, released.A) and torch.equal(paper.B, released.B)
    # no singular values
    assert torch.allclose(torch.linalg.svdvals(paper.A), torch.tensor(48**0.25 / 4), rtol=1e-5)
    assert torch.allclose(torch.linalg.svdvals(paper.B), torch.tensor(48**0.25 / 4), rtol=1e-5)


def test_lora_ga_refuses_a_layer_too_small_for_two_r_directions() -> None:
    assert initialize(lora_ga, layer(), rank=16).A.shape == (16, 32)
    with pytest.raises(
        ValueError, match="layer encoder.query: rank=17, expected 1 to 16 .*48 x 32"
    ):
        initialize(lora_ga, layer(), rank=17)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flavour", ["paper", "released"])
def test_lora_one(flavour: str, shape: tuple[int, int], seed: int) -> None:
    at = layer(*shape, seed)
    A, B = gradients.lora_one(at.gradient, RANK, 128.0)
    factors = initialize(lora_one, at, flavour=flavour)
    assert factors.start == "shifted"
    assert_same(factors.product(), B @ A)
    assert_same(factors.A @ factors.A.T, A @ A.T)
    assert_same(factors.B.T @ factors.B, B.T @ B)
    assert_same(rows(factors.A), rows(A))
    assert_same(columns(factors.B), columns(B))


@pytest.mark.parametrize("seed", SEEDS)
def test_lora_one_slides(seed: int) -> None:
    at = layer(seed=seed)
    A, B = gradients.lora_one_slides(at.gradient, RANK, 16.0)
    factors = initialize(lora_one, at, flavour="slides")
    assert_same(
        initialize(lora_one, at, flavour="slides", scale=64.0).product(), factors.product() / 4
    )
    assert factors.start == "pretrained"
    assert_same(factors.product(), B @ A)
    assert_same(factors.A @ factors.A.T, A @ A.T)


@pytest.mark.parametrize("seed", SEEDS)
def test_lora_one_is_the_best_approximation_of_the_negative_gradient(seed: int) -> None:
    """Eckart-Young: up to its scale, no other rank-r matrix is closer to -G."""
    at = layer(seed=seed)
    S = torch.linalg.svdvals(at.gradient.double())
    M = 128 * S[0] * initialize(lora_one, at).product().double()
    assert_same(M, gradients.best_approximation(-at.gradient, RANK))
    assert torch.linalg.norm(-at.gradient - M).item() == pytest.approx(
        (S[RANK:] ** 2).sum().sqrt().item(), rel=1e-6
    )
    assert (M * at.gradient).sum() < 0


def test_lora_one_ignores_the_gradients_scale_and_obeys_its_own() -> None:
    at = layer()
    one = initialize(lora_one, at).product()
    louder = Layer(name="x", W=at.W, gradient=1e4 * at.gradient)
    assert_same(initialize(lora_one, louder).product(), one)
    assert_same(initialize(lora_one, at, scale=16.0).product(), 8 * one)


def test_lora_one_start_can_be_chosen() -> None:
    assert initialize(lora_one, layer(), start="pretrained").start == "pretrained"
    assert initialize(lora_one, layer(), flavour="slides", start="shifted").start == "shifted"


def test_lora_one_released_asks_for_512_columns() -> None:
    assert lora_one.request(8, flavour="released", scale=128.0) == {
        "leading_gradient": LeadingRequest(8, 504, 16)
    }
    assert lora_one.request(600, flavour="released") == {
        "leading_gradient": LeadingRequest(600, 0, 16)
    }


@pytest.mark.parametrize("function", [lora_ga, lora_one])
def test_sketched_triplets_take_the_gradients_place(function: Initializer) -> None:
    at = layer()
    request = function.request(RANK)["leading_gradient"]
    sketched = Layer(name="x", W=at.W, leading_gradient=at.leading_gradient(request, generator()))
    one, other = initialize(function, at), initialize(function, sketched)
    assert torch.equal(one.A, other.A) and torch.equal(one.B, other.B)


@pytest.mark.parametrize("function", [lora_ga, lora_one, lora_sb])
def test_a_zero_gradient_is_refused(function: Initializer) -> None:
    zero = torch.zeros(48, 32)
    at = Layer(name="encoder.query", W=torch.ones(48, 32), gradient=zero, summed_gradient=zero)
    with pytest.raises(ValueError, match="layer encoder.query: its gradient is zero"):
        initialize(function, at)


# --------------------------------------------------------------------------------------------------
# LoRA-SB


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("choice", ["orthonormal", "us"])
def test_lora_sb(choice: str, shape: tuple[int, int], seed: int) -> None:
    at = layer(*shape, seed)
    A, B, R = gradients.lora_sb(at.summed_gradient, RANK, ETA, 1e-3, choice)
    factors = initialize(lora_sb, at, factors=choice)
    assert factors.R is not None and factors.train == {"R"} and factors.start == "shifted"
    assert_same(factors.product(), B @ R @ A, 1e-4)
    assert_same(factors.B @ factors.B.T, B @ B.T, 1e-4)
    assert_same(factors.A.T @ factors.A, A.T @ A, 1e-4)
    assert_same(torch.linalg.svdvals(factors.R), torch.linalg.svdvals(R), 1e-4)


def test_lora_sb_on_a_large_sign_matrix() -> None:
    """The randomised SVD's width and iterations suffice where they matter: 512 x 384, signs of a
    noisy gradient."""
    G = decaying(512, 384, 0, decay=0.8).float()
    G = G + 0.1 * G.std() * torch.randn(G.shape, generator=generator())
    factors = initialize(
        lora_sb, Layer(name="x", W=torch.zeros(512, 384), summed_gradient=G), rank=8
    )
    update = -1e-3 * torch.sign(G)
    assert_same(ETA * factors.product(), gradients.best_approximation(update, 8), 1e-4)


def test_lora_sb_on_signs_of_noise_is_as_close_as_the_best() -> None:
    G = torch.randn(384, 384, generator=generator())
    factors = initialize(
        lora_sb, Layer(name="x", W=torch.zeros(384, 384), summed_gradient=G), rank=8
    )
    update = (-1e-3 * torch.sign(G)).double()
    least = torch.linalg.norm(update - gradients.best_approximation(update, 8))
    assert torch.linalg.norm(update - ETA * factors.product()) < (1 + 1e-4) * least


@pytest.mark.parametrize("seed", SEEDS)
def test_lora_sb_is_orthonormal_and_optimal(seed: int) -> None:
    at = layer(seed=seed)
    factors = initialize(lora_sb, at)
    assert_same(factors.B.T @ factors.B, torch.eye(RANK))
    assert_same(factors.A @ factors.A.T, torch.eye(RANK))
    assert_same(
        ETA * factors.product(),
        gradients.best_approximation(-1e-3 * torch.sign(at.summed_gradient), RANK),
        1e-4,
    )
    assert (factors.product() * at.summed_gradient).sum() < 0


def test_lora_sb_sees_only_signs() -> None:
    at = layer()
    stretched = at.summed_gradient * torch.rand(48, 32, generator=generator()).add(0.1)
    one, other = (
        initialize(lora_sb, at),
        initialize(lora_sb, Layer(name="x", W=at.W, summed_gradient=stretched)),
    )
    assert torch.equal(one.product(), other.product())
    assert_same(initialize(lora_sb, at, step_size=2e-3).product(), 2 * one.product())


def test_lora_sb_ablations() -> None:
    at = layer()
    clean = initialize(lora_sb, at).product()
    moved = [
        torch.linalg.norm(initialize(lora_sb, at, noise=n).product() - clean)
        for n in (1e-5, 1e-4, 1e-3)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]
    # full rank: the matrix itself
    kaiming = initialize(lora_sb, Layer(name="x", W=at.W), rank=32, delta="kaiming")
    assert ETA * kaiming.product().std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.1)


# --------------------------------------------------------------------------------------------------
# one step


@pytest.mark.parametrize("shape", SHAPES)
def test_one_full_step_is_exact(shape: tuple[int, int]) -> None:
    at = layer(*shape)
    factors = initialize(one_step, at, update="full")
    assert_same(ETA * factors.product(), -0.1 * at.gradient, 1e-6)
    assert factors.train == frozenset() and factors.start == "shifted" and factors.A.shape[0] == 32


@pytest.mark.parametrize("seed", SEEDS)
def test_one_low_rank_step_is_the_best_of_its_rank(seed: int) -> None:
    at = layer(seed=seed)
    factors = initialize(one_step, at, update="low_rank")
    assert_same(ETA * factors.product(), -0.1 * gradients.best_approximation(at.gradient, RANK))


def test_one_step_refuses_to_take_its_step_off_again() -> None:
    with pytest.raises(ValueError, match="start='pretrained': expected shifted"):
        initialize(one_step, layer(), start="pretrained")


@pytest.mark.parametrize("function", [lora_one, lora_sb, one_step], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_shifted_start_descends(function: Initializer, seed: int) -> None:
    """f(x) = W x with squared loss: a small step along the product lowers the loss, the flipped one
    raises it."""
    g = generator(seed)
    W, X, Y = (
        torch.randn(48, 32, generator=g),
        torch.randn(32, 64, generator=g),
        torch.randn(48, 64, generator=g),
    )
    residual = W @ X - Y
    at = Layer(name="x", W=W, gradient=residual @ X.T / 64, summed_gradient=residual @ X.T)
    factors = initialize(function, at)
    assert factors.start == "shifted"
    step = 1e-3 * factors.product() / torch.linalg.norm(factors.product())

    def loss(W: Tensor) -> float:
        return (W @ X - Y).double().square().sum().item() / 128

    assert loss(W + step) < loss(W) < loss(W - step)


# ------------------------------------------------------------------------------------------- all of
# them


@pytest.mark.parametrize("function", EVERY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_factors_are_float32_or_better_and_compact(
    function: Initializer, dtype: torch.dtype
) -> None:
    factors = initialize(function, layer(dtype=dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for x in (factors.A, factors.B, factors.R):
        if x is not None:
            assert x.dtype == expected and x.is_contiguous() and x.isfinite().all()
            # not a view of a larger decomposition
            assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
    assert factors.A.shape[1] == 32 and factors.B.shape[0] == 48
    assert factors.train == function.trains


@pytest.mark.parametrize("function", EVERY, ids=lambda f: f.__name__)
def test_the_generator_is_the_only_source_of_randomness(function: Initializer) -> None:
    state = torch.get_rng_state()
    one, other = initialize(function, layer(), seed=1), initialize(function, layer(), seed=1)
    assert torch.equal(one.product(), other.product()) and torch.equal(one.A, other.A)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("function", EVERY, ids=lambda f: f.__name__)
def test_nothing_it_is_given_is_changed(function: Initializer) -> None:
    at = layer()
    before = {name: x.clone() for name, x in {"W": at.W, **at.statistics}.items()}
    initialize(function, at)
    for name, x in {"W": at.W, **at.statistics}.items():
        assert torch.equal(x, before[name]), name


@pytest.mark.parametrize("function", [f for f in EVERY if f.needs], ids=lambda f: f.__name__)
def test_a_missing_statistic_is_named_and_never_replaced(function: Initializer) -> None:
    (statistic,) = function.needs
    with pytest.raises(MissingStatistic, match=f"layer encoder.query has no {statistic}.*@needs"):
        initialize(function, Layer(name="encoder.query", W=torch.ones(48, 32)))


@pytest.mark.parametrize(
    "function", [f for f in EVERY if f not in (lora, lora_fa)], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("rank", [0, 33])
def test_a_rank_beyond_the_layer_is_refused(function: Initializer, rank: int) -> None:
    with pytest.raises(ValueError, match=f"layer encoder.query: rank={rank}, expected 1 to "):
        initialize(function, layer(), rank=rank)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lora_xs, {"flavour": "best"}, "flavour='best': expected paper or released"),
        (lora_ga, {"flavour": "best"}, "flavour='best': expected paper, released or peft"),
        (lora_one, {"flavour": "best"}, "flavour='best': expected paper, released or slides"),
        (corda, {"flavour": "best"}, "flavour='best': expected ipm or kpm"),
        (lora_sb, {"delta": "best"}, "delta='best': expected sign or kaiming"),
        (lora_sb, {"factors": "best"}, "factors='best': expected orthonormal or us"),
        (one_step, {"update": "best"}, "update='best': expected full or low_rank"),
        (lora, {"start": "warm"}, "start='warm': expected pretrained or shifted"),
        (lora_one, {"scale": 0.0}, "scale=0.0: expected a number greater than 0"),
        (lora_ga, {"gamma": -1.0}, "gamma=-1.0: expected a number greater than 0"),
        (lora_sb, {"step_size": 0.0}, "step_size=0.0: expected a number greater than 0"),
        (lora_sb, {"noise": -1.0}, "noise=-1.0: expected a standard deviation of 0 or more"),
        (pissa, {"iterations": 0}, "iterations=0: expected a number greater than 0"),
        (corda, {"damping": 0.0}, "damping=0.0: expected a number greater than 0"),
    ],
)
def test_wrong_values_are_named(
    function: Initializer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        initialize(function, layer(), **options)
    assert str(caught.value).startswith(message)


# ----------------------------------------------------------------------------------- Layer,
# Factors, needs


def test_layer_reads_what_it_was_given() -> None:
    at = Layer(name="x", W=torch.zeros(3, 2), gradient=torch.ones(3, 2), population=None)
    assert (at.d_out, at.d_in) == (3, 2) and at.gradient.sum() == 6
    with pytest.raises(MissingStatistic, match="layer x has no population"):
        _ = at.population
    with pytest.raises(AttributeError, match="no attribute 'gradiant'"):
        _ = at.gradiant
    with pytest.raises(
        TypeError, match=r"layer x: unknown statistics \['gradiant'\]; expected some of gradient"
    ):
        Layer(name="x", W=torch.zeros(3, 2), gradiant=torch.ones(3, 2))


def test_factors_multiply_and_refuse_what_does_not() -> None:
    A, B, R = torch.ones(2, 3), torch.ones(4, 2), torch.diag(torch.tensor([1.0, 2.0]))
    assert torch.equal(Factors(A=A, B=B, start="shifted").product(), torch.full((4, 3), 2.0))
    assert torch.equal(Factors(A=A, B=B, R=R, start="shifted").product(), torch.full((4, 3), 3.0))
    with pytest.raises(ValueError, match="start='later': expected pretrained or shifted"):
        Factors(A=A, B=B, start="later")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shapes \[\(2, 3\), \(2, 4\)\] do not multiply"):
        Factors(A=A, B=B.T, start="shifted")
    with pytest.raises(ValueError, match="do not multiply"):
        Factors(A=A, B=B, R=torch.ones(3, 3), start="shifted")
    with pytest.raises(ValueError, match=r"train=\['R'\]"):
        Factors(A=A, B=B, start="shifted", train=frozenset({"R"}))


def test_needs_is_declared_on_the_function() -> None:
    assert lora_ga.needs == {"leading_gradient"} and lora.needs == frozenset()
    assert lora_ga.request(8, gamma=16.0) == {
        "leading_gradient": LeadingRequest(k=16, oversample=16, iterations=4)
    }
    assert lora.request(8) == {}
    assert (lora.trains, lora_fa.trains, lora_sb.trains, one_step.trains) == (
        {"A", "B"},
        {"B"},
        {"R"},
        frozenset(),
    )
    with pytest.raises(ValueError, match=r"@needs: unknown statistics \['gradients'\]"):
        needs("gradients")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_randomised_svd_against_the_dense_one(shape: tuple[int, int], seed: int) -> None:
    M = decaying(*shape, seed)
    U, S, Vh = linalg.randomized_svd(M, RANK, RANK, 4, generator(seed))
    assert_same(S, torch.linalg.svdvals(M)[:RANK], 1e-9)
    assert_same((U * S) @ Vh, gradients.best_approximation(M, RANK), 1e-6)  # (0.7⁵)⁹ = 1e-7
    assert_same(U.T @ U, torch.eye(RANK), 1e-12)


# --------------------------------------------------------------------------------------------------
# PEFT


class OneLinear(nn.Module):
    """The smallest model PEFT adapts."""

    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.query = nn.Linear(W.shape[1], W.shape[0], bias=False)
        self.query.weight.data = W.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x)


def peft_model(model: nn.Module, method: Any, **options: Any) -> Any:
    """`model` with PEFT's adapter of rank RANK and scaling ETA, initialised by PEFT."""
    import peft

    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=int(ETA * RANK),
        target_modules=["query"],
        init_lora_weights=method,
        **options,
    )
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # PEFT's randomised SVDs draw from the global generator
        return peft.get_peft_model(model, config)


def peft_factors(adapted: Any) -> tuple[Tensor, Tensor, Tensor]:
    """PEFT's A and B, and the weight that it left frozen."""
    query = adapted.base_model.model.query
    return (
        query.lora_A["default"].weight.data,
        query.lora_B["default"].weight.data,
        query.base_layer.weight.data,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [pissa, olora])
def test_peft_makes_the_same_product_and_residual(
    function: Initializer, shape: tuple[int, int], seed: int
) -> None:
    at = layer(*shape, seed)
    A, B, residual = peft_factors(peft_model(OneLinear(at.W), function.__name__))
    factors = initialize(function, at)
    assert_same(factors.product(), B @ A)
    assert_same(at.W - ETA * factors.product(), residual)
    assert_same(factors.A @ factors.A.T, A @ A.T)
    assert_same(factors.B.T @ factors.B, B.T @ B)


@pytest.mark.parametrize("seed", SEEDS)
def test_peft_makes_the_same_randomised_pissa(seed: int) -> None:
    at = Layer(name="x", W=decaying(48, 32, seed, decay=0.5).float())
    A, B, _ = peft_factors(peft_model(OneLinear(at.W), "pissa_niter_16"))
    assert_same(initialize(pissa, at, iterations=16).product(), B @ A)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_peft_makes_the_same_lora_ga(shape: tuple[int, int], seed: int) -> None:
    from peft import LoraGAConfig

    at = layer(*shape, seed)
    model = OneLinear(at.W)
    model.query._peft_loraga_grad = at.gradient.clone()  # what its preprocess_loraga leaves there
    A, B, frozen = peft_factors(peft_model(model, "lora_ga", lora_ga_config=LoraGAConfig()))
    factors = initialize(lora_ga, at, flavour="peft")
    assert_same_up_to_signs(factors, A, B, 1e-4)
    assert_same(at.W - ETA * (B @ A), frozen)  # PEFT's offset: the same η B A, taken off the weight
    assert factors.start == "pretrained"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_peft_makes_the_same_corda(method: Any, seed: int) -> None:
    import peft
    from peft.tuners.lora.corda import preprocess_corda

    at = layer(seed=seed)
    H = inputs(200, 32, seed)
    model = OneLinear(at.W)
    options: dict[str, Any] = {
        "corda_config": peft.tuners.lora.config.CordaConfig(corda_method=method)
    }
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=int(ETA * RANK),
        target_modules=["query"],
        init_lora_weights="corda",
        **options,
    )
    preprocess_corda(model, config, run_model=lambda: model(H[None]))
    A, B, residual = peft_factors(peft_model(model, "corda", **options))
    factors = initialize(corda, at, flavour=method)  # from the mean over tokens
    assert_same(factors.product(), B @ A, 1e-3)
    assert_same(at.W - ETA * factors.product(), residual, 1e-3)
    # PEFT's own moment: same balance too
    scaled = Layer(name="x", W=at.W, input_moment=(H / H.max()).T @ (H / H.max()))
    factors = initialize(corda, scaled, flavour=method)
    assert_same(factors.A @ factors.A.T, A @ A.T, 1e-3)
    assert_same(factors.B.T @ factors.B, B.T @ B, 1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_peft_makes_the_same_eva(seed: int) -> None:
    from peft import EvaConfig, initialize_lora_eva_weights

    at = layer(seed=seed)
    adapted = peft_model(
        OneLinear(at.W), "eva", eva_config=EvaConfig(rho=1.0, use_label_mask=False)
    )
    with torch.random.fork_rng():
        initialize_lora_eva_weights(
            adapted,
            [{"x": inputs(200, 32, seed)}],
            forward_fn=lambda model, batch: model(batch["x"]),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
    A, B, frozen = peft_factors(adapted)
    factors = initialize(eva, at)
    assert_same(rows(factors.A), rows(A), 1e-3)
    assert_same(factors.A @ factors.A.T, A @ A.T, 1e-3)
    assert torch.equal(B, factors.B) and torch.equal(frozen, at.W)


# --------------------------------------------------------------------------------------------------
# conf/init/*.yaml

CONF = Path(__file__).parents[2] / "conf" / "init"
CALIBRATION = {"samples", "batch_size", "rows", "mode"}
# statistics of a loss
LOSS = {"gradient", "leading_gradient", "summed_gradient", "output_moment", "curvature"}
SHARED = {"memory_budget", "cache", "weighting"}  # set for every initializer in conf/config.yaml
GIVEN = {"layer", "rank", "scaling", "generator"}
FILES = sorted(CONF.glob("*.yaml"))


def loaded(file: Path) -> tuple[dict[str, Any], Initializer]:
    """The resolved yaml and the function that it names."""
    config = OmegaConf.create({"lr": 1e-3, "init": OmegaConf.load(file)})
    node = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))["init"]
    module, _, name = node["_target_"].rpartition(".")
    return node, getattr(import_module(module), name)


def test_every_initializer_of_this_file_has_its_yaml() -> None:
    assert {f.__name__ for f in EVERY} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_yaml_and_function_say_the_same(file: Path) -> None:
    node, function = loaded(file)
    assert file.read_text().startswith("# "), "the first line says which paper and what it does"
    assert node["name"] == file.stem == function.__name__ and node["_partial_"] is True
    assert isinstance(function.needs, frozenset) and callable(function.request)
    parameters = inspect.signature(function).parameters
    hyper_parameters = set(parameters) - GIVEN
    assert set(parameters) >= GIVEN
    keys = set(node) - {"name", "_target_", "_partial_"}
    assert keys - CALIBRATION - SHARED == hyper_parameters, (
        "a key is no parameter, or a parameter has no key"
    )
    assert keys & CALIBRATION == (CALIBRATION if function.needs else set())
    assert ("weighting" in keys) == bool(function.needs & LOSS), (
        "a mean of the loss is over samples or tokens: the yaml says which"
    )
    hints = typing.get_type_hints(function)
    for key in hyper_parameters:
        assert_fits(key, node[key], hints[key])
    if function.needs:
        assert node["rows"] in ("head", "shuffled") and node["mode"] in ("eval", "train")


def assert_fits(key: str, value: Any, hint: Any) -> None:
    """`value` is one of the hint's literals, or of its scalar type."""
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    for option in options:
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return
        if option in (int, float, bool, str, type(None)) and type(value) is option:
            return
    pytest.fail(f"{key}={value!r} does not fit {hint}")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_yaml_alone_initialises_a_layer(file: Path) -> None:
    """The yaml's values, with the training that follows, turn a layer with its declared statistics
    into valid factors."""
    node, function = loaded(file)
    hyper_parameters = set(inspect.signature(function).parameters) - GIVEN
    training = Training(lr=1e-3, factor=0.5, warmup_ratio=0.1, steps=20, epochs=1.0, rows=100)
    options = function.settle({key: node[key] for key in hyper_parameters}, training)
    at = with_statistics(function, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factors = function(at, rank=RANK, scaling=ETA, generator=generator(), **options)
    if function.trains == {"W"}:
        assert factors is None
        return
    assert factors.train == function.trains
    assert factors.product().shape == (48, 32) and factors.product().isfinite().all()


def with_statistics(function: Initializer, options: dict[str, Any]) -> Layer:
    """A layer that carries exactly what `function` declares."""
    at = layer()
    request = function.request(RANK, **options)
    carried: dict[str, Any] = dict(at.statistics) | {
        "output_moment": torch.rand(48, generator=generator()).add(0.1)
    }
    carried["population"] = 1000
    if "leading_gradient" in request:
        carried["leading_gradient"] = at.leading_gradient(request["leading_gradient"], generator())
    if "curvature" in request:
        m = request["curvature"].m or 32
        U_S, U_T = (
            torch.linalg.qr(torch.randn(d, min(m, d), generator=generator())).Q for d in (32, 48)
        )
        D = torch.linspace(2, 1, min(m, 32))
        carried["curvature"] = Curvature(
            U_S=U_S,
            D_S=D[: U_S.shape[1]],
            U_T=U_T,
            D_T=D[: U_T.shape[1]],
            core=U_T.T @ at.gradient @ U_S,
            damping_S=1.0,
            damping_T=1.0,
        )
    return Layer(name=at.name, W=at.W, **{name: carried[name] for name in function.needs})
