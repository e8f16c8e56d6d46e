"""The theorems that are measured against their bounds: each measure against a dense or closed form
of its own."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from loraexp.adapter.layer import Layer
from loraexp.statistics import layer_generator
from loraexp.theory import (
    bias,
    estimation,
    initialisation,
    linear,
    operations,
    prediction,
    random_start,
    shifts,
    subspace,
    theorems,
)
from loraexp.theory.meter import prepare


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


# ---- LoRA-One: alignment and bias


def test_the_start_of_theorem_c9_has_its_largest_variance() -> None:
    """`α = (θ/(24√d))^{3κ/2} √(λ_1/(27 d))` where r ≥ 2r*, with θ ξ/(24 r √d) below (lines 882 to
    884)."""
    assert random_start.base_of_c9(100, 8, 4, 0.25, 0.1) == pytest.approx(0.25 / 240)
    assert random_start.base_of_c9(100, 5, 4, 0.25, 0.1) == pytest.approx(
        0.25 * 0.1 / (24 * 5 * 10)
    )
    given = shifts.tasks(1, 100, 100, [2.0, 1.0], 3000)
    layer = given.layers()[0]
    s = torch.linalg.svdvals(layer.gradient)
    alpha = (0.25 / 240) ** float(1.5 * s[0] / s[1]) * math.sqrt(float(s[0]) / 2700)
    generator = layer_generator(0, "x")
    factors = random_start.start_of_c9(layer, generator, rank=4, true_rank=2, theta=0.25, xi=0.1)
    assert float(factors.A.std()) == pytest.approx(alpha, rel=0.1) and not factors.B.any()


def test_the_angle_of_B_is_that_of_dense_matrices() -> None:
    given = shifts.tasks(2, 7, 6, [3.0, 1.0], 40)
    generator = torch.Generator().manual_seed(3)

    # a start whose B does not lie where Theorem 3.1 has it
    def away(layer: Layer, g: torch.Generator):
        factors = random_start.gaussian(layer, g, rank=3, variance=1.0)
        return dataclasses.replace(
            factors, B=torch.randn(6, 3, generator=generator, dtype=torch.float64)
        )

    batch = linear.Batch(given, {"away": away}, 3)
    measured = random_start.angle_of_outputs(batch, 2)(batch)
    for i, layer in enumerate(batch.adapters):
        beyond = torch.linalg.svd(given.left[i] @ given.right[i] @ given.gram[i]).U[:, 2:]
        leading = torch.linalg.svd(layer.lora_B.detach()).U[:, :2]
        assert float(measured[i]) == pytest.approx(
            float(torch.linalg.matrix_norm(beyond.mT @ leading, 2))
        )
        assert float(measured[i]) > 0.1


def test_lora_aligns_within_the_bounds_of_its_theorems() -> None:
    values = random_start.random_start(
        dimensions={"d": 30},
        true_rank=2,
        ranks={"wide": 4, "narrow": 3},
        rows_per_dimension=64,
        theta=0.25,
        xi=0.1,
        lr=0.1,
        seeds=2,
        progress=quiet,
    ).values
    for name in ("wide", "narrow"):
        assert max(values[f"3.1/angle/{name}/d"]) < 1e-10  # type: ignore[arg-type]
        assert max(values[f"C.9/angle over θ/{name}/d"]) < 1  # type: ignore[arg-type]
        assert max(values[f"C.9/steps over bound/{name}/d"]) < 1  # type: ignore[arg-type]


def test_the_bias_of_lora_ga_is_the_root_of_the_outputs() -> None:
    """`‖A0 B0‖ = √k/c²` with c = √γ or γ (appendix F); what rank r cannot hold, from a dense
    SVD."""
    common = {
        "d": 12,
        "outputs": {"few": 16, "many": 64},
        "rank": 4,
        "true_rank": 2,
        "rows": 400,
        "gamma": 16.0,
        "seeds": 2,
        "progress": quiet,
    }
    released = bias.bias_of_lora_ga(gamma_reading="released", **common).values
    paper = bias.bias_of_lora_ga(gamma_reading="paper", **common).values
    assert released["bias/few"] == pytest.approx([4 / 16] * 2) and released[
        "bias/many"
    ] == pytest.approx([8 / 16] * 2)
    assert paper["bias/many"] == pytest.approx([8 / 256] * 2) and released[
        "slope"
    ] == pytest.approx(0.5)
    assert max(released["least without/many"]) < 1e-20 < min(released["least/many"])  # type: ignore[arg-type]


# ---- LoRA-One: a ReLU layer


def test_the_direction_of_glm_tron_leaves_the_derivative_out() -> None:
    given = theorems.ReluSetting(
        d=6, true_rank=2, kappas=[2.0], rows=50_000, signal=20.0, seeds=1
    ).tasks()
    W = given.W + 0.1 * torch.randn(
        1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    X, Y, ours = given.X[0], given.Y[0], (given.X[0] @ W[0].mT).clamp_min(0)
    # the first rows, one at a time
    literal = sum(torch.outer(ours[n] - Y[n], X[n]) for n in range(200))
    few = dataclasses.replace(
        given, X=given.X[:, :200], Y=given.Y[:, :200], rows=200, surrogate=True
    )
    torch.testing.assert_close(few.at(W)[0], literal / 200)
    target = given.W + given.left @ given.right
    mean = dataclasses.replace(given, surrogate=True).at(W)
    # Stein's lemma (slides, line 681)
    assert float((mean - 0.5 * (W - target)).norm() / (W - target).norm()) < 0.05


# ---- LoRA-One: the operations of LoRA-Pro


def test_operations_of_lora_pro_are_counted() -> None:
    """Ten products of r x r with r x d or d x r on the side of A, six on that of B, each two
    operations an entry … as run."""
    d, k, r = 100, 60, 4
    counted = operations.counted_rule(d, k, r)
    base = (
        operations.counted_rule(d + 1, k, r) - counted,
        operations.counted_rule(d, k + 1, r) - counted,
    )
    # 10 + 6 in print: d and k together, whichever way the products are split
    assert sum(base) == 16 * r**2
    assert counted - base[0] * d - base[1] * k <= 155 * r**3 / 6
    assert operations.printed(d, k, r) == 10 * d * 16 + 6 * k * 16 + 155 * 64 / 6
    whole = operations.counted_step(d, k, r)
    # four products of d x k with r: the gradient formed, and the way back
    assert whole >= counted + 4 * 2 * d * k * r


# ---- LoRA-DA


def regression(seed: int = 0, outputs: int = 3) -> estimation.Regression:
    return estimation.Regressions(
        d_in=6, true_rank=2, samples=60, decay=1.0, noise=1.0, distance=2.0
    ).draw(seed, outputs)


def test_the_error_of_an_unrestricted_estimate_is_that_of_the_inverse_wishart() -> None:
    """With A = I maximum likelihood is least squares: `E ‖Ŵ − W‖² = Σ σ² tr(Σ⁻¹)/(N − d − 1)`."""
    given = regression()
    error = given.errors(
        {"all": torch.eye(6, dtype=torch.float64)}, 4000, torch.Generator().manual_seed(0)
    )["all"]
    inverse = float(torch.linalg.inv(given.moment).trace() * given.variances.sum())
    assert error == pytest.approx(inverse / (60 - 6 - 1), rel=0.03)
    # equation 47, without bias
    assert given.bound(torch.eye(6, dtype=torch.float64)) == pytest.approx(inverse / 60)
    assert float(given.shift.norm()) == pytest.approx(2 / 60**0.5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_lora_da_has_the_eigenvectors_of_the_guidance_matrix(outputs: int) -> None:
    """Equations 13 and 19 column by column, and the r smallest eigenvalues by a dense solver."""
    given = regression(outputs=outputs)
    omega = torch.zeros(6, 6, dtype=torch.float64)
    for i in range(outputs):
        # J_[i]⁻¹, the Fisher matrix being block diagonal
        block = torch.linalg.inv(given.moment / given.variances[i])
        omega += block / given.samples - torch.outer(given.shift[:, i], given.shift[:, i])
    torch.testing.assert_close(given.guidance, omega)
    Q = estimation.arms(2)["lora_da"](given.layer("x"), layer_generator(0, "x"))
    assert estimation.sine(Q, torch.linalg.eigh(omega).eigenvectors[:, :2]) < 1e-6
    values = torch.linalg.eigvalsh(omega)
    assert given.bound(Q) == pytest.approx(float(given.shift.square().sum() + values[:2].sum()))


def test_every_arm_is_measured_where_it_exists() -> None:
    made = estimation.frozen_subspaces(
        d_in=8,
        outputs={"one": 1, "many": 4},
        rank=2,
        true_rank=3,
        samples=50,
        decay=1.0,
        noise=1.0,
        distance=4.0,
        draws=20,
        seeds=2,
        progress=quiet,
    ).values
    assert "lora_one/error_one" not in made and len(made["lora_one/error_many"]) == 2  # type: ignore[arg-type]
    assert max(made["remark 3/lora_ga_many"]) < 1e-6 and made["excess bound_many"] > 0  # type: ignore[arg-type,operator]


# ---- LoRA-SB


def test_the_least_distance_of_an_R_is_that_of_the_projections() -> None:
    g = torch.Generator().manual_seed(2)
    A, B, G = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 7), (6, 2), (6, 7)))
    P_A, P_B = A.mT @ torch.linalg.inv(A @ A.mT) @ A, B @ torch.linalg.inv(B.mT @ B) @ B.mT
    assert subspace.least(A, B, G) == pytest.approx(float((G - P_B @ G @ P_A).norm()))
    assert float((subspace.equivalent("closest", A, B, G, 3.0) - P_B @ G @ P_A).norm()) < 1e-12
    torch.testing.assert_close(
        subspace.equivalent("plain", A, B, G, 3.0), 9 * B @ B.mT @ G @ A.mT @ A
    )


def test_the_theorems_of_lora_sb() -> None:
    values = subspace.theorems_of_lora_sb(16, 12, 2, 4, 400, [1.0, 8.0], 2, quiet).values
    for name in ("closest/excess", "closest/change", "first step/orthonormal"):
        assert max(values[name]) < 1e-10  # type: ignore[arg-type]
    assert values["plain/change"] == pytest.approx([63.0] * 2) and min(values["plain/excess"]) > 0  # type: ignore[arg-type]


def test_memory_of_an_initialisation_and_of_a_step() -> None:
    given = [
        "rank=2",
        "alpha=2",
        "task.limit_train=16",
        "task.limit_eval=8",
        "task.max_length=16",
        "init.samples=8",
    ]
    given += ["init.batch_size=4", "train.batch_size=4"]
    made = initialisation.initialisation_memory(
        model="tiny-bert",
        task="tweets",
        device="cpu",
        overrides=given,
        budgets={"layerwise": 0, "whole": 10**9},
        progress=quiet,
    ).values
    weights = 4 * sum(
        p.numel()
        for p in prepare(
            ["model=tiny-bert", "task=tweets", "device=cpu", *given]
        ).model.parameters()
    )
    assert all(value > weights for name, value in made.items() if name.endswith("/peak"))  # type: ignore[operator]
    assert made["layerwise/peak"] < made["whole/peak"]  # type: ignore[operator]
    assert made["layerwise/ratio"] == made["layerwise/peak"] / made["training/peak"]  # type: ignore[operator]


# ---- CG-LoRA


def test_the_bounds_on_the_whitened_spectrum_hold_and_are_tight_without_curvature() -> None:
    """Equation 11 on the linear network, where K-FAC is exact; with S = T = I the whitened gradient
    is the gradient."""
    given = prediction.Regressions(d_in=8, d_out=6, outputs=4, rows=40, decay=1.0, noise=0.1).draw(
        "linear", 0
    )
    found = prediction.bounds_of_spectrum(given, "linear")
    for name, value in found.items():
        assert 0 < value <= 1 + 1e-9, name
    assert found["spectrum/lower_kfac_linear"] == pytest.approx(
        found["spectrum/lower_exact_linear"]
    )
    flat = dataclasses.replace(
        given, D_S=torch.ones_like(given.D_S), D_T=torch.ones_like(given.D_T)
    )
    tight = prediction.bounds_of_spectrum(flat, "linear")
    assert (
        tight["spectrum/lower_kfac_linear"]
        == pytest.approx(1)
        == tight["spectrum/upper_kfac_linear"]
    )
    s_F, s_G = torch.linalg.svdvals(given.F), torch.linalg.svdvals(given.G)
    worst: Tensor = (s_G / (given.D_S.max() * given.D_T.max()).sqrt() / s_F).max()
    assert found["spectrum/lower_kfac_linear"] == pytest.approx(float(worst))
