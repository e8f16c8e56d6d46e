"""How often the host waits for an accelerator that answers, on one that pretends: once every 16
tokens, and once a batch of likelihoods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from loraexp.scoring.generate import generate
from loraexp.scoring.likelihood import continuations, score_rows
from tests.support.pretend import DEVICE, Mode, pretend_device
from tests.support.written import byte_tokenizer, made

PROMPTS = [f"Q: {'Ann has an apple. ' * (i % 3)}How many {i}?\nA: " for i in range(12)]
ENDS = list(range(100, 112))
ANSWERS = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "samples": 2},
    "stop": {"stop": ["e", "zz"]},
}


@pytest.fixture
def device() -> Iterator[Mode]:
    with pretend_device() as mode:
        yield mode


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def there(model: nn.Module, mode: Mode) -> nn.Module:
    """The model on the device, and nothing counted yet."""
    moved = model.to(DEVICE)
    mode.waits.clear()
    return moved


def answering(kind: str) -> nn.Module:
    model: Any = made(kind)
    model.generation_config.eos_token_id = ENDS  # answers have many lengths
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("how", ANSWERS)
def test_the_host_waits_once_every_16_tokens(
    kind: str, how: str, tokenizer: Any, device: Mode
) -> None:
    """Reading prompts, rows that leave and rows that join wait for nothing more."""
    given = {"max_new_tokens": 32, "batch_size": 4, **ANSWERS[how]}
    model = answering(kind)
    here = generate(model, tokenizer, PROMPTS, **given)
    steps: list[int] = []
    model.register_forward_hook(lambda *_: steps.append(1))
    assert generate(there(model, device), tokenizer, PROMPTS, **given) == here
    where = device.waits.lines()
    assert device.waits and 16 * len(device.waits) <= len(steps) + 16, where
    assert len(where) == 1, where


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_beams_wait_once_every_16_tokens(kind: str, tokenizer: Any, device: Mode) -> None:
    """Beside what transformers asks once a batch, of its settings and for the best beams."""
    waits = {}
    model: Any = made(kind)
    model.generation_config.eos_token_id = 1
    for tokens in (16, 64):
        given = {"max_new_tokens": tokens, "batch_size": 2, "beams": 3}
        here = generate(model, tokenizer, PROMPTS[:2], **given)
        there(model, device)
        assert generate(model, tokenizer, PROMPTS[:2], **given) == here
        waits[tokens] = len(device.waits)
        model = made(kind)
    assert waits[64] - waits[16] == 3, device.waits.lines()
    assert waits[16] <= 20, device.waits.lines()


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
@pytest.mark.parametrize(
    "choices", [["A", "B"], ["yes", "not at all"]], ids=["one token", "several"]
)
def test_a_batch_of_likelihoods_waits_once(
    kind: str, choices: list[str], tokenizer: Any, device: Mode
) -> None:
    """Also one whose rows have not as many choices."""
    model = made(kind).double()  # masks that hide nothing are left out on the host: other kernels
    rows = [
        continuations(model, tokenizer, prompt, [*choices, "C"][: 2 + i % 2], alone=False)
        for i, prompt in enumerate(PROMPTS)
    ]
    here = score_rows(model, tokenizer, rows, batch_size=5)
    found = score_rows(there(model, device), tokenizer, rows, batch_size=5)
    assert len(device.waits) == 3, device.waits.lines()
    assert found == [pytest.approx(row, rel=1e-9) for row in here]


def test_drawing_uses_no_sum_that_depends_on_its_order() -> None:
    """CUDA has no deterministic kernel of a running sum of floats, and refuses it where a run asks
    for the same bits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from loraexp.scoring.sampling import Sampling

    class Summed(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kw: Any = None):  # type: ignore[no-untyped-def]
            if function.overloadpacket.__name__ == "cumsum":
                assert not args[0].is_floating_point()
            return function(*args, **(kw or {}))

    logits, numbers = torch.randn(4, 300), torch.rand(4, dtype=torch.float64)
    with Summed():
        drawn = Sampling(1, temperature=0.7, top_k=50, top_p=0.9).choose(logits, numbers)
    assert ((drawn >= 0) & (drawn < 300)).all()
