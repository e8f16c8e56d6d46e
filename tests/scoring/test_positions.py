"""Models that know a place by its number: the batch changes no answer, and the window holds what is
asked and what is answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loraexp.scoring import backends, decode, harness, protocols
from loraexp.scoring.generate import generate
from loraexp.scoring.likelihood import score_choices
from loraexp.scoring.samples import Question
from tests.support.written import byte_tokenizer, made

PROMPTS = ["Q: How many eggs?\nA: ", "no", "Ducks lay eggs. " * 3, "12 + 7 ="]
APART = ["bart", "pegasus", "marian", "led"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.mark.parametrize("kind", [*APART, "gpt2"])
@pytest.mark.parametrize(
    "how", [{}, {"beams": 3}, {"temperature": 1.0, "samples": 2}], ids=["greedy", "beams", "drawn"]
)
def test_the_batch_changes_no_answer(kind: str, how: dict[str, Any], tokenizer: Any) -> None:
    """A shorter prompt that is padded on the left would stand at other positions."""
    model = made(kind)
    alone = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=1, **how)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=4, **how) == alone
    assert len({text for texts in alone for text in texts}) > 2


@pytest.mark.parametrize("kind", APART)
def test_an_answer_is_the_arg_max_of_the_model_as_it_trains(kind: str, tokenizer: Any) -> None:
    model: Any = made(kind)
    ids, start = tokenizer(PROMPTS[2], return_tensors="pt")["input_ids"], 2
    new = [start]
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([new])).logits
            new.append(int(logits[0, -1].argmax()))
    ended = new[1 : new.index(1)] if 1 in new else new[1:]
    text = tokenizer.decode(ended, skip_special_tokens=True)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=4)[2] == [text]


@pytest.mark.parametrize("kind", APART)
@pytest.mark.parametrize("choices", [["A", "B"], ["yes", "not at all"]], ids=["one", "several"])
def test_choices_score_alike_in_any_batch(kind: str, choices: list[str], tokenizer: Any) -> None:
    model = made(kind)
    alone = score_choices(model, tokenizer, PROMPTS, choices, batch_size=1)
    together = score_choices(model, tokenizer, PROMPTS, choices, batch_size=4)
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-4)
    assert np.ptp(alone, axis=0).min() > 1e-3


@pytest.mark.parametrize("kind", APART)
def test_each_side_has_its_own_window(kind: str, tokenizer: Any) -> None:
    encoder = {"max_encoder_position_embeddings": 64} if kind == "led" else {}
    small = made(kind, max_position_embeddings=64, max_decoder_position_embeddings=64, **encoder)
    full = "x" * 64
    assert generate(small, tokenizer, [full], max_new_tokens=64, batch_size=1)
    with pytest.raises(ValueError, match=r"prompt 0 has 65 tokens, .* window is 64: .*skip_bad"):
        generate(small, tokenizer, [full + "x"], max_new_tokens=64, batch_size=1)
    with pytest.raises(ValueError, match=r"up to 65 tokens .* decoder has 64 positions") as caught:
        generate(small, tokenizer, ["x"], max_new_tokens=65, batch_size=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"up to 512 tokens are wanted"):
        harness.score(
            small,
            tokenizer,
            protocols.find("gsm8k", "lora_ga"),
            [Question("a", "1", "test.jsonl row 3")],
            backends.Answering(batch_size=2),
        )


def test_relative_positions_have_no_window(tokenizer: Any) -> None:
    assert generate(made("t5"), tokenizer, ["x" * 2000], max_new_tokens=2, batch_size=1)


@pytest.mark.parametrize("look", [False, True], ids=["every token", "every 16"])
def test_a_row_that_ended_never_stands_beyond_the_window(
    look: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have grown to different lengths, and those that ended grow on until the host looks."""
    monkeypatch.setattr(decode, "is_accelerator", lambda device: look)
    prompts = ["x" * 40 + "yz", "z" * 40 + "yx", "yx" * 10, "xz" * 10, "zx" * 10, "xy" * 10]
    prompts += ["x"] * 36  # so that a part is more than a batch
    model = made("gpt2", n_positions=64)
    model.generation_config.eos_token_id = [25, 102]  # type: ignore[union-attr]
    alone = generate(model, tokenizer, prompts, max_new_tokens=22, batch_size=1)
    assert generate(model, tokenizer, prompts, max_new_tokens=22, batch_size=3) == alone
    # the first fills the window, and others join it when it has 6 tokens to go
    assert len(alone[0][0]) == 22 and len(alone[1][0]) == 0 and len(alone[2][0]) < 16
