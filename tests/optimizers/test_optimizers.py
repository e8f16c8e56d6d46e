"""Training rules against the papers' formulas, PyTorch's AdamW, PEFT's optimizers and the
theorems."""

from __future__ import annotations

import importlib
import inspect
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from loraexp.adapter.adapted import Adapters, attach, train_everything
from loraexp.adapter.formats import save_peft
from loraexp.initializers import Factors
from loraexp.optimizers import rules
from loraexp.optimizers.adamw import adamw
from loraexp.optimizers.lora_fa import lora_fa, rescaled_gradient
from loraexp.optimizers.lora_plus import lora_plus
from loraexp.optimizers.lora_pro import equivalent_gradients, lora_pro, lora_pro_low_memory
from loraexp.optimizers.p_lora import p_lora, precondition
from loraexp.optimizers.sgd import sgd
from tests.reference import optimizers as reference

YAMLS = sorted((Path(__file__).parents[2] / "conf" / "optimizer").glob("*.yaml"))
# (d_out, d_in) of the layers: a stack of three and one alone
SHAPES = ((12, 10), (12, 10), (12, 10), (9, 12))
RANK, SCALING = 4, 2.5


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out, bias=False) for d_out, d_in in SHAPES)
        self.head = nn.Linear(9, 3)


def adapted(
    train: str = "AB",
    *,
    seed: int = 0,
    R: bool = False,
    zero_B: bool = False,
    dtype: torch.dtype = torch.float32,
    head: bool = True,
) -> Adapters:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    factors = {
        f"layers.{i}": Factors(
            A=random(RANK, d_in),
            B=random(d_out, RANK) * (not zero_B),
            R=random(RANK, RANK) if R else None,
            start="pretrained",
            train=frozenset(train),
        )
        for i, (d_out, d_in) in enumerate(SHAPES)
    }
    torch.manual_seed(seed)
    return attach(Model(), factors, SCALING, ["head"] if head else [])


def set_gradients(adapters: Adapters, seed: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in adapters.trainable():
        p.grad = size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def trained(make: Any, adapters: Adapters, steps: int = 5, **keywords: Any) -> dict[str, Tensor]:
    optimizer = make(adapters, **({"lr": 1e-2, "weight_decay": 0.1} | keywords))
    for step in range(steps):
        set_gradients(adapters, step)
        optimizer.step()
    return adapters.state()


def torch_adamw(groups: Any, **keywords: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True, **({"lr": 1e-2, "weight_decay": 0.1} | keywords))


def assert_close(
    mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-7
) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(
            mine[name],
            theirs[name],
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


# --------------------------------------------------------------------------------------------------
# reductions to AdamW


@pytest.mark.parametrize("train", ["AB", "B", "R", "ABR", ""])
def test_adamw_is_torchs_on_whatever_trains(train: str) -> None:
    adapters = adapted(train, R="R" in train)
    theirs = adapted(train, R="R" in train)
    optimizer = torch_adamw(theirs.trainable())
    for step in range(5):
        set_gradients(theirs, step)
        optimizer.step()
    frozen = {
        n: p.detach().clone() for n, p in adapters.model.named_parameters() if not p.requires_grad
    }
    assert_close(trained(adamw, adapters), theirs.state())
    assert all(
        torch.equal(p, frozen[n]) for n, p in adapters.model.named_parameters() if n in frozen
    )


def test_adamw_is_the_papers() -> None:
    adapters = adapted(dtype=torch.float64, head=False)
    start = adapters.state()
    gradients: dict[str, list[Tensor]] = {name: [] for name in start}
    for step in range(5):
        set_gradients(adapters, step)
        for name, p in adapters.named_trainable().items():
            gradients[name].append(p.grad.clone())
    expected = {
        n: reference.adamw(start[n], gradients[n], 1e-2, 0.1, (0.8, 0.95), 1e-6) for n in start
    }
    assert_close(trained(adamw, adapters, beta1=0.8, beta2=0.95, eps=1e-6), expected, 1e-12)


def test_full_training_is_torchs_and_skips_weights_without_a_gradient() -> None:
    torch.manual_seed(0)
    mine, theirs = train_everything(Model()), train_everything(Model())
    theirs.model.load_state_dict(mine.model.state_dict())
    a, b = adamw(mine, lr=1e-2, weight_decay=0.1), torch_adamw(theirs.trainable())
    for step in range(4):
        for adapters, optimizer in ((mine, a), (theirs, b)):
            set_gradients(adapters, step)
            adapters.others["layers.1.weight"].grad = None
            optimizer.step()
    assert_close(mine.state(), theirs.state())


def test_head_has_its_own_rate() -> None:
    adapters = adapted()
    optimizer = adamw(adapters, lr=1e-2, weight_decay=0.0, head_lr=0.5)
    assert [(g["lr"], g["initial_lr"]) for g in optimizer.param_groups] == [
        (1e-2, 1e-2),
        (0.5, 0.5),
    ]
    assert optimizer.param_groups[1]["params"] == list(adapters.others.values())
    assert {g["lr"] for g in adamw(adapted(), lr=1e-2, weight_decay=0.0).param_groups} == {1e-2}


def test_lora_plus_with_ratio_one_is_adamw_and_otherwise_two_rates() -> None:
    assert_close(trained(lora_plus, adapted(), ratio=1.0), trained(adamw, adapted()), 0)
    theirs = adapted()
    A, B = ([getattr(layer, f"lora_{f}") for layer in theirs] for f in "AB")
    optimizer = torch_adamw(
        [{"params": A}, {"params": B, "lr": 16e-2}, {"params": list(theirs.others.values())}]
    )
    for step in range(5):
        set_gradients(theirs, step)
        optimizer.step()
    assert_close(trained(lora_plus, adapted()), theirs.state())


def orthonormal() -> Adapters:
    adapters = adapted(dtype=torch.float64)
    for layer in adapters:
        layer.lora_A.data = torch.linalg.qr(layer.lora_A.data.T).Q.T.contiguous()
        layer.lora_B.data = torch.linalg.qr(layer.lora_B.data).Q.contiguous()
    return adapters


@pytest.mark.parametrize("base, other", [("adamw", adamw), ("gd", sgd)])
def test_p_lora_with_orthonormal_factors_and_no_damping_is_its_base(base: str, other: Any) -> None:
    keywords: dict[str, Any] = {"momentum": 0.0} if base == "gd" else {}
    mine = trained(p_lora, orthonormal(), steps=1, base=base, damping=0.0)
    assert_close(mine, trained(other, orthonormal(), steps=1, **keywords), 1e-7)


def test_lora_pro_low_memory_with_a_zero_B_is_adamw_at_the_first_step() -> None:
    mine = trained(lora_pro_low_memory, adapted(zero_B=True), steps=1)
    assert_close(mine, trained(adamw, adapted(zero_B=True), steps=1))


def test_sgd_is_torchs_without_weight_decay_which_is_decoupled() -> None:
    theirs = adapted()
    optimizer = torch.optim.SGD(theirs.trainable(), lr=1e-2, momentum=0.9)
    for step in range(5):
        set_gradients(theirs, step)
        optimizer.step()
    assert_close(trained(sgd, adapted(), weight_decay=0.0), theirs.state())
    adapters = adapted()
    expected = {
        n: 0.98 * p.detach() - 0.2 * p.detach() for n, p in adapters.named_trainable().items()
    }
    optimizer = sgd(adapters, lr=0.2, weight_decay=0.1, momentum=0.0)
    for p in adapters.trainable():
        p.grad = p.detach().clone()
    optimizer.step()
    assert_close(adapters.state(), expected, 1e-6)
    # a step counter for the messages, and nothing else
    assert optimizer.state_bytes() == 4 * len(optimizer.state)


# --------------------------------------------------------------------------------------------------
# pure updates


def problem(
    seed: int, *batch: int, d_out: int = 11, d_in: int = 9, r: int = 3, scaling: float = SCALING
) -> tuple[Tensor, ...]:
    """A, B, G and the gradients of A and B that belong to G."""
    generator = torch.Generator().manual_seed(seed)
    A, B, G = (
        torch.randn(*batch, *s, generator=generator, dtype=torch.float64)
        for s in ((r, d_in), (d_out, r), (d_out, d_in))
    )
    return A, B, G, scaling * B.mT @ G, scaling * G @ A.mT


@pytest.mark.parametrize("damping", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_precondition_is_the_papers_in_batches(seed: int, damping: float) -> None:
    A, B, _, grad_A, grad_B = problem(seed, 2, 3)
    mine_A, mine_B = precondition(A, B, grad_A, grad_B, damping)
    for i in range(2):
        for j in range(3):
            one_A, one_B = reference.precondition(
                A[i, j], B[i, j], grad_A[i, j], grad_B[i, j], damping
            )
            torch.testing.assert_close(mine_A[i, j], one_A)
            torch.testing.assert_close(mine_B[i, j], one_B)
            alone = precondition(A[i, j], B[i, j], grad_A[i, j], grad_B[i, j], damping)
            torch.testing.assert_close(alone[0], one_A)


def test_precondition_without_damping_takes_the_pseudo_inverse() -> None:
    A, B, G, _, _ = problem(0)
    A[2], B[:, 2] = A[1], 0.0
    grad_A, grad_B = B.T @ G, G @ A.T
    for mine, literal in zip(
        precondition(A, B, grad_A, grad_B, 0.0),
        reference.precondition(A, B, grad_A, grad_B, 0.0),
        strict=True,
    ):
        torch.testing.assert_close(mine, literal)
    zero_A, zero_B = precondition(A, torch.zeros_like(B), torch.zeros_like(grad_A), grad_B, 0.0)
    assert not zero_A.any() and zero_B.isfinite().all()


@pytest.mark.parametrize("c", [1e-2, 7.0, 300.0])
def test_a_p_lora_step_does_not_see_the_scale_split(c: float) -> None:
    def product_after_a_step(A: Tensor, B: Tensor) -> Tensor:
        adapters = linear_adapter(A, B)
        layer = next(iter(adapters))
        optimizer = p_lora(adapters, lr=0.3, weight_decay=0.0, base="gd", damping=0.0)
        (layer(x) - y).square().sum().backward()
        optimizer.step()
        return layer.update()

    A, B, target, _, _ = problem(3)
    x = torch.randn(20, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = x @ target.T
    torch.testing.assert_close(
        product_after_a_step(c * A, B / c), product_after_a_step(A, B), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("seed", range(5))
def test_equivalent_gradients_are_the_papers_and_nearest_to_the_full_gradient(seed: int) -> None:
    A, B, G, grad_A, grad_B = problem(seed)
    mine_A, mine_B = equivalent_gradients(A, B, grad_A, grad_B, SCALING)
    literal_A, literal_B, X = reference.lora_pro(A, B, grad_A, grad_B, SCALING)
    torch.testing.assert_close(mine_A, literal_A)
    torch.testing.assert_close(mine_B, literal_B)
    torch.testing.assert_close(
        SCALING * (B @ mine_A + mine_B @ A), reference.closest_product(A, B, G, SCALING)
    )
    mine_X = (mine_A - torch.linalg.inv(B.T @ B) @ grad_A / SCALING**2) @ torch.linalg.pinv(A)
    right = -torch.linalg.inv(B.T @ B) @ grad_A @ A.T / SCALING**2
    torch.testing.assert_close(B.T @ B @ mine_X + mine_X @ A @ A.T, right)
    torch.testing.assert_close(mine_X, X)
    # Of all minimisers (g_A + Z A, g_B − B Z) it is the one nearest to the ordinary gradients.
    distance = (mine_A - grad_A).square().sum() + (mine_B - grad_B).square().sum()
    for k in range(5):
        Z = 1e-2 * torch.randn(
            3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)
        )
        other = (mine_A + Z @ A - grad_A).square().sum() + (mine_B - B @ Z - grad_B).square().sum()
        assert other > distance


def test_equivalent_gradients_in_batches() -> None:
    A, B, _, grad_A, grad_B = problem(7, 2, 3)
    mine_A, mine_B = equivalent_gradients(A, B, grad_A, grad_B, SCALING)
    one_A, one_B, _ = reference.lora_pro(A[1, 2], B[1, 2], grad_A[1, 2], grad_B[1, 2], SCALING)
    torch.testing.assert_close(mine_A[1, 2], one_A)
    torch.testing.assert_close(mine_B[1, 2], one_B)


def test_the_move_of_the_weight_does_not_depend_on_the_scaling() -> None:
    moves = []
    for scaling in (0.5, 2.0, 16.0):
        A, B, _, grad_A, grad_B = problem(1, scaling=scaling)
        new_A, new_B = equivalent_gradients(A, B, grad_A, grad_B, scaling)
        moves.append(scaling * (B @ new_A + new_B @ A))
    torch.testing.assert_close(moves[0], moves[1])
    torch.testing.assert_close(moves[0], moves[2])


@pytest.mark.parametrize("seed", range(5))
def test_equivalent_gradients_descend(seed: int) -> None:
    A, B, target, _, _ = problem(seed)

    def loss(A: Tensor, B: Tensor) -> Tensor:
        return (SCALING * B @ A - target).square().sum()

    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    loss(a, b).backward()
    new_A, new_B = equivalent_gradients(A, B, a.grad, b.grad, SCALING)
    assert (a.grad * new_A).sum() + (b.grad * new_B).sum() >= 0
    before = loss(A, B)
    for lr in (1e-5, 1e-4, 1e-3):
        assert loss(A - lr * new_A, B - lr * new_B) < before


def test_a_zero_B_takes_the_plain_gradient_for_its_layer_alone() -> None:
    A, B, _, grad_A, grad_B = problem(2, 3)
    B[1], grad_A[1] = 0, 0
    new_A, new_B = equivalent_gradients(A, B, grad_A, grad_B, SCALING)
    assert torch.equal(new_A[1], grad_A[1]) and torch.equal(new_B[1], grad_B[1])
    torch.testing.assert_close(
        new_A[2], reference.lora_pro(A[2], B[2], grad_A[2], grad_B[2], SCALING)[0]
    )


def test_relative_damping_does_not_see_the_size_of_B() -> None:
    A, B, G, _, _ = problem(4)
    moves = []
    for size in (1.0, 1e-5):
        b = size * B
        new_A, new_B = equivalent_gradients(A, b, b.T @ G, G @ A.T, 1.0, damping=1e-3)
        moves.append(b @ new_A + new_B @ A)
    assert (moves[0] - reference.closest_product(A, B, G, 1.0)).norm() < 2e-2 * moves[0].norm()
    assert (moves[1] - moves[0]).norm() < 2e-2 * moves[0].norm()


def test_lora_pro_is_the_papers_adamw() -> None:
    adapters = adapted(dtype=torch.float64)
    start = {
        name: (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())
        for name, layer in adapters.layers.items()
    }
    gradients: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in start}
    for step in range(4):
        set_gradients(adapters, step)
        for name, layer in adapters.layers.items():
            gradients[name].append((layer.lora_A.grad.clone(), layer.lora_B.grad.clone()))
    head = {n: p.detach().clone() for n, p in adapters.others.items()}
    trained(lora_pro, adapters, steps=4, lr=1e-3, weight_decay=0.1, damping=0.0)
    for name, layer in adapters.layers.items():
        A, B = reference.lora_pro_adamw(*start[name], gradients[name], SCALING, 1e-3, 0.1, 1e-8)
        torch.testing.assert_close(layer.lora_A.detach(), A, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(layer.lora_B.detach(), B, rtol=1e-7, atol=1e-9)
    assert all(not torch.equal(p, head[n]) for n, p in adapters.others.items())


def test_lora_pros_first_step_from_a_zero_B_is_the_released_codes_by_name() -> None:
    A, _, G = (x.double() for x in problem(0)[:3])
    adapters = linear_adapter(A, torch.zeros(len(G), len(A), dtype=torch.float64), SCALING)
    layer = next(iter(adapters))
    layer.lora_A.grad, layer.lora_B.grad = torch.zeros_like(A), SCALING * G @ A.T
    lora_pro(adapters, lr=1e-2, weight_decay=0.0, damping=0.0, first_step="limit").step()
    expected = reference.lora_pro_first_step(A, G, SCALING, 1e-2)
    torch.testing.assert_close(layer.lora_A.detach(), expected[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(layer.lora_B.detach(), expected[1], rtol=1e-6, atol=1e-9)
    B, grad = torch.zeros(len(G), len(A), dtype=torch.float64), SCALING * G @ A.T
    ours = equivalent_gradients(A, B, torch.zeros_like(A), grad, SCALING, first_step="limit")
    assert not ours[0].any()
    torch.testing.assert_close(ours[1], grad @ torch.linalg.pinv(A @ A.T) / SCALING**2)


def test_lora_pro_keeps_its_moments_in_bf16_where_asked() -> None:
    """Half the state; m and v are those of float32, rounded once a step, and the resume is bit by
    bit."""
    wide, narrow = adapted(head=False), adapted(head=False)
    exact, ours = (
        lora_pro(x, lr=1e-3, weight_decay=0.0, moments=m)
        for x, m in ((wide, "float32"), (narrow, "bfloat16"))
    )
    weights = sum(d_out * d_in for d_out, d_in in SHAPES)
    assert (exact.state_bytes(), ours.state_bytes()) == (
        2 * 4 * weights + 2 * 4,
        2 * 2 * weights + 2 * 4,
    )
    for adapters, optimizer in ((wide, exact), (narrow, ours)):
        set_gradients(adapters, 0)
        optimizer.step()
    for key, theirs in zip(ours.state, exact.state, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            if name in ours.state[key]:
                assert ours.state[key][name].dtype == torch.bfloat16
                assert torch.equal(ours.state[key][name], exact.state[theirs][name].bfloat16())
    # the direction of a first step is a sign, whatever the rounding
    assert_close(narrow.state(), wide.state(), 1e-4)


def test_p_lora_as_its_authors_ran_it() -> None:
    adapters = adapted(dtype=torch.float64, head=False)
    start = {
        n: (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())
        for n, layer in adapters.layers.items()
    }
    gradients: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in start}
    for step in range(3):
        set_gradients(adapters, step)
        for name, layer in adapters.layers.items():
            gradients[name].append((layer.lora_A.grad.clone(), layer.lora_B.grad.clone()))
    options = {"lr": 1e-2, "weight_decay": 0.1, "damping": 1e-6, "eps": 1e-6}
    trained(p_lora, adapters, steps=3, flavour="released", **options)
    for name, layer in adapters.layers.items():
        A, B = reference.p_lora_released(*start[name], gradients[name], *options.values())
        torch.testing.assert_close(layer.lora_A.detach(), A, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(layer.lora_B.detach(), B, rtol=1e-7, atol=1e-9)
    one, other = (
        trained(p_lora, adapted(), base="gd", flavour=flavour) for flavour in ("paper", "released")
    )
    assert_close(one, other)  # its gradient descent is the paper's


def test_lora_pro_from_a_zero_B_moves_by_plain_gradient_and_then_stays_bounded() -> None:
    adapters = linear_adapter(problem(0)[0].float(), torch.zeros(11, 3))
    layer = next(iter(adapters))
    target = problem(0)[2].float()
    optimizer = lora_pro(adapters, lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer.scaling * layer.lora_B @ layer.lora_A - target).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[1] < losses[0] and losses[-1] < 0.8 * losses[0] and max(losses) == losses[0]


# --------------------------------------------------------------------------------------------------
# convergence


def linear_adapter(A: Tensor, B: Tensor, scaling: float = 1.0) -> Adapters:
    model = nn.Sequential(nn.Linear(A.shape[1], B.shape[0], bias=False, dtype=A.dtype))
    nn.init.zeros_(model[0].weight)
    return attach(model, {"0": Factors(A=A.clone(), B=B.clone(), start="shifted")}, scaling)


def iterations_to(kappa: float, make: Any, lr: float, limit: int, **keywords: Any) -> int:
    """LoRA-One's linear problem (Assumptions 2.1-2.3) from its spectral initialisation: steps to
    `1e-6 λ*_r`.

    The sample covariance is `I + ε E` with ε at half the bound of Theorem C.21.
    """
    d_in, d_out, r = 16, 12, 4
    generator = torch.Generator().manual_seed(5)
    normal = {"generator": generator, "dtype": torch.float64}
    U, V = (
        torch.linalg.qr(torch.randn(d_out, r, **normal)).Q,
        torch.linalg.qr(torch.randn(d_in, r, **normal)).Q,
    )
    delta = U @ torch.diag(torch.logspace(0, -math.log10(kappa), r, dtype=torch.float64)) @ V.T
    E = torch.randn(d_in, d_in, **normal)
    covariance = torch.eye(d_in, dtype=torch.float64) + 0.25 / (math.sqrt(r) * kappa) * (
        E + E.T
    ) / torch.linalg.norm(E + E.T, 2)
    P, S, Qh = torch.linalg.svd(delta @ covariance)  # −∇L at W0
    adapters = linear_adapter(S[:r, None].sqrt() * Qh[:r], P[:, :r] * S[:r].sqrt())
    layer = next(iter(adapters))
    optimizer = make(adapters, lr=lr, weight_decay=0.0, **keywords)
    for step in range(limit):
        residual = layer.update().detach() - delta
        if residual.norm() < 1e-6 / kappa:
            return step
        gradient = residual @ covariance
        layer.lora_A.grad, layer.lora_B.grad = (
            layer.lora_B.detach().T @ gradient,
            gradient @ layer.lora_A.detach().T,
        )
        optimizer.step()
    return limit


def test_p_lora_converges_at_a_rate_that_does_not_depend_on_the_condition_number() -> None:
    counts = [
        iterations_to(kappa, p_lora, 0.2, 400, base="gd", damping=0.0)
        for kappa in (1, 10, 100, 1000)
    ]
    assert max(counts) < 1.2 * min(counts) and max(counts) < 400, counts
    plain = [iterations_to(kappa, sgd, 0.2, 4000, momentum=0.0) for kappa in (1, 10, 100, 1000)]
    assert plain[1] > 3 * plain[0] and plain[2] > 3 * plain[1] and plain[3] == 4000, plain


def test_with_orthonormal_factors_the_plain_step_of_R_is_the_optimal_one() -> None:
    """LoRA-SB, Theorem 2: `g_R* = (1/s²)(BᵀB)⁻¹ g_R (A Aᵀ)⁻¹` minimises `‖s B g_R A − G‖`; plain
    for s = 1."""
    A, B, G, _, _ = problem(0)
    A, B = torch.linalg.qr(A.T).Q.T.contiguous(), torch.linalg.qr(B).Q.contiguous()
    R = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(9, 11, bias=False, dtype=torch.float64))
    adapters = attach(
        model, {"0": Factors(A=A, B=B, R=R, start="shifted", train=frozenset("R"))}, 1.0
    )
    layer = next(iter(adapters))
    optimizer = sgd(adapters, lr=0.1, weight_decay=0.0, momentum=0.0)
    # its gradient in W is G
    (layer.scaling * layer.lora_B @ layer.lora_R @ layer.lora_A * G).sum().backward()
    optimizer.step()
    matrix = torch.stack(
        [(B[:, i, None] * A[None, j]).reshape(-1) for i in range(3) for j in range(3)], 1
    )
    optimal = torch.linalg.lstsq(matrix, G.reshape(-1, 1)).solution.view(3, 3)
    torch.testing.assert_close(layer.lora_R.detach(), R - 0.1 * optimal)


def test_the_trajectory_of_R_does_not_depend_on_s_when_scaled() -> None:
    """LoRA-SB, Theorem 4: with `g_R / s²`, that is the rate `lr / s²`, and `R0 = diag(S)/s`, W(t)
    is the same for every s."""
    A, B, target, _, _ = problem(6)
    A, B = torch.linalg.qr(A.T).Q.T.contiguous(), torch.linalg.qr(B).Q.contiguous()
    R = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))

    def weights(s: float, power: int) -> Tensor:
        model = nn.Sequential(nn.Linear(9, 11, bias=False, dtype=torch.float64))
        nn.init.zeros_(model[0].weight)
        adapters = attach(
            model, {"0": Factors(A=A, B=B, R=R / s, start="shifted", train=frozenset("R"))}, s
        )
        optimizer = sgd(adapters, lr=0.1 / s**power, weight_decay=0.0, momentum=0.0)
        for _ in range(10):
            optimizer.zero_grad()
            layer = next(iter(adapters))
            (
                layer.scaling * layer.lora_B @ layer.lora_R @ layer.lora_A - target
            ).square().sum().backward()
            optimizer.step()
        return next(iter(adapters)).update()

    for s in (0.25, 2.0, 10.0):
        torch.testing.assert_close(weights(s, 2), weights(1.0, 2), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(weights(2.0, 0), weights(1.0, 0), rtol=1e-2)


# --------------------------------------------------------------------------------------------------
# PEFT as oracle


def peft_twin(adapters: Adapters) -> tuple[Any, dict[str, nn.Parameter]]:
    """A PeftModel with the same factors, and its parameters under our names."""
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=SCALING * RANK, target_modules=["0", "1", "2", "3"], lora_dropout=0.0
    )
    theirs = peft.get_peft_model(Model(), config)
    named = dict(theirs.named_parameters())
    twins = {}
    for name, layer in adapters.layers.items():
        for factor in "AB":
            twin = named[f"base_model.model.{name}.lora_{factor}.default.weight"]
            twin.data.copy_(getattr(layer, f"lora_{factor}").detach())
            twins[f"{name}.lora_{factor}"] = twin
    return theirs, twins


def run_beside_peft(
    mine: torch.optim.Optimizer,
    theirs: torch.optim.Optimizer,
    adapters: Adapters,
    twins: dict,
    tolerance: float,
) -> None:
    for step in range(5):
        set_gradients(adapters, step)
        for name, p in adapters.named_trainable().items():
            twins[name].grad = p.grad.clone()
        mine.step()
        theirs.step()
    assert_close(
        adapters.state(), {n: twins[n].detach() for n in adapters.named_trainable()}, tolerance
    )


def test_pefts_lora_plus() -> None:
    from peft.optimizers import create_loraplus_optimizer

    adapters = adapted(head=False)
    model, twins = peft_twin(adapters)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    run_beside_peft(lora_plus(adapters, lr=1e-2, weight_decay=0.1), theirs, adapters, twins, 1e-6)


@pytest.mark.parametrize("base, cls", [("adamw", torch.optim.AdamW), ("gd", torch.optim.SGD)])
def test_pefts_riemannian_preconditioning(base: Any, cls: Any) -> None:
    from peft.optimizers.riemannian import create_riemannian_optimizer

    adapters = adapted(head=False)
    model, twins = peft_twin(adapters)
    theirs = create_riemannian_optimizer(model, cls, lr=1e-2, weight_decay=0.0)
    run_beside_peft(
        p_lora(adapters, lr=1e-2, weight_decay=0.0, base=base, damping=1e-2),
        theirs,
        adapters,
        twins,
        2e-5,
    )


def test_pefts_lora_fa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PEFT's ε and its rounding to bf16 are taken away, `rule=peft` is PEFT's."""
    from peft.optimizers import lorafa

    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    adapters = adapted("B", head=False)
    model, twins = peft_twin(adapters)
    theirs = lorafa.create_lorafa_optimizer(model, r=RANK, lora_alpha=SCALING * RANK, lr=1e-2)
    theirs.param_groups[0]["eps"] = 0.0
    run_beside_peft(
        lora_fa(adapters, lr=1e-2, weight_decay=0.0, rule="peft", eps=0.0),
        theirs,
        adapters,
        twins,
        1e-5,
    )


def test_lora_fa_is_adamw_on_B_and_peft_differs() -> None:
    assert_close(trained(lora_fa, adapted("B")), trained(adamw, adapted("B")), 0)
    peft, plain = trained(lora_fa, adapted("B"), rule="peft"), trained(lora_fa, adapted("B"))
    assert not torch.allclose(peft["layers.0.lora_B"], plain["layers.0.lora_B"])
    A, B, G, _, grad_B = problem(0)
    nearest = reference.closest_product(A, torch.zeros_like(B), G, SCALING)
    torch.testing.assert_close(SCALING * rescaled_gradient(A, grad_B, SCALING) @ A, nearest)


# --------------------------------------------------------------------------------------------------
# precision, resume, storage

RULES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "adamw": (adamw, {}, "AB"),
    "sgd": (sgd, {}, "AB"),
    "lora_plus": (lora_plus, {}, "AB"),
    "p_lora": (p_lora, {}, "AB"),
    "p_lora_gd": (p_lora, {"base": "gd", "damping": 0.0}, "AB"),
    "p_lora_released": (p_lora, {"flavour": "released"}, "AB"),
    "lora_pro_bf16": (lora_pro, {"moments": "bfloat16", "first_step": "limit"}, "AB"),
    "lora_pro": (lora_pro, {}, "AB"),
    "lora_pro_factored": (lora_pro, {"moments": "factored"}, "AB"),
    "lora_pro_low_memory": (lora_pro_low_memory, {}, "AB"),
    "lora_fa": (lora_fa, {"rule": "peft"}, "B"),
}


@pytest.mark.parametrize("name", RULES)
def test_resume_is_bitwise(name: str) -> None:
    make, keywords, train = RULES[name]
    keywords = {"lr": 1e-3, "weight_decay": 0.1} | keywords
    straight, stopped = adapted(train), adapted(train)
    optimizer, first = make(straight, **keywords), make(stopped, **keywords)
    for step in range(6):
        set_gradients(straight, step)
        optimizer.step()
        if step < 3:
            set_gradients(stopped, step)
            first.step()
    disk = io.BytesIO()
    torch.save({"weights": stopped.state(), "optimizer": first.state_dict()}, disk)
    disk.seek(0)
    saved = torch.load(disk)
    resumed = adapted(train, seed=0)
    second = make(resumed, **keywords)
    resumed.load_state(saved["weights"])
    second.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        set_gradients(resumed, step)
        second.step()
    assert_close(resumed.state(), straight.state(), 0)


@pytest.mark.parametrize("make", [adamw, sgd])
def test_bf16_weights_have_float32_masters_that_survive_a_checkpoint(make: Any) -> None:
    def whole(dtype: torch.dtype) -> Adapters:
        torch.manual_seed(0)
        return train_everything(Model().bfloat16().to(dtype))

    narrow, wide = whole(torch.bfloat16), whole(torch.float32)
    keywords = {"lr": 1e-4, "weight_decay": 0.0}  # steps far below a bf16 rounding
    a, b = make(narrow, **keywords), make(wide, **keywords)
    for step in range(20):
        if step == 10:
            saved, weights = a.state_dict(), narrow.state()
            narrow = whole(torch.bfloat16)
            narrow.load_state(weights)
            a = make(narrow, **keywords)
            a.load_state_dict(saved)
        set_gradients(narrow, 0)
        for mine, theirs in zip(narrow.trainable(), wide.trainable(), strict=True):
            theirs.grad = mine.grad.float()
        a.step()
        b.step()
    for p, q in zip(narrow.trainable(), wide.trainable(), strict=True):
        assert torch.equal(p, q.to(torch.bfloat16))
    assert all(t.dtype == torch.float32 for state in a.state.values() for t in state.values())


def test_bf16_adapters_step_as_float32_ones() -> None:
    narrow, wide = adapted(), adapted()
    for adapters in (narrow, wide):
        for p in adapters.trainable():
            p.data = p.data.bfloat16()
    for p in wide.trainable():
        p.data = p.data.float()
    a, b = p_lora(narrow, lr=1e-3, weight_decay=0.1), p_lora(wide, lr=1e-3, weight_decay=0.1)
    for step in range(5):
        set_gradients(narrow, step)
        for mine, theirs in zip(narrow.trainable(), wide.trainable(), strict=True):
            theirs.grad = mine.grad.float()
        a.step()
        b.step()
    assert all(
        torch.equal(p, q.bfloat16())
        for p, q in zip(narrow.trainable(), wide.trainable(), strict=True)
    )


def test_a_state_of_another_rule_is_refused() -> None:
    saved = sgd(adapted(), lr=1e-3, weight_decay=0.0).state_dict()
    with pytest.raises(
        ValueError,
        match=(
            r"saved state of layers\.0\.lora_A holds \['momentum', 'step'\], expected \['exp_avg'"
        ),
    ):
        adamw(adapted(), lr=1e-3, weight_decay=0.0).load_state_dict(saved)


def test_stacked_parameters_still_save_copy_and_clip(tmp_path: Path) -> None:
    adapters = adapted()
    optimizer = adamw(adapters, lr=1e-2, weight_decay=0.0)
    set_gradients(adapters, 0, 100.0)
    nn.utils.clip_grad_norm_(adapters.trainable(), 1.0)
    before = [p.grad.clone() for p in adapters.trainable()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(adapters.trainable(), before, strict=True))
    save_peft(adapters, tmp_path, base="x", revision=None, task_type="SEQ_CLS", head=["head"])
    stored = load_file(tmp_path / "adapter_model.safetensors")
    for name, layer in adapters.layers.items():
        A, _ = layer.plain_pair()
        assert torch.equal(stored[f"base_model.model.{name}.lora_A.weight"], A)
        assert layer.lora_A.is_contiguous()


def test_moving_the_model_afterwards_is_an_error_and_not_a_silent_stop() -> None:
    adapters = adapted()
    optimizer = adamw(adapters, lr=1e-2, weight_decay=0.0)
    for p in adapters.trainable():
        p.data = p.data.clone()
    set_gradients(adapters, 0)
    with pytest.raises(
        RuntimeError, match="layers.0.lora_A was moved after its optimizer was built"
    ):
        optimizer.step()


def test_schedules_reach_every_rule() -> None:
    for make, keywords, train in RULES.values():
        adapters = adapted(train)
        before = adapters.state()
        optimizer = make(adapters, lr=1e-2, weight_decay=0.1, **keywords)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * 0.0
        set_gradients(adapters, 0)
        optimizer.step()
        assert_close(adapters.state(), before, 0)


def test_state_bytes() -> None:
    factors = sum(p.numel() for layer in adapted() for p in (layer.lora_A, layer.lora_B))
    weights = sum(d_out * d_in for d_out, d_in in SHAPES)
    assert (
        adamw(adapted(head=False), lr=1e-2, weight_decay=0.0).state_bytes()
        == 2 * 4 * factors + 4 * 4
    )
    assert (
        lora_pro(adapted(head=False), lr=1e-2, weight_decay=0.0).state_bytes()
        == 2 * 4 * weights + 2 * 4
    )


def test_layers_of_one_shape_with_another_scaling_are_not_mixed() -> None:
    adapters = adapted(head=False)
    adapters.layers["layers.1"].scaling = 0.5
    before = {
        n: (x.lora_A.detach().clone(), x.lora_B.detach().clone())
        for n, x in adapters.layers.items()
    }
    optimizer = lora_pro_low_memory(adapters, lr=1.0, weight_decay=0.0, base="gd", damping=0.0)
    set_gradients(adapters, 0)
    optimizer.step()
    for name, layer in adapters.layers.items():
        A, B = before[name]
        new_A, _ = equivalent_gradients(A, B, layer.lora_A.grad, layer.lora_B.grad, layer.scaling)
        torch.testing.assert_close(layer.lora_A.detach(), A - new_A, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_that_is_not_finite_names_step_and_parameter_and_changes_nothing(
    name: str,
) -> None:
    make, keywords, train = RULES[name]
    adapters = adapted(train)
    optimizer = make(adapters, lr=1e-3, weight_decay=0.0, **keywords)
    set_gradients(adapters, 0)
    optimizer.step()
    before = adapters.layers["layers.0"].lora_B.detach().clone()
    set_gradients(adapters, 1)
    adapters.layers["layers.2"].lora_B.grad[1, 2] = float("nan")
    with pytest.raises(
        FloatingPointError,
        match=r"^step 2: the gradient of layers\.2\.lora_B is not finite: [^\n]*$",
    ):
        optimizer.step()
    assert torch.equal(before, adapters.layers["layers.0"].lora_B)


def test_large_finite_gradients_are_no_error() -> None:
    adapters = adapted()
    optimizer = adamw(adapters, lr=1e-3, weight_decay=0.0)
    for p in adapters.trainable():
        p.grad = torch.full_like(p, 1e38)
    optimizer.step()


def test_a_singular_system_names_layer_and_step() -> None:
    adapters = adapted(dtype=torch.float64)
    layer = adapters.layers["layers.1"]
    layer.lora_B.data[:, 1] = layer.lora_B.data[:, 0]
    optimizer = lora_pro(adapters, lr=1e-3, weight_decay=0.0, damping=0.0)
    set_gradients(adapters, 0)
    with pytest.raises(
        FloatingPointError,
        match=r"^step 1, layer layers\.1: BᵀB is singular: raise optimizer.damping",
    ):
        optimizer.step()
    adapters.layers["layers.3"].lora_A.data.zero_()
    layer.lora_B.data[:, 1] += 1.0
    layer.lora_B.data[0, 1] += 1.0
    with pytest.raises(FloatingPointError, match=r"^step 1, layer layers\.3: A Aᵀ is singular"):
        optimizer.step()


@pytest.mark.parametrize(
    "make, keywords",
    [(p_lora, {"damping": 0.0}), (p_lora, {}), (lora_pro, {}), (lora_pro_low_memory, {})],
)
@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_factor_that_is_not_finite_names_the_layer(
    make: Any, keywords: dict[str, Any], factor: str
) -> None:
    adapters = adapted()
    optimizer = make(adapters, lr=1e-3, weight_decay=0.0, **keywords)
    getattr(adapters.layers["layers.1"], f"lora_{factor}").data[0, 0] = float("inf")
    set_gradients(adapters, 0)
    with pytest.raises(FloatingPointError, match=r"^step 1[:,] .*layers\.1"):
        optimizer.step()


@pytest.mark.parametrize("entries", [1, 5 * 10, 12 * 10, 3 * 12 * 10])
def test_rows_of_a_layer_at_a_time_change_nothing(
    monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    """One row, five of twelve (the last piece has two), one layer, all three layers at once."""
    expected = trained(lora_pro, adapted())
    monkeypatch.setattr("loraexp.optimizers.lora_pro.CHUNK", entries)
    assert_close(trained(lora_pro, adapted()), expected, 1e-5)


def test_working_in_chunks_changes_nothing_and_still_names_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = {make: trained(make, adapted()) for make in (p_lora, lora_pro_low_memory, lora_pro)}
    gradients = adapted()
    set_gradients(gradients, 4)
    # two layers at a time, then one
    for name, entries in (("pairs.CACHED", 2 * RANK * 10), ("lora_pro.CHUNK", 2 * 12 * 10)):
        monkeypatch.setattr(f"loraexp.optimizers.{name}", entries)
    for make, expected in whole.items():
        adapters = adapted()
        assert_close(trained(make, adapters), expected, 1e-5)
        assert all(
            torch.equal(p.grad, q.grad)
            for p, q in zip(adapters.trainable(), gradients.trainable(), strict=True)
        )
    for layer in ("layers.0", "layers.2"):
        adapters = adapted()
        optimizer = lora_pro_low_memory(adapters, lr=1e-3, weight_decay=0.0)
        adapters.layers[layer].lora_A.data.zero_()
        set_gradients(adapters, 0)
        with pytest.raises(FloatingPointError, match=f"^step 1, layer {layer}: A Aᵀ is singular"):
            optimizer.step()


ALL_FIT = "choose one of adamw, sgd"


@pytest.mark.parametrize(
    "make, train, message",
    [
        (
            p_lora,
            "B",
            (
                "optimizer=p_lora needs A and B to train, but layer layers.0 trains B: choose one"
                " of adamw, lora_fa, sgd"
            ),
        ),
        (
            lora_plus,
            "R",
            f"optimizer=lora_plus needs A and B to train, but layer layers.0 trains R: {ALL_FIT}",
        ),
        (
            lora_pro,
            "",
            (
                "optimizer=lora_pro needs A and B to train, but layer layers.0 trains nothing:"
                f" {ALL_FIT}"
            ),
        ),
        (
            p_lora,
            "ABR",
            (
                "optimizer=p_lora needs A and B to train and an update B A, but layer layers.0 has"
                " B R A: choose one of adamw, lora_plus, sgd"
            ),
        ),
        (
            lora_fa,
            "AB",
            (
                "optimizer=lora_fa needs B to train and A and R frozen, but layer layers.0 trains A"
                " and B: choose one of adamw, lora_plus, lora_pro, lora_pro_low_memory, p_lora, sgd"
            ),
        ),
    ],
)
def test_a_rule_that_does_not_fit_what_trains_is_refused(
    make: Any, train: str, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        make(adapted(train, R="R" in train), lr=1e-3, weight_decay=0.0)
    assert str(caught.value) == message


def test_full_training_and_nothing_to_train_are_refused_where_they_do_not_fit() -> None:
    with pytest.raises(
        ValueError,
        match="optimizer=p_lora needs A and B to train, but no layer is adapted .*: " + ALL_FIT,
    ):
        p_lora(train_everything(Model()), lr=1e-3, weight_decay=0.0)
    with pytest.raises(ValueError, match="nothing trains"):
        adamw(adapted("", head=False), lr=1e-3, weight_decay=0.0)


@pytest.mark.parametrize(
    "make, keywords, message",
    [
        (adamw, {"lr": -1.0}, "lr=-1.0"),
        (adamw, {"lr": float("nan")}, "lr=nan"),
        (adamw, {"weight_decay": -1.0}, "weight_decay=-1.0"),
        (adamw, {"beta1": 1.0}, "optimizer.beta1=1.0"),
        (adamw, {"eps": -1.0}, "optimizer.eps=-1.0"),
        (sgd, {"momentum": 1.5}, "optimizer.momentum=1.5"),
        (lora_plus, {"ratio": 0.0}, "optimizer.ratio=0.0"),
        (p_lora, {"base": "adam"}, "optimizer.base='adam': expected adamw or gd"),
        (p_lora, {"damping": -1.0}, "optimizer.damping=-1.0"),
        (lora_pro, {"damping": -1.0}, "optimizer.damping=-1.0"),
        (
            lora_pro,
            {"moments": "fp8"},
            "optimizer.moments='fp8': expected float32, bfloat16 or factored",
        ),
        (
            lora_pro_low_memory,
            {"first_step": "none"},
            "optimizer.first_step='none': expected plain or limit",
        ),
        (p_lora, {"flavour": "peft"}, "optimizer.flavour='peft': expected paper or released"),
        (lora_pro_low_memory, {"damping": -1.0}, "optimizer.damping=-1.0"),
    ],
)
def test_values_out_of_range_are_refused_when_the_optimizer_is_built(
    make: Any, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        make(adapted(), **({"lr": 1e-3, "weight_decay": 0.0} | keywords))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="optimizer.rule='x': expected adamw or peft"):
        lora_fa(adapted("B"), lr=1e-3, weight_decay=0.0, rule="x")


# --------------------------------------------------------------------------------------------------
# contract


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_every_yaml_is_a_rule(path: Path) -> None:
    text = path.read_text()
    values = yaml.safe_load(text)
    assert (
        text.startswith("# ")
        and values.pop("name") == path.stem
        and values.pop("_partial_") is True
    )
    module, _, name = values.pop("_target_").rpartition(".")
    make = getattr(importlib.import_module(module), name)
    assert isinstance(make.needs_trained, frozenset) and rules()[name] is make
    parameters = inspect.signature(make).parameters
    # all of them, and nothing else
    assert set(values) == set(parameters) - {"adapters", "lr", "weight_decay"}
    train = "".join(sorted(make.needs_trained)) or "AB"
    before = adapted(train).state()
    after = trained(lambda adapters, **kw: make(adapters, **kw, **values), adapted(train), steps=1)
    assert all(not torch.equal(before[n], after[n]) for n in before)


def test_every_rule_has_a_yaml() -> None:
    targets = {yaml.safe_load(path.read_text())["_target_"].rpartition(".")[2] for path in YAMLS}
    assert targets == set(rules())
