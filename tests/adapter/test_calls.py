"""What adapters add to a forward pass of LLaMA-2-7B, on a skeleton without memory: kernels
launched, and casts of the factors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraexp.adapter.adapted import AdaptedLinear, Adapters, attach
from loraexp.adapter.layer import Factors
from loraexp.machine.device import unread_masks
from loraexp.sweep.hollow import on_a_card
from tests.support.calls import Calls

LAYERS = 32
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 8


def skeleton() -> Any:
    """LLaMA-2-7B in bfloat16 on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS)).to(torch.bfloat16).eval()


def adapted(offset: bool) -> tuple[Any, Adapters]:
    model = skeleton()
    factors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in NAMES:
            A, B = torch.zeros(RANK, module.in_features), torch.zeros(module.out_features, RANK)
            factors[name] = Factors(A=A.to("meta"), B=B.to("meta"), start="shifted")
    adapters = attach(model, factors, 2.0)
    for layer in adapters if offset else ():
        layer.factors.offset_A = layer.lora_A.detach().clone()
        layer.factors.offset_B = layer.lora_B.detach().clone()
    return model, adapters


def calls(model: Any, tokens: int = 16) -> Calls:
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    with unread_masks(ids.device), Calls() as counted:
        model(input_ids=ids, use_cache=False)
    return counted


@pytest.fixture(scope="module")
def bare() -> int:
    with torch.no_grad():
        return calls(skeleton()).total


def test_a_pass_with_fused_attention_launches_so_many() -> None:
    """At most 1,302 of the model's own, and two an adapted layer beside them."""
    model, adapters = adapted(offset=True)
    with on_a_card(), torch.no_grad():
        bare = calls(skeleton()).total
        calls(model)
        assert 0 < bare <= 1302 and calls(model).total == bare + 2 * len(adapters)


@pytest.mark.parametrize("offset", [False, True])
def test_a_training_pass_launches_two_kernels_a_layer_more_and_casts_once_a_step(
    offset: bool, bare: int
) -> None:
    model, adapters = adapted(offset)
    assert len(adapters) == LAYERS * len(NAMES)
    first, second = calls(model), calls(model)
    assert second.total - bare == 2 * len(adapters)
    casts = 6 if offset else 2  # A and B to bfloat16; with an offset both joined, and its sign
    assert first.total - second.total <= casts * len(adapters)
    with torch.no_grad():
        for parameter in adapters.trainable():
            parameter.add_(0)
    assert calls(model).total == first.total  # a step was made: once more
    assert calls(model).total == second.total


@pytest.mark.parametrize("offset", [False, True])
def test_decoding_launches_two_kernels_a_layer_more_than_a_merged_model(
    offset: bool, bare: int
) -> None:
    model, adapters = adapted(offset)
    with torch.no_grad():
        calls(model)
        assert calls(model, tokens=1).total - calls(skeleton(), tokens=1).total == 2 * len(adapters)


def layer(offset: bool, R: bool, dtype: torch.dtype = torch.float64) -> AdaptedLinear:
    torch.manual_seed(0)
    base = torch.nn.Linear(12, 10, bias=True, dtype=dtype)
    factors = Factors(
        A=torch.randn(4, 12, dtype=dtype),
        B=torch.randn(10, 4, dtype=dtype),
        R=torch.randn(4, 4, dtype=dtype) if R else None,
        start="pretrained" if offset else "shifted",
        train=frozenset("ABR" if R else "AB"),
    )
    made = AdaptedLinear(base, factors, 1.7, "it")
    with torch.no_grad():
        for parameter in made.factors.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("R", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_output_and_every_gradient_are_those_of_the_formula(offset: bool, R: bool) -> None:
    made = layer(offset, R)
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    trained = [p for p in made.factors.parameters()]

    def formula() -> torch.Tensor:
        B = made.lora_B if made.lora_R is None else made.lora_B @ made.lora_R
        y = made.base(x) + 1.7 * (x @ made.lora_A.mT @ B.mT)
        return y - 1.7 * (x @ made.offset_A.mT @ made.offset_B.mT) if offset else y

    weights = torch.randn(3, 5, 10, dtype=torch.float64)
    expected = torch.autograd.grad((formula() * weights).sum(), [x, *trained])
    torch.testing.assert_close(made(x), formula(), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((made(x) * weights).sum(), [x, *trained])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(made(x), formula(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["adamw", "plain"])
def test_a_step_is_seen_by_the_next_pass(rule: str) -> None:
    """Parameters are views of the optimizer's stacks: what is cast once a step is made anew after
    each."""
    from loraexp.optimizers.adamw import adamw

    made = layer(True, False, torch.float32)
    adapters = Adapters(made, {"it": made}, {})
    optimizer: torch.optim.Optimizer = (
        adamw(adapters, lr=0.1, weight_decay=0.0)
        if rule == "adamw"
        else torch.optim.SGD(adapters.trainable(), lr=1e-4)
    )
    x = torch.randn(7, 12)
    for _ in range(3):
        made(x).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            expected = made.base(x) + x @ made.update().mT
            torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-4)
    before = adapters.state()
    with torch.no_grad():
        after = made(x)
    adapters.load_state({name: 0 * value for name, value in before.items()})
    with torch.no_grad():
        assert not torch.equal(made(x), after)
        adapters.load_state(before)
        assert torch.equal(made(x), after)


def test_an_output_that_somebody_kept_for_a_backward_pass_is_not_silently_changed() -> None:
    class Squared(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            self.kept = y.exp()  # its backward pass reads exp(y) ...
            return self.kept

    made = layer(True, False, torch.float32)
    made.base = Squared(12, 10)
    x = torch.randn(3, 12, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made(x).sum().backward()
