"""The small-scale experiments: batched steps against single layers, measures against dense ones,
theorems, errors, smoke variants."""

from __future__ import annotations

import inspect
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraexp import config
from loraexp.adapter.adapted import attach
from loraexp.adapter.layer import Factors, Layer
from loraexp.config import ConfigError
from loraexp.initializers.lora_ga import lora_ga
from loraexp.initializers.lora_sb import lora_sb
from loraexp.statistics import layer_generator
from loraexp.sweep import computed, reading
from loraexp.theory import linear, lora_one, prediction, shifts, starts, theorems, toy
from tests.reference import curvature as reference

SWEEPS = (
    "lora_one_fig2",
    "lora_one_fig3",
    "lora_one_fig4",
    "lora_one_theorems",
    "lora_one_theorem42",
    "lora_one_slides_fig1",
    "lora_one_slides_fig2",
    "lora_one_slides_phase_portrait",
    "lora_one_slides_ablation",
    "cg_lora_theorem53",
    "lora_one_alignment",
    "lora_one_bias",
    "lora_one_text_lora_pro_operations",
    "lora_da_theorems",
    "lora_sb_theorems",
)
D, K, ROWS = 7, 6, 40


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(d: int, rows: int, seed: int) -> Tensor:
    return torch.randn(rows, d, generator=generator(seed), dtype=torch.float64)


def given(
    seeds: int = 3, spectrum: tuple[float, ...] = (3.0, 1.0)
) -> tuple[shifts.Tasks, list[Tensor]]:
    """Tasks whose second moments come from inputs that the test holds too."""
    data = [inputs(D, ROWS, 100 + seed) for seed in range(seeds)]
    made = shifts.tasks(seeds, D, K, spectrum, ROWS)
    return (
        shifts.Tasks(
            made.W, made.left, made.right, torch.stack([X.mT @ X / ROWS for X in data]), ROWS
        ),
        data,
    )


STARTS: dict[str, linear.Start] = {
    "random": partial(starts.gaussian, rank=2, variance=0.3),
    "spectral": partial(starts.spectral, rank=2),
    "lora_ga": lambda layer, g: lora_ga(layer, rank=2, scaling=0.7, generator=g, gamma=2.0),
}
FROZEN: dict[str, linear.Start] = {
    "lora_sb": lambda layer, g: lora_sb(layer, rank=2, scaling=0.7, generator=g, step_size=0.1)
}


# ---- the batch is many single layers


def single(
    W: Tensor,
    X: Tensor,
    Y: Tensor,
    factors: Factors,
    rule: str,
    lr: float,
    steps: int,
    **options: Any,
) -> Tensor:
    """The effective weight of one real adapted layer after the real optimizer's steps on autograd's
    gradient of the data loss."""
    model = nn.Sequential(nn.Linear(D, K, bias=False, dtype=torch.float64))
    model[0].weight.data = W.clone()
    adapters = attach(model, {"0": factors}, 0.7)
    optimizer = linear.RULES[rule](adapters, lr=lr, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(X) - Y).square().sum() / (2 * ROWS)).backward()
        optimizer.step()
    return W + next(iter(adapters)).update()


@pytest.mark.parametrize(
    "rule, starts", [("gd", STARTS), ("prec_gd", STARTS), ("imbalanced", STARTS), ("gd", FROZEN)]
)
def test_a_batched_step_is_that_of_single_layers_with_autograd(
    rule: str, starts: dict[str, linear.Start]
) -> None:
    """Every member of the batch, after 5 steps, against its own model, data loss, autograd and
    optimizer."""
    tasks, data = given()
    # its B is zero at first
    arms = {name: start for name, start in starts.items() if rule != "prec_gd" or name != "random"}
    options = {"ratio": 3.0} if rule == "imbalanced" else {}
    batch = linear.Batch(tasks, arms, 2, 0.7)
    trace = linear.descend(
        batch, rule, 0.05, 5, {"risk": linear.risk, "loss": linear.training_loss}, **options
    )
    shifts = tasks.left @ tasks.right
    for i, layer in enumerate(tasks.layers()):
        target = tasks.W[i] + shifts[i]
        for j, (name, start) in enumerate(arms.items()):
            factors = start(layer, layer_generator(i, f"task {i} {name}"))
            W = single(layer.W, data[i], data[i] @ target.mT, factors, rule, 0.05, 5, **options)
            place = i * len(arms) + j
            member = list(batch.adapters)[place]
            torch.testing.assert_close(tasks.W[i] + member.update(), W, rtol=1e-10, atol=1e-12)
            assert float(trace["risk"][-1, place]) == pytest.approx(
                float((W - target).square().sum() / 2), rel=1e-9
            )
            loss = (data[i] @ (W - target).mT).square().sum() / (2 * ROWS)
            assert float(trace["loss"][-1, place]) == pytest.approx(float(loss), rel=1e-9)


def test_the_gradient_that_initializers_see_is_that_of_the_data_loss() -> None:
    tasks, data = given()
    for i, layer in enumerate(tasks.layers()):
        W = layer.W.clone().requires_grad_()
        target = tasks.W[i] + tasks.left[i] @ tasks.right[i]
        ((data[i] @ (W - target).mT).square().sum() / (2 * ROWS)).backward()
        assert W.grad is not None
        torch.testing.assert_close(layer.gradient, W.grad)
        torch.testing.assert_close(layer.summed_gradient, ROWS * W.grad)


def test_second_moments_are_those_of_all_rows() -> None:
    rows = shifts.ROWS + 5
    drawn = shifts.second_moment(rows, 3, generator(1))
    g = generator(1)
    X = torch.cat([torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (shifts.ROWS, 5)])
    torch.testing.assert_close(drawn, X.mT @ X / rows)


def test_measures_are_those_of_dense_matrices() -> None:
    tasks, _ = given()
    batch = linear.Batch(tasks, STARTS, 2, 0.7)
    angle = linear.angle_to_gradient(batch, 2)(batch)
    operator, least = linear.operator_error(batch), linear.least_loss(tasks, 1)
    for i in range(len(tasks)):
        shift = tasks.left[i] @ tasks.right[i]
        root = torch.linalg.cholesky(tasks.gram[i])
        assert float(least[i]) == pytest.approx(
            float(torch.linalg.svdvals(shift @ root)[1:].square().sum() / 2)
        )
        for j in range(len(STARTS)):
            layer = list(batch.adapters)[i * len(STARTS) + j]
            error = layer.update() - shift
            assert float(operator[i * len(STARTS) + j]) == pytest.approx(
                float(torch.linalg.matrix_norm(error, 2))
            )
            beyond = torch.linalg.svd(tasks.gradient[i]).Vh[2:]
            leading = torch.linalg.svd(layer.lora_A.detach()).Vh[:2]
            assert float(angle[i * len(STARTS) + j]) == pytest.approx(
                float(torch.linalg.matrix_norm(beyond @ leading.mT, 2)), abs=1e-12
            )
    assert linear.least_risk([1, 3, 2], 1) == 2.5


def test_starts_are_the_papers() -> None:
    """(LoRA-init) has the variance that is asked for, (Spectral-init) the best approximation of −G,
    whole where the rank suffices."""
    tasks, _ = given()
    layer = tasks.layers()[0]
    spectral = starts.spectral(layer, generator(), rank=2, gamma=2.0)
    torch.testing.assert_close(spectral.product(), -2 * layer.gradient)
    assert spectral.start == "shifted"
    wide = Layer(name="x", W=torch.zeros(4, 5000, dtype=torch.float64))
    random = starts.gaussian(wide, generator(), rank=4, variance=0.01)
    assert not random.B.any() and float(random.A.var()) == pytest.approx(0.01, rel=0.05)
    # normal, not uniform
    assert float((random.A.abs() < 0.1).double().mean()) == pytest.approx(0.683, abs=0.01)
    frozen = starts.subspace_of_gradient(layer, generator(), rank=2)
    assert frozen.train == {"R"}
    torch.testing.assert_close(frozen.product(), -layer.gradient)


# ---- divergence, errors


def test_a_diverging_rate_leaves_the_other_layers_alone() -> None:
    """Of two arms one diverges: its curve ends, the step is recorded, and the other goes on as it
    would alone."""
    tasks, _ = given()
    small, large = (
        partial(starts.gaussian, rank=2, variance=0.01),
        partial(starts.gaussian, rank=2, variance=1e4),
    )
    both = linear.descend(
        linear.Batch(tasks, {"small": small, "large": large}, 2),
        "gd",
        0.05,
        30,
        {"risk": linear.risk},
    )
    alone = linear.descend(
        linear.Batch(tasks, {"small": small}, 2), "gd", 0.05, 30, {"risk": linear.risk}
    )
    assert both.diverged_at[::2] == [None] * 3 and all(
        x is not None and 0 < x < 10 for x in both.diverged_at[1::2]
    )
    torch.testing.assert_close(both["risk"][:, ::2], alone["risk"])
    assert both["risk"][-1, 1::2].isnan().all() and both["risk"][0].isfinite().all()


def test_equation_91s_scaling_is_inside_the_factors_of_lora_ga() -> None:
    """`α/√r A0 B0` is the offset, for both readings of its constant: k^(1/4)/c and k^(1/4)/√c."""
    tasks, _ = given(1)
    layer = tasks.layers()[0]
    for offset, c in (
        (starts.Offset(gamma=4.0), 4.0),
        (starts.Offset(gamma=4.0, gamma_reading="released"), 2.0),
    ):
        plain = offset.start(layer, generator(), rank=2)
        scaled = offset.start(layer, generator(), rank=2, scaling=16 / 2**0.5)
        assert float(torch.linalg.matrix_norm(plain.product(), 2)) == pytest.approx(K**0.5 / c**2)
        torch.testing.assert_close(scaled.product(), 16 / 2**0.5 * plain.product())


def test_a_diverged_arm_is_drawn_to_its_last_number() -> None:
    made = lora_one.figure4(
        d=12,
        rows=400,
        cases={"under": [2, 3]},
        spectrum=[40, 30, 20],
        lr=0.5,
        stable_lr=0.01,
        gamma=16.0,
        scale=1.0,
        steps=20,
        plain_steps=20,
        seeds=2,
        progress=quiet,
    )
    curve = next(
        c
        for c in made.curves
        if "GD, η = 0.5" in c.panel and "precond" not in c.panel and c.label == "LoRA-One"
    )
    assert curve.diverged_at == made.values["diverged_at/under/gd/lora_one"] > 0
    assert (
        made.values["diverged/under/gd/lora_one"] == 1.0
        and made.values["diverged/under/prec_gd/lora_one"] == 0.0
    )
    level = next(c for c in made.curves if c.kind == "level")
    assert level.y[0] == pytest.approx(math.log10(200)) and made.values["infimum/under"] == 200


@pytest.mark.parametrize(
    "name, word, message",
    [
        ("lora_one_fig2", "compute.rank=60", "rank=60: expected 1 to 24"),
        ("lora_one_fig2", "compute.true_rank=30", "expected at most 24 singular values"),
        ("lora_one_fig2", "compute.variances=[0.1, 1]", "expected the largest first"),
        (
            "lora_one_fig4",
            "compute.cases={under: [4, 9]}",
            "cases.under=[4, 9]: expected [r, r*] with an r* of 1 to 8",
        ),
        ("lora_one_fig3", "compute.shown=7", "shown=7: expected at most seeds=6"),
        ("lora_one_fig3", "compute.lr=0", "expected a rate above 0"),
        ("cg_lora_theorem53", "compute.rank=9", "rank=9: expected 1 to 6"),
        ("cg_lora_theorem53", "compute.rows=10", "rows=10: expected at least d_in=16"),
        (
            "cg_lora_theorem53",
            "compute.arms={lora_on: {}}",
            "init=lora_on: there is no such initializer; nearest: lora_one",
        ),
        (
            "cg_lora_theorem53",
            "compute.arms={lora_ga: {gama: 1}}",
            "init.gama: there is no such key; nearest: gamma",
        ),
    ],
)
def test_mistakes_are_one_line(name: str, word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        computed.run(reading.load(name, "smoke", [word]), tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_keyword_or_rule_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match="lora_one_fig2.yaml: compute.ranks: there is no such key; nearest: rank"
    ):
        computed.check(reading.load("lora_one_fig2", "smoke", ["compute.ranks=4"]))
    tasks, _ = given(1)
    with pytest.raises(ConfigError, match="rule=prec: there is no such rule; nearest: prec_gd"):
        linear.descend(linear.Batch(tasks, STARTS, 2), "prec", 0.1, 3, {})


# ---- the toy


def test_grouped_keywords_are_flat_keys() -> None:
    """A yaml's keys are the fields of what a function takes, defaults and errors among them."""
    names = inspect.signature(lora_one.figure4).parameters
    assert {"d", "cases", "lr", "gamma", "scale", "damping"} <= set(names)
    assert not {"problem", "rates", "offset"} & set(names)
    assert names["damping"].default == 0.0 and names["gamma_reading"].default == "paper"
    assert names["lr"].default is inspect.Parameter.empty
    checked = reading.load("lora_one_fig4", "smoke", ["compute.gamma_reading=both"])
    with pytest.raises(ConfigError, match="gamma_reading=both: expected paper or released"):
        computed.check(checked)
    with pytest.raises(TypeError, match="missing a required argument: 'seeds'"):
        lora_one.figure4(d=12, rows=400, cases={}, spectrum=[1.0], lr=0.5)
    keywords, _ = computed.configuration(reading.load("lora_one_fig4"))
    assert keywords["damping"] == 0.0 and keywords["alpha"] is None


def test_the_toy_is_the_papers_loss() -> None:
    """Ten steps of the batch against autograd on `1/8 Σ (y_i − b x_iᵀa)²`; LoRA-One's start is
    `g/√‖g‖, √‖g‖`, up to a common sign."""
    tasks = toy.toy_tasks(2, 4)
    X = torch.randn(4, 2, generator=generator(5), dtype=torch.float64)
    tasks = shifts.Tasks(tasks.W, tasks.left, tasks.right, (X.mT @ X / 4).expand(2, 2, 2), 4)
    batch = linear.Batch(tasks, {"spectral": partial(starts.spectral, rank=1)}, 1)
    y = X @ torch.tensor(toy.SHIFT, dtype=torch.float64)
    g = X.mT @ y / 4
    start = toy.parameters(batch)[0]
    sign = start[2].sign()
    torch.testing.assert_close(
        sign * start, torch.cat([g / g.norm().sqrt(), g.norm().sqrt()[None]])
    )
    at = start.clone()
    for _ in range(10):
        at = at.detach().requires_grad_()
        ((y - at[2] * (X @ at[:2])).square().sum() / 8).backward()
        assert at.grad is not None
        at = at - 0.1 * at.grad
    trace = linear.descend(batch, "gd", 0.1, 10, {"at": toy.parameters})
    torch.testing.assert_close(trace["at"][-1, 0], at.detach())


def test_both_one_step_gradients_of_the_toy_are_those_of_its_rows() -> None:
    """`¼ Σ y_i² x_i` as the text prints it, `¼ Σ y_i x_i` as the loss has it; each start is
    `g/√‖g‖, √‖g‖` up to a common sign."""
    tasks = toy.toy_tasks(3, 4)
    w = torch.tensor(toy.SHIFT, dtype=torch.float64)
    batch = linear.Batch(tasks, toy.starts(tasks), 1)
    start = toy.parameters(batch).reshape(3, 3, 3)  # (seeds, arms, …)
    for seed, X in enumerate(tasks.X):
        torch.testing.assert_close(X.mT @ X / 4, tasks.gram[seed])
        for arm, power in ((0, 2), (1, 1)):
            g = sum((w @ x) ** power * x for x in X) / 4
            expected = torch.cat([g / g.norm().sqrt(), g.norm().sqrt()[None]])
            torch.testing.assert_close(start[seed, arm] * start[seed, arm, 2].sign(), expected)
        assert start[seed, 2, 2] == 0


def test_steps_until_a_minimizer_are_those_of_the_distance_at_every_step() -> None:
    made = toy.trajectories(6, 1, 4, 0.1, 200, 0.01, False, quiet)
    tasks = toy.toy_tasks(6, 4)
    batch = linear.Batch(tasks, toy.starts(tasks), 1)
    trace = linear.descend(batch, "gd", 0.1, 200, {"at": toy.parameters})
    distance = toy.distance_to_minimizers(trace["at"].nan_to_num(1e6))
    until = linear.by_seed(linear.first_step(trace.steps, distance <= 0.01).clamp_max(200), 3)
    for j, name in enumerate(toy.STARTS):
        assert made.values[f"steps/{name}"] == until[:, j].tolist()
    assert made.values["squared/fewer"] == float((until[:, 0] < until[:, 2]).double().mean())


def test_the_distance_to_the_minimizers_is_the_least_over_the_set() -> None:
    points = 2 * torch.randn(40, 3, generator=generator(3), dtype=torch.float64)
    t = torch.cat([torch.linspace(-9, -0.05, 200_001), torch.linspace(0.05, 9, 200_001)]).double()
    near = torch.stack(
        [torch.stack([2 / t, 1 / t, t], -1).sub(p).norm(dim=-1).amin() for p in points]
    )
    torch.testing.assert_close(toy.distance_to_minimizers(points), near, rtol=1e-5, atol=1e-6)
    assert (
        float(toy.distance_to_minimizers(torch.tensor([[1.0, 0.5, 2.0]], dtype=torch.float64)))
        < 1e-7
    )


# ---- the theorems


def test_concentrated_second_moments_have_their_epsilon() -> None:
    gram = theorems.concentrated(9, 0.03)(generator())
    assert float(
        torch.linalg.matrix_norm(gram - torch.eye(9, dtype=torch.float64), 2)
    ) == pytest.approx(0.03)
    assert theorems.spectrum(3, 16.0) == [1.0, 0.25, 0.0625]


def test_the_relu_gradient_is_autograds() -> None:
    tasks = theorems.ReluSetting(
        d=5, true_rank=2, kappas=[1.0, 3.0], rows=300, signal=2.0, seeds=1
    ).tasks()
    batch = theorems.ReluBatch(tasks, {"spectral": partial(starts.spectral, rank=2, gamma=2.0)}, 2)
    found = batch.gradients()
    for i, layer in enumerate(batch.adapters):
        target = tasks.W[i] + tasks.left[i] @ tasks.right[i]
        loss = (
            layer(tasks.X[i]).clamp_min(0) - (tasks.X[i] @ target.mT).clamp_min(0)
        ).square().sum() / 600
        grads = torch.autograd.grad(loss, [layer.lora_A, layer.lora_B])
        torch.testing.assert_close(found["A"][i], grads[0])
        torch.testing.assert_close(found["B"][i], grads[1])


def test_the_rate_does_not_depend_on_kappa_with_the_preconditioner() -> None:
    made = theorems.linear_rates(
        d=10,
        rank=4,
        true_rank=3,
        kappas=[1.0, 32.0],
        rows=300,
        steps=120,
        rate=0.4,
        seeds=2,
        progress=quiet,
    )
    assert made.values["steps/prec_gd/growth"] < 1.2 < 4 < made.values["steps/gd/growth"]
    for name, value in made.values.items():
        if "/worst/" in name or name.startswith("3.3/"):
            assert max(value) < 1, name


@pytest.mark.parametrize("kind", prediction.NETWORKS)
def test_the_objective_is_the_projectors_transcription(kind: str) -> None:
    """On the linear network against the slow reference; on both, J against finite differences and G
    against J."""
    p = prediction.Regressions(d_in=6, d_out=5, outputs=3, rows=12, decay=1.0, noise=0.1).draw(
        kind, 0
    )
    W = p.model[0].weight.detach()
    step = 1e-6 * torch.randn(W.shape, generator=generator(1), dtype=torch.float64)
    moved = torch.func.functional_call(p.model, {"0.weight": W + step}, (p.x,)) - p.model(p.x)
    torch.testing.assert_close(
        p.J.flatten(1) @ step.flatten(), moved.detach().flatten(), rtol=1e-4, atol=1e-9
    )
    factors = Factors(
        A=torch.randn(2, 6, generator=generator(2)).double(),
        B=torch.randn(5, 2, generator=generator(3)).double(),
        start="shifted",
    )
    if kind == "linear":
        identity = torch.eye(5, dtype=torch.float64)
        objective = reference.prediction_alignment(
            identity, p.x.mT, (p.y - p.model(p.x)).detach().mT, factors.A, factors.B
        )
        whole = prediction.basis(p.J.flatten(1)).mT @ p.Z
        assert prediction.exact_share(p, factors) == pytest.approx(
            float(objective / whole.norm()), rel=1e-9
        )
        assert prediction.kfac_share(p, factors) == pytest.approx(
            float(objective / whole.norm()), rel=1e-9
        )
    assert prediction.exact_share(p, None) == 0.0
    assert 0 < prediction.exact_share(p, factors) < 1


def test_every_initializer_has_a_row() -> None:
    made = reading.load("cg_lora_theorem53")
    assert made.compute is not None
    named = {(given or {}).get("init", arm) for arm, given in made.compute["arms"].items()}
    skipped = {row for row, about in made.rows.items() if about.skip}
    assert named | skipped == set(config.names("init"))
    assert set(made.compute["arms"]) | skipped | {"bound_r", "bound_2r"} == set(made.rows)


# ---- the sweeps


@pytest.mark.parametrize("name", SWEEPS)
def test_smoke_variants_make_every_claimed_value_and_panel_in_a_second(
    name: str, tmp_path: Path
) -> None:
    made = reading.load(name, "smoke", [f"output_root={tmp_path}"])
    began = time.process_time()
    into = computed.run(made, made.output_root, progress=quiet)
    assert time.process_time() - began < 5  # under a second on an idle core
    found = computed.load(into)
    assert found is not None
    result = found[1]
    for claim in made.claims:
        for value in (claim.value, claim.minus, claim.over):
            assert value is None or value in result.values, value
    panels = {c.panel for c in result.curves} | {s.panel for s in result.surfaces}
    assert panels == set(result.axes)
    assert {panel for plot in made.plots for panel in plot.panels or []} <= panels
    for row in made.rows:
        for column in made.columns:
            assert made.skipped(row, column) or f"{row}/{column}" in result.values


def test_seeds_decide_everything(tmp_path: Path) -> None:
    made = [
        computed.load(computed.run(reading.load("lora_one_fig3", "smoke"), tmp_path / name))
        for name in ("a", "b")
    ]
    assert made[0] is not None and made[1] is not None and made[0][1] == made[1][1]
