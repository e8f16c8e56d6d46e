"""An encoder of RoBERTa-large's width and T5 through the code of a run on the meta device, and what
a model that writes keeps: as LLaMA-2-7B and Gemma-2-9B in test_seven_billion.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraexp.scoring.decode import CausalState, DecoderState
from loraexp.sweep import estimate
from tests.support.skeletons import META, Subject

GB = 10**9
LENGTH = 256  # tokens of each of the rows of a step
ROWS = 4
# (model, task, layers, adapted matrices of all blocks of so many layers)
KINDS = {
    "encoder": ("roberta-large", "sst2", 24, 2),  # query and value
    "T5": ("t5-base", "cola_t5", 12, 6 + 10),  # with those of a decoder's cross-attention
}


@pytest.mark.parametrize(
    ("init", "whole"), [("lora_one", True), ("cg_lora", False), ("lora_sb", False)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_initialises_takes_a_step_and_is_evaluated(
    kind: str, init: str, whole: bool, cached: list[int]
) -> None:
    """Every layer, or two; nothing is kept of keys and values, and no gradient of the base."""
    model, task, layers, matrices = KINDS[kind]
    layers = layers if whole else 2
    words = (f"model={model}", f"task={task}", f"init={init}", f"train.batch_size={ROWS}")
    few = (f"init.samples={ROWS}", f"init.batch_size={ROWS}", "rank=4")
    how: dict[str, Any] = {"lengths": (LENGTH,) * 2 * ROWS, "card": 24 * GB, "layers": layers}
    subject = Subject(*words, *few, **how | ({"answer": 8} if kind == "T5" else {}))
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    initialising = subject.initialised().peak
    assert weights < initialising <= 24 * GB
    assert len(subject.made.factors) == layers * matrices
    for made in subject.made.factors.values():
        assert made.A.dtype == made.B.dtype == torch.float32 and made.A.shape[0] == 4
    stepping, evaluating = subject.trained(1).peak, subject.evaluated().peak
    assert weights < evaluating < stepping <= 24 * GB
    trained = {id(p) for p in subject.adapters.trainable()}  # type: ignore[union-attr]
    assert all(p.grad is None for p in subject.model.parameters() if id(p) not in trained)
    assert not cached


WRITES = {  # (layers with keys and values of their own, heads of these, numbers of a head)
    "llama-2-7b": (32, 32, 128),
    "llama-3.2-3b": (28, 8, 128),
    "gemma-2-9b": (42, 8, 256),
}


@pytest.mark.parametrize("model", WRITES)
def test_what_is_kept_of_a_token_is_a_key_and_a_value_of_every_layer(model: str) -> None:
    """Three prompts, the shortest padded, then three tokens each; the plan counts the same."""
    layers, heads, size = WRITES[model]
    words = (f"model={model}", "init=lora", "task=metamath")
    subject = Subject(*words, lengths=(16,))
    prompts, written = [[1] * 40, [1] * 64, [1] * 7], 3
    with subject.watched(), torch.no_grad():
        state = CausalState(subject.model, prompts, 0)  # type: ignore[arg-type]
        for _ in range(written):
            state.step(torch.zeros(len(prompts), dtype=torch.int64, device=META))
        kept = [(layer.keys, layer.values) for layer in state.cache.layers]
    a_token = 2 * layers * heads * size * 2
    tokens = len(prompts) * (max(map(len, prompts)) + written)
    assert sum(x.numel() * x.element_size() for pair in kept for x in pair) == a_token * tokens
    assert estimate.cache_bytes(subject.model, torch.bfloat16) == a_token


def test_t5_keeps_its_source_once_and_every_token_that_it_writes() -> None:
    subject = Subject("model=t5-base", "init=lora", "task=cola_t5", lengths=(16,), answer=4)
    prompts, written = [[1] * 40, [1] * 7], 3
    with subject.watched(), torch.no_grad():
        state = DecoderState(subject.model, prompts, 0)  # type: ignore[arg-type]
        for _ in range(written):
            state.step(torch.zeros(len(prompts), dtype=torch.int64, device=META))
        own, source = state.cache.self_attention_cache, state.cache.cross_attention_cache
        kept = [
            [x.shape[-2] for layer in part.layers for x in (layer.keys, layer.values)]
            for part in (own, source)
        ]
    assert kept == [[1 + written] * 24, [40] * 24]  # behind the token that begins an answer
    layer = source.layers[0]
    assert layer.keys.shape == (2, 12, 40, 64) and layer.keys.dtype == torch.bfloat16
