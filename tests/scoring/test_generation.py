"""Generation and likelihoods: the batch changes nothing, answers end where they should, lm-eval
sees the live model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loraexp.scoring import backends, decode, harness, protocols
from loraexp.scoring import generate as generation
from loraexp.scoring.generate import generate
from loraexp.scoring.harness import run_task, score
from loraexp.scoring.likelihood import score_choices
from loraexp.scoring.samples import Question
from tests.support.helpers import shared_data
from tests.support.shortened import shortened
from tests.support.written import byte_tokenizer, made

PROMPTS = [
    "Q: How many eggs?\nA: ",
    "no",
    "Ducks lay eggs, and a farmer sells them at the market for two dollars. " * 3,
    "12 + 7 =",
]
HOW = backends.Answering(batch_size=2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module", params=["llama", "t5"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return made(request.param)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return made("llama")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"beams": 3},
        {"temperature": 0.8, "top_p": 0.95, "samples": 3},
        {"temperature": 1.0, "top_k": 5},
        {"stop": ["q", "zz"]},
    ],
    ids=["greedy", "beams", "top_p", "top_k", "stop"],
)
def test_the_batch_changes_no_answer(model: nn.Module, tokenizer: Any, how: dict[str, Any]) -> None:
    alone = generate(model, tokenizer, PROMPTS, max_new_tokens=16, batch_size=1, **how)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=16, batch_size=4, **how) == alone
    assert (
        generate(model, tokenizer, PROMPTS[::-1], max_new_tokens=16, batch_size=3, **how)[::-1]
        == alone
    )


def test_without_the_mask_the_batch_would_change_answers(
    llama: nn.Module, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = generate(llama, tokenizer, PROMPTS, max_new_tokens=16, batch_size=1)
    padded = decode.padded

    def unmasked(model: Any, rows: Any, value: int) -> Any:
        ids, mask = padded(model, rows, value)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(decode, "padded", unmasked)
    assert generate(llama, tokenizer, PROMPTS, max_new_tokens=16, batch_size=4) != alone


def test_greedy_is_the_arg_max_without_a_cache(llama: nn.Module, tokenizer: Any) -> None:
    ids = tokenizer(PROMPTS[0])["input_ids"]
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(llama(torch.tensor([ids])).logits[0, -1].argmax()))
    new = ids[-8:]
    new = new[: new.index(1)] if 1 in new else new
    assert generate(llama, tokenizer, PROMPTS[:1], max_new_tokens=8, batch_size=1) == [
        [tokenizer.decode(new, skip_special_tokens=True)]
    ]


def test_an_answer_ends_at_the_end_token(llama: nn.Module, tokenizer: Any) -> None:
    ids = tokenizer(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        first = int(llama(torch.tensor([ids])).logits[0, -1].argmax())
    ended = made("llama")
    ended.generation_config.eos_token_id = [1, first]  # as LLaMA 3's settings name several
    answers = generate(ended, tokenizer, PROMPTS[:2], max_new_tokens=8, batch_size=2)
    assert (
        len(answers[0][0]) <= 1 and answers[0][0] == tokenizer.decode([first])[: len(answers[0][0])]
    )


def test_the_first_stop_string_ends_an_answer_and_generation(
    llama: nn.Module, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = generate(llama, tokenizer, PROMPTS[:1], max_new_tokens=24, batch_size=1)[0][0]
    stop = text[6:8]
    steps: list[int] = []
    seen = decode.Stops.in_tokens
    monkeypatch.setattr(
        decode.Stops, "in_tokens", lambda self, tokens: (steps.append(1), seen(self, tokens))[1]
    )
    assert generate(
        llama, tokenizer, PROMPTS[:1], max_new_tokens=24, batch_size=1, stop=[stop, "never"]
    ) == [[text[: text.index(stop)]]]
    assert len(steps) < 24


def test_sampling_follows_the_distribution_and_the_seed(llama: nn.Module, tokenizer: Any) -> None:
    with torch.no_grad():
        logits = llama(torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])).logits[0, -1] / 3.0
    kept = logits.topk(3)
    answers = generate(
        llama,
        tokenizer,
        [PROMPTS[1]],
        max_new_tokens=1,
        batch_size=64,
        temperature=3.0,
        top_k=3,
        samples=600,
    )[0]
    for token, probability in zip(
        kept.indices.tolist(), kept.values.softmax(-1).tolist(), strict=True
    ):
        share = np.mean(
            [answer == tokenizer.decode([token], skip_special_tokens=True) for answer in answers]
        )
        assert share == pytest.approx(
            probability, abs=4 * (probability * (1 - probability) / 600) ** 0.5 + 1e-3
        )
    how = {"max_new_tokens": 8, "batch_size": 2, "temperature": 1.0}
    assert generate(llama, tokenizer, PROMPTS, seed=1, **how) != generate(
        llama, tokenizer, PROMPTS, seed=2, **how
    )


def test_generating_leaves_the_model_and_the_global_generator_alone(
    llama: nn.Module, tokenizer: Any
) -> None:
    llama.train()
    state, pads = torch.get_rng_state(), tokenizer.padding_side
    generate(llama, tokenizer, PROMPTS[:2], max_new_tokens=2, batch_size=2, temperature=1.0)
    assert (
        llama.training
        and torch.equal(torch.get_rng_state(), state)
        and tokenizer.padding_side == pads
    )
    assert all(parameter.requires_grad for parameter in llama.parameters())
    llama.eval()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"beams": 4, "temperature": 0.5}, "beams=4 with temperature=0.5"),
        ({"samples": 2}, "samples=2 at temperature 0"),
        ({"top_p": 0.0}, "top_p in (0, 1]"),
        ({"stop": [""]}, "an empty string"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    llama: nn.Module, tokenizer: Any, how: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        generate(llama, tokenizer, PROMPTS, **({"max_new_tokens": 4, "batch_size": 2} | how))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_beyond_the_window_is_named(tokenizer: Any) -> None:
    small = made("llama", max_position_embeddings=64)
    with pytest.raises(
        ValueError, match=r"prompt 2 has \d+ tokens and 8 more .* window is 64: .*skip_bad"
    ):
        generate(small, tokenizer, PROMPTS, max_new_tokens=8, batch_size=2)
    with pytest.raises(ValueError, match=r"test.jsonl row 3 has \d+ tokens and 512 more"):
        score(
            small,
            tokenizer,
            protocols.find("gsm8k", "lora_ga"),
            [Question("a", "1", "test.jsonl row 3")],
            HOW,
        )
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate(small, tokenizer, [""], max_new_tokens=8, batch_size=2)


@pytest.mark.parametrize("how", [{}, {"beams": 2}, {"temperature": 1.0}])
def test_a_model_that_diverged_generates_nothing(tokenizer: Any, how: dict[str, Any]) -> None:
    broken = made("llama")
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower lr"):
        generate(broken, tokenizer, PROMPTS[:2], max_new_tokens=4, batch_size=2, **how)


def test_bf16_scores_and_generates(llama: nn.Module, tokenizer: Any, short: Any) -> None:
    protocol = short("gsm8k", "lora_ga")
    found = score(
        llama, tokenizer, protocol, [Question("Why?", "1")], replace(HOW, precision="bf16")
    )
    assert set(found) == {"accuracy", "answered"}


# --------------------------------------------------------------------------------------------------
# likelihoods


@pytest.mark.parametrize(
    "choices", [["A", "B", "C"], ["yes", "no", "not at all"]], ids=["one", "several"]
)
def test_choices_score_alike_in_any_batch(
    model: nn.Module, tokenizer: Any, choices: list[str]
) -> None:
    alone = score_choices(model, tokenizer, PROMPTS, choices, batch_size=1)
    together = score_choices(model, tokenizer, PROMPTS, choices, batch_size=4)
    assert (
        alone == pytest.approx(together, rel=1e-5, abs=1e-4)
        and (alone.argmax(1) == together.argmax(1)).all()
    )


def test_a_choice_scores_the_sum_of_its_tokens(llama: nn.Module, tokenizer: Any) -> None:
    context = tokenizer(PROMPTS[0])["input_ids"]
    whole = tokenizer(f"{PROMPTS[0]} no")["input_ids"]
    with torch.no_grad():
        logs = llama(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(
        float(logs[place - 1, whole[place]]) for place in range(len(context), len(whole))
    )
    assert score_choices(llama, tokenizer, PROMPTS[:1], ["no", "yes"], batch_size=1)[
        0, 0
    ] == pytest.approx(expected, rel=1e-5)


def test_alone_scores_one_token_of_the_letter(llama: nn.Module, tokenizer: Any) -> None:
    with torch.no_grad():
        logs = (
            llama(torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])).logits[0, -1].log_softmax(-1)
        )
    expected = [float(logs[tokenizer(letter)["input_ids"][-1]]) for letter in "ABCD"]
    assert score_choices(llama, tokenizer, PROMPTS[:1], "ABCD", batch_size=1, alone=True)[
        0
    ] == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------------------
# through lm-eval


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A protocol with few new tokens."""
    yield lambda benchmark, name: shortened(monkeypatch, benchmark, name, 12)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_every_prompt_text_and_answer_is_written(
    llama: nn.Module, tokenizer: Any, short: Any, tmp_path: Path
) -> None:
    rows = [
        json.loads(line) for line in shared_data("gsm8k", "test.jsonl").read_text().splitlines()[:3]
    ]
    # the last again: its lines are replaced, not doubled
    for name in ("lora_ga", "lora_da", "lora_ga"):
        protocol = short("gsm8k", name)
        questions = [
            Question(
                protocol.ask(question=row["question"]),
                protocol.read_truth(row["answer"]),
                f"row {i}",
            )
            for i, row in enumerate(rows)
        ]
        found = score(llama, tokenizer, protocol, questions, HOW, tmp_path)
        assert set(found) == {"accuracy", "answered"} and 0 <= found["accuracy"] <= 1
    written = lines(tmp_path)
    assert [line["protocol"] for line in written] == ["gsm8k/lora_da"] * 3 + ["gsm8k/lora_ga"] * 3
    assert [(line["index"], line["truth"], line["prompt"]) for line in written[3:]] == [
        (i, protocol.read_truth(row["answer"]), protocol.ask(question=row["question"]))
        for i, row in enumerate(rows)
    ]
    expected = generate(
        llama, tokenizer, [q.prompt for q in questions], max_new_tokens=12, batch_size=3
    )
    assert [[line["output"]] for line in written[3:]] == expected


def test_our_generation_is_lm_evals_own(llama: nn.Module, tokenizer: Any) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    settings = {"until": ["zz"], "max_gen_toks": 8, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (prompt, dict(settings)), i)
        for i, prompt in enumerate(PROMPTS)
    ]
    with backends.language_model(llama, tokenizer, HOW) as live:
        assert isinstance(live, HFLM)
        assert live.generate_until(requests) == HFLM.generate_until(
            live, requests, disable_tqdm=True
        )


def test_lm_evals_likelihoods_are_ours(llama: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    protocol = protocols.find("mmlu", "lora_one")
    prompts = ["Which?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "What is it?\nAnswer:"]
    found = score(
        llama, tokenizer, protocol, [Question(prompt, "B") for prompt in prompts], HOW, tmp_path
    )
    ours = score_choices(llama, tokenizer, prompts, protocol.choices, batch_size=2)
    assert [line["scores"] for line in lines(tmp_path)] == [
        pytest.approx(row, rel=1e-5, abs=1e-4) for row in ours.tolist()
    ]
    assert found == {"accuracy": pytest.approx(np.mean(ours.argmax(1) == 1))}
    with pytest.raises(ValueError, match="expected one of A, B, C, D"):
        score(llama, tokenizer, protocol, [Question("x", "E", "row 7")], HOW)


def test_several_samples_of_a_row_are_averaged(
    llama: nn.Module, tokenizer: Any, short: Any, tmp_path: Path
) -> None:
    from loraexp.scoring import sandbox

    if sandbox.problem():
        pytest.skip(str(sandbox.problem()))
    protocol = short("humaneval", "lora_ga")
    question = Question(
        protocol.ask(prompt="def one():\n"),
        "def check(f):\n    assert f() == 1",
        opening="def one():\n    return 1\n",
        entry="one",
    )
    found = score(llama, tokenizer, protocol, [question], HOW, tmp_path)
    written = lines(tmp_path)
    assert len(written) == 5 and len({line["output"] for line in written}) > 1
    assert found["pass@1"] == pytest.approx(np.mean([line["right"] for line in written]))


def test_eight_shots_through_lm_evals_own_task(
    llama: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [
        json.loads(line) for line in shared_data("gsm8k", "test.jsonl").read_text().splitlines()[:2]
    ]
    found = run_task(llama, tokenizer, protocols.find("gsm8k", "cot"), rows, HOW, tmp_path)
    written = lines(tmp_path)
    assert set(found) == {"accuracy", "answered"} and len(written) == 2
    assert (
        written[0]["prompt"].count("Q: ") == 9
        and written[0]["prompt"].endswith("A:")
        and "ducks" in written[0]["prompt"]
    )
    assert harness.prompts_of(protocols.find("gsm8k", "cot"), rows) == [
        line["prompt"] for line in written
    ]
    with pytest.raises(ValueError, match="is not a task of lm-eval"):
        run_task(llama, tokenizer, protocols.find("gsm8k", "lora_ga"), rows, HOW)


def test_a_backend_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="vllm is not installed; pip install vllm .*evaluate.backend=hf"
    ):
        backends.require("vllm", "causal")
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="it runs causal models, and model.kind is seq2seq"):
        backends.require("vllm", "seq2seq")


def test_vllm_is_given_a_merged_copy_of_the_live_model(
    tokenizer: Any, short: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for vLLM, which is not at hand, reads the copy as vLLM would: its answers are
    those of the live adapter."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loraexp.adapter.adapted import attach
    from loraexp.adapter.layer import Factors

    model, protocol = made("llama"), short("gsm8k", "lora_ga")
    names = [
        name for name, module in model.named_modules() if name.endswith(("q_proj", "down_proj"))
    ]
    layers = {name: model.get_submodule(name) for name in names}
    torch.manual_seed(0)
    factors = {
        name: Factors(
            A=torch.randn(2, x.in_features), B=torch.randn(x.out_features, 2), start=start
        )
        for (name, x), start in zip(layers.items(), ["pretrained", "shifted"] * 2, strict=True)
    }
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=4)
    adapters = attach(model, factors, 0.5)
    with torch.no_grad():
        for layer in adapters:
            layer.lora_B.add_(0.3)
    where: list[str] = []

    def served(pretrained: str, **given: Any) -> Any:
        assert given == {"batch_size": "auto", "seed": 0, "dtype": "float32"}
        where.append(pretrained)
        merged = AutoModelForCausalLM.from_pretrained(pretrained)
        assert not any("lora" in name for name, _ in merged.named_parameters())
        return backends.live(merged, AutoTokenizer.from_pretrained(pretrained), HOW, None, {})

    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", SimpleNamespace(VLLM=served))  # type: ignore[misc]
    questions = [Question(prompt, "1") for prompt in PROMPTS]
    score(model, tokenizer, protocol, questions, replace(HOW, backend="vllm"), tmp_path)
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=4)
    assert [[line["output"]] for line in lines(tmp_path)] == expected != plain
    with backends.one_copy():  # several protocols and benchmarks of one model
        for name in ("first", "second"):
            score(
                model, tokenizer, protocol, questions, replace(HOW, backend="vllm"), tmp_path / name
            )
            assert [[line["output"]] for line in lines(tmp_path / name)] == expected and Path(
                where[1]
            ).exists()
    assert len(where) == 2 and not any(Path(place).exists() for place in where)
    assert model.get_submodule(names[0]) is adapters.layers[names[0]]


def test_code_is_not_even_generated_without_a_sandbox(
    llama: nn.Module, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraexp.scoring import sandbox

    monkeypatch.setattr(sandbox, "problem", lambda: "no sandbox here")
    monkeypatch.setattr(generation, "generate", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(sandbox.SandboxError, match="no sandbox here"):
        score(llama, tokenizer, protocols.find("humaneval", "lora_one"), [Question("x", "y")], HOW)
