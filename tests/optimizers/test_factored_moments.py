"""LoRA-Pro with the means of the rows and columns of its second moment, against the same written
out on whole matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import Adapters, attach
from loraexp.initializers import Factors
from loraexp.optimizers import lora_pro as module
from loraexp.optimizers.factored import correction, square_means, way_back
from loraexp.optimizers.lora_pro import equivalent_gradients, lora_pro

SHAPES = ((12, 10), (12, 10), (9, 14))
SCALING, LR, DECAY, BETA1, BETA2, EPS = 2.5, 1e-2, 0.1, 0.9, 0.999, 1e-8
ROUNDING = {"rtol": 1e-5, "atol": 1e-7}  # the correction by βᵗ is of a step in float32


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def adapted(rank: int, zero_B: bool = False) -> Adapters:
    layers = nn.ModuleList(nn.Linear(n, m, bias=False).double() for m, n in SHAPES)
    factors = {
        str(i): Factors(
            A=draw(rank, n, seed=i), B=draw(m, rank, seed=9 + i) * (not zero_B), start="shifted"
        )
        for i, (m, n) in enumerate(SHAPES)
    }
    return attach(layers, factors, SCALING, [])


def gradients(adapters: Adapters, step: int) -> list[tuple[Tensor, Tensor]]:
    """As a weight's gradient G gives them: `η BᵀG` and `η G Aᵀ`; left in `.grad`."""
    found = []
    for i, layer in enumerate(adapters):
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        G = draw(*SHAPES[i], seed=100 * step + i)
        found.append((SCALING * B.mT @ G, SCALING * G @ A.mT))
        layer.lora_A.grad, layer.lora_B.grad = (g.clone() for g in found[-1])
    return found


def test_the_means_of_a_product_are_those_of_its_entries() -> None:
    left, right = draw(3, 12, 4, seed=0), draw(3, 4, 10, seed=1)
    rows, columns = square_means(left, right)
    whole = (left @ right) ** 2
    torch.testing.assert_close(rows, whole.mean(-1))
    torch.testing.assert_close(columns, whole.mean(-2))
    A, B = draw(3, 2, 10, seed=2), draw(3, 12, 2, seed=3)
    v = rows[..., None] * columns[..., None, :] / whole.mean((-2, -1), keepdim=True)
    direction = left @ right / v.sqrt()
    back = way_back(left, right, rows, columns, A, B)
    for found, expected in zip(back, (B.mT @ direction, direction @ A.mT), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_correction_keeps_its_digits() -> None:
    for beta, step in ((0.999, 1), (0.9, 3), (0.0, 2), (0.9999, 10_000)):
        found = correction(beta, torch.tensor(float(step)))
        assert float(found) == pytest.approx(1 - beta**step, rel=1e-6)


@pytest.mark.parametrize("first_step", ["plain", "limit"])
def test_steps_are_those_of_the_formula_on_whole_matrices(first_step: Any) -> None:
    """From B = 0, five steps; layers of one shape are worked on together."""
    adapters = adapted(rank=3, zero_B=True)
    optimizer = lora_pro(
        adapters, lr=LR, weight_decay=DECAY, moments="factored", first_step=first_step, eps=EPS
    )
    states = [{"r": 0.0, "c": 0.0, "A": 0.0, "B": 0.0} for _ in SHAPES]
    for step in range(1, 6):
        known, expected = gradients(adapters, step), []
        for layer, state, (grad_A, grad_B) in zip(adapters, states, known, strict=True):
            A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
            new_A, new_B = equivalent_gradients(A, B, grad_A, grad_B, SCALING, 1e-6, "limit")
            squares = (SCALING * (B @ new_A + new_B @ A)) ** 2
            for key, value, beta in (
                ("r", squares.mean(1), BETA2),
                ("c", squares.mean(0), BETA2),
                ("A", new_A, BETA1),
                ("B", new_B, BETA1),
            ):
                state[key] = beta * state[key] + (1 - beta) * value
            r, c = (state[key] / (1 - BETA2**step) + EPS**2 for key in "rc")
            m_A, m_B = (state[key] / (1 - BETA1**step) for key in "AB")
            direction = SCALING * (B @ m_A + m_B @ A) / (torch.outer(r, c) / r.mean()).sqrt()
            plain = SCALING * B.mT @ direction, SCALING * direction @ A.mT
            moved = equivalent_gradients(A, B, *plain, SCALING, 1e-6, first_step)
            both = zip((A, B), moved, strict=True)
            expected.append([x * (1 - LR * DECAY) - LR * d for x, d in both])
        optimizer.step()
        for layer, (A, B) in zip(adapters, expected, strict=True):
            torch.testing.assert_close(layer.lora_A.detach(), A, **ROUNDING)
            torch.testing.assert_close(layer.lora_B.detach(), B, **ROUNDING)


def test_where_the_squares_have_rank_one_it_is_lora_pro() -> None:
    """The first step of rank one: G̃ is an outer product, and so are its squares."""
    moved = []
    for moments in ("float32", "factored"):
        adapters = adapted(rank=1, zero_B=True)
        optimizer = lora_pro(adapters, lr=LR, weight_decay=0.0, moments=moments, eps=1e-14)  # type: ignore[arg-type]
        gradients(adapters, 1)
        optimizer.step()
        moved.append(adapters.state())
    for name, value in moved[0].items():
        torch.testing.assert_close(moved[1][name], value, rtol=1e-6, atol=1e-9)


def test_nothing_is_kept_in_the_shape_of_a_weight() -> None:
    adapters = adapted(rank=3)
    optimizer = lora_pro(adapters, lr=LR, weight_decay=0.0, moments="factored")
    sizes = sum(x.numel() for state in optimizer.state.values() for x in state.values())
    blocks = 2  # each with a counter
    assert sizes == sum((m + n) * (3 + 1) for m, n in SHAPES) + blocks


def test_no_gradient_is_no_step() -> None:
    adapters = adapted(rank=3)
    optimizer = lora_pro(adapters, lr=LR, weight_decay=0.0, moments="factored")
    before = {name: value.clone() for name, value in adapters.state().items()}
    for p in adapters.trainable():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, value in adapters.state().items():
        assert torch.equal(value, before[name])


def test_layers_one_by_one_step_as_together(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for chunk in (module.CHUNK, 1):
        monkeypatch.setattr(module, "CHUNK", chunk)
        adapters = adapted(rank=3, zero_B=True)
        optimizer = lora_pro(adapters, lr=LR, weight_decay=0.1, moments="factored")
        for step in range(1, 4):
            gradients(adapters, step)
            optimizer.step()
        assert {float(s["step"]) for s in optimizer.state.values() if "step" in s} == {3.0}
        moved.append(adapters.state())
    for name, value in moved[0].items():
        torch.testing.assert_close(moved[1][name], value, rtol=1e-12, atol=1e-14)


def test_a_singular_layer_is_named_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other has moved."""
    monkeypatch.setattr(module, "CHUNK", 1)
    adapters = adapted(rank=3)
    with torch.no_grad():
        list(adapters)[1].lora_A[1].zero_()
    optimizer = lora_pro(adapters, lr=LR, weight_decay=0.0, moments="factored", damping=0.0)
    before = {name: value.clone() for name, value in adapters.state().items()}
    gradients(adapters, 1)
    with pytest.raises(FloatingPointError, match=r"step 1, layer 1: A Aᵀ is singular"):
        optimizer.step()
    for name, value in adapters.state().items():
        assert torch.equal(value, before[name])
