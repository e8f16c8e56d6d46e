"""Models of 7 and 9 billion weights through the code of a run, without numbers: it initialises,
takes steps and evaluates, with the bytes and the calls that it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.calls import Calls
from tests.support.skeletons import Subject

GB = 10**9
# a step of one row of 512 tokens, in units of the weights; Gemma's norms keep float32 copies
STEP = {"llama-2-7b": 1.3, "gemma-2-9b": 1.45}
MODELS = tuple(STEP)
FEW = 8  # rows, as many as the leading eigenvectors of CG-LoRA need


def of(model: str, init: str, *words: str, **how: Any) -> Subject:
    given = (f"model={model}", f"init={init}", "task=metamath", "train.batch_size=1", *words)
    return Subject(*given, **how)


@pytest.mark.parametrize("model", MODELS)
def test_a_whole_model_on_a_card_of_80_gb(model: str, cached: list[int]) -> None:
    """Every layer: one sweep is enough for all gradients or for as many as fit; a step and an
    evaluation need less."""
    subject = of(model, "lora_one", "init.samples=1", lengths=(512,), card=80 * GB)
    initialising = subject.initialised().peak
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    assert weights < initialising <= 80 * GB
    assert subject.made.cost["init_forward_sweeps"] <= 4
    stepping, evaluating = subject.trained(1).peak, subject.evaluated().peak
    assert weights < evaluating < stepping < STEP[model] * weights
    assert not cached


@pytest.mark.parametrize("init", ["cg_lora", "lora_da", "lora_ga", "lora_one", "lora_sb", "corda"])
@pytest.mark.parametrize("model", MODELS)
def test_every_statistic_at_the_widths_of_these_models(
    model: str, init: str, cached: list[int]
) -> None:
    subject = of(
        model, init, f"init.samples={FEW}", lengths=(64,) * FEW, answer=8, layers=1, card=24 * GB
    )
    assert subject.initialised().peak <= 24 * GB
    assert len(subject.made.factors) == 7
    for made in subject.made.factors.values():
        assert made.A.dtype == made.B.dtype == torch.float32 and made.A.shape[0] == 8
    subject.trained(1)
    assert all(p.grad is None for p in subject.model.parameters())
    subject.evaluated()
    assert not cached


def test_what_keeps_keys_and_values_is_seen(cached: list[int]) -> None:
    subject = of("llama-2-7b", "lora", lengths=(16,), layers=1)
    ids = torch.zeros(1, 4, dtype=torch.int64, device="meta")
    with subject.watched():
        subject.model(input_ids=ids, use_cache=True)
    assert cached


@pytest.mark.parametrize("rule", ["adamw", "p_lora", "lora_pro_low_memory"])
def test_a_rule_launches_as_much_for_three_layers_as_for_two(rule: str) -> None:
    """It steps all factors of a shape at once. (Not lora_pro, whose state of whole matrices goes by
    in pieces of a size.)"""
    counts = []
    for layers in (2, 3):
        subject = of("llama-2-7b", "lora", f"optimizer={rule}", lengths=(16,), layers=layers)
        subject.initialised()
        subject.trained(2)
        for parameter in subject.adapters.trainable():  # type: ignore[union-attr]
            parameter.grad = torch.zeros_like(parameter)
        with subject.watched(), Calls() as calls:
            subject.optimizer.step()
        counts.append(calls.total)
    assert counts[0] == counts[1] > 0
