"""The decoding loop: rows leave and join, prompts are read once, and every answer is that of
transformers' own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from loraexp import models
from loraexp.scoring import decode, generate
from tests.support.checkpoints import settings_of

PROMPTS = [
    f"Q: {'Ann has an apple. ' * (7 * i % 5)}How many {'more ' * (i % 3)}{i}?\nA: "
    for i in range(11)
] + ["no"] * 3


def loaded(name: str) -> tuple[nn.Module, Any]:
    """A tiny model whose answers differ, and end."""
    settings = settings_of(name)
    model, tokenizer = (
        models.open(settings).load(dtype=torch.float32, head_seed=0),
        models.open(settings).tokenizer,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model, tokenizer


def ending(model: nn.Module, tokenizer: Any) -> None:
    """The tokens that the model likes best end an answer, so that answers have many lengths."""
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        given = (
            {}
            if not model.config.is_encoder_decoder
            else {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)}
        )
        model.generation_config.eos_token_id = [
            1,
            *model(ids, **given).logits[0, -1].topk(150).indices[60:].tolist(),
        ]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-gemma", "tiny-t5"])
@pytest.mark.parametrize(
    "how",
    [{}, {"temperature": 1.0, "top_p": 0.95, "samples": 3}, {"stop": ["a", "th"]}],
    ids=["greedy", "drawn", "stop"],
)
def test_answers_are_those_of_transformers_loop(
    name: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral and Gemma 2 look back 64 tokens in some layers; rows leave and join in batches of
    4."""
    model, tokenizer = loaded(name)
    ending(model, tokenizer)
    given = {"max_new_tokens": 24, **how}
    ours = generate.generate(model, tokenizer, PROMPTS, batch_size=4, **given)
    monkeypatch.setattr(generate, "can_decode", lambda model: False)
    assert ours == generate.generate(model, tokenizer, PROMPTS, batch_size=1, **given)
    lengths = {len(text) for texts in ours for text in texts}
    assert len(lengths) > 3 and min(lengths) < 12


def test_equal_prompts_and_samples_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded("tiny-llama")
    read: list[int] = []
    start = decode.CausalState.__init__

    def counted(self: Any, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> None:
        read.append(len(prompts))
        start(self, model, prompts, pad)

    monkeypatch.setattr(decode.CausalState, "__init__", counted)
    generate.generate(
        model,
        tokenizer,
        PROMPTS[:2] + ["no"] * 3,
        batch_size=64,
        max_new_tokens=2,
        temperature=1.0,
        samples=4,
    )
    assert read == [3]


def test_rows_that_ended_are_not_computed() -> None:
    """Steps take as many rows as go on, not as many as began; those that wait take the places of
    those that ended."""
    model, tokenizer = loaded("tiny-llama")
    ending(model, tokenizer)
    rows: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, given, __: rows.append(given[0].numel())
    )  # type: ignore[operator]
    texts = generate.generate(model, tokenizer, PROMPTS[:8], batch_size=8, max_new_tokens=32)
    handle.remove()
    steps = rows[1:]
    assert steps == sorted(steps, reverse=True) and steps[-1] < 8
    kept = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for (text,) in texts)
    assert sum(steps) < kept + 8 * 8  # a few rows wait for an eighth of the batch


def test_a_model_whose_past_is_something_else_takes_transformers_loop() -> None:
    model, _ = loaded("tiny-llama")
    assert decode.can_decode(model)
    model.config.layer_types = ["linear_attention", "full_attention"]  # type: ignore[union-attr]
    assert not decode.can_decode(model)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_parts_do_not_depend_on_the_processes(world: int) -> None:
    encoded = [[1] * (i % 7 + 1) for i in range(50)]
    parts = generate.batched(encoded, samples=2, batch_size=4, joined=True)
    assert sorted(answer for part in parts for answer in part) == [
        (i, k) for i in range(50) for k in range(2)
    ]
    shares = [range(rank, len(parts), world) for rank in range(world)]
    assert (
        sorted(number for share in shares for number in share) == list(range(len(parts)))
        and len(parts) >= 8
    )
