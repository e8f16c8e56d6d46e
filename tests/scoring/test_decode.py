"""The decoding loop: rows leave and join, prompts are read once, and every answer is that of
transformers' own loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from loraexp import models
from loraexp.adapter.adapted import attach
from loraexp.adapter.layer import Factors
from loraexp.scoring import beams, cache, decode, generate
from loraexp.scoring.passes import evaluating
from loraexp.scoring.sampling import Sampling
from tests.support.calls import Calls
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


def looking(monkeypatch: pytest.MonkeyPatch, every_16: bool) -> None:
    """The host looks at the tokens together, as it does where an accelerator chooses them."""
    for module in (decode, beams):
        monkeypatch.setattr(module, "is_accelerator", lambda device: every_16)


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
    4, and the host looks at every token, or at 16 together."""
    model, tokenizer = loaded(name)
    ending(model, tokenizer)
    given = {"max_new_tokens": 24, **how}
    ours = generate.generate(model, tokenizer, PROMPTS, batch_size=4, **given)
    looking(monkeypatch, every_16=True)
    assert ours == generate.generate(model, tokenizer, PROMPTS, batch_size=4, **given)
    monkeypatch.setattr(generate, "can_decode", lambda model: False)
    assert ours == generate.generate(model, tokenizer, PROMPTS, batch_size=3, **given)
    looking(monkeypatch, every_16=False)
    assert ours == generate.generate(model, tokenizer, PROMPTS, batch_size=1, **given)
    lengths = {len(text) for texts in ours for text in texts}
    assert len(lengths) > 3 and min(lengths) < 12


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_beams_are_those_of_transformers_own_call(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded(name)
    ending(model, tokenizer)
    whole: Any = model
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        row = whole.generate(input_ids=ids, num_beams=3, max_new_tokens=24, do_sample=False)[0]
        new = row[1:] if whole.config.is_encoder_decoder else row[ids.shape[1] :]
        ends = whole.generation_config.eos_token_id
        kept = next((at for at, token in enumerate(new.tolist()) if token in ends), len(new))
        before = [] if whole.config.is_encoder_decoder else ids[0].tolist()
        expected.append([generate.continuation(tokenizer, before, new[:kept].tolist())])
    for every_16 in (False, True):
        looking(monkeypatch, every_16)
        given = {"max_new_tokens": 24, "beams": 3}
        assert generate.generate(model, tokenizer, PROMPTS, batch_size=4, **given) == expected
    assert len({len(text) for (text,) in expected}) > 3


@pytest.mark.parametrize("every_16", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("how", [{}, {"beams": 2}, {"temperature": 1.0}])
def test_what_is_not_a_number_is_seen_at_the_next_look(
    how: dict[str, Any], own: bool, every_16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded("tiny-llama")
    looking(monkeypatch, every_16)
    monkeypatch.setattr(generate, "can_decode", lambda model: own)
    steps: list[int] = []

    def breaks(_: Any, __: Any, output: Any) -> None:
        steps.append(1)
        if len(steps) > 2:
            output.logits[0] = float("nan")

    model.register_forward_hook(breaks)
    with pytest.raises(FloatingPointError, match="lower lr"):
        generate.generate(model, tokenizer, PROMPTS[:2], max_new_tokens=40, batch_size=2, **how)
    assert len(steps) <= (16 if every_16 else 3)


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
    assert cache.can_decode(model)
    model.config.layer_types = ["linear_attention", "full_attention"]  # type: ignore[union-attr]
    assert not cache.can_decode(model)


def adapted(name: str, dtype: torch.dtype, start: str, R: bool) -> tuple[Any, Any, Any, Any]:
    """A model with factors beside every layer, the same with each merged into its weight, the
    adapters, and the tokenizer."""
    model, tokenizer = loaded(name)
    merged = copy.deepcopy(model)
    draw, factors = torch.Generator().manual_seed(0), {}
    for place, module in model.named_modules():
        if isinstance(module, nn.Linear) and place != "lm_head":
            sizes = (2, module.in_features), (module.out_features, 2), (2, 2)
            A, B, middle = (0.2 * torch.randn(*size, generator=draw) for size in sizes)
            made: dict[str, Any] = {"R": middle if R else None, "start": start}
            factors[place] = Factors(A=A, B=B, **made)
    adapters = attach(model.to(dtype), factors, 2.0)
    with torch.no_grad():
        for layer in adapters:  # away from the start, which an offset takes back
            layer.lora_B.add_(0.2 * torch.randn(layer.lora_B.shape, generator=draw))
            assert (layer.offset_A is not None) == (start == "pretrained")
            weight: Any = merged.get_submodule(layer.name).weight
            weight.add_(layer.update())
    return model, merged.to(dtype), adapters, tokenizer


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("start", "R"), [("shifted", False), ("pretrained", False), ("pretrained", True)]
)
def test_a_token_launches_two_kernels_a_layer_more_than_a_merged_model(
    name: str, dtype: torch.dtype, start: str, R: bool
) -> None:
    """With a cache of keys and values that grows, in the loop that answers benchmarks; an offset
    costs nothing more."""
    model, merged, adapters, tokenizer = adapted(name, dtype, start, R)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:3]]
    passed: list[int] = []  # the layers that a token goes through
    for layer in adapters:
        layer.register_forward_hook(lambda *_: passed.append(1))

    def grown(model: Any, most: int) -> tuple[list[list[int]], int]:
        passed.clear()
        rules = decode.Rules(Sampling(most), frozenset(), decode.Stops(tokenizer, ()))
        answers = [decode.Answer(number, 0, number) for number in range(len(prompts))]
        with evaluating(model), Calls() as counted:
            list(decode.decode(model, prompts, rules, 0, 4, answers))
        return [answer.tokens for answer in answers], counted.total

    grown(model, 1)  # factors are cast and joined once
    before, layers = grown(model, 8)[1], len(passed)
    mine, after = grown(model, 24)
    layers = len(passed) - layers
    short, (theirs, long) = grown(merged, 8)[1], grown(merged, 24)
    assert len(mine[0]) == 24 and layers >= 16 * 14
    assert (after - before) - (long - short) == 2 * layers
    assert dtype != torch.float32 or mine == theirs


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
