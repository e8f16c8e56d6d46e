"""Bytes of logits at vocabularies of 32,000 and 256,000 words, without numbers: no float32 copy of
all of them in a step, in a batch of statistics, or where likelihoods are taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraexp.machine.alive import Alive
from loraexp.machine.meta import META
from loraexp.statistics import probes
from loraexp.statistics.probes import Pass, probe_sum
from loraexp.tasks import losses
from loraexp.tasks.text import LOGITS
from tests.support.skeletons import Subject

TOKENS = 2048


def beside(words: int, of: Any) -> tuple[int, int]:
    """Bytes at the peak of forward and backward pass beside bfloat16 logits; bytes of those."""
    logits = torch.empty(1, TOKENS, words, dtype=torch.bfloat16, device=META, requires_grad=True)
    alive = Alive()
    alive.note(logits)
    before = alive.now
    with alive:
        of(logits).backward()
    return alive.peak - before, logits.nbytes


@pytest.mark.parametrize("words", [32_000, 256_000])
def test_a_loss_has_the_gradient_and_two_chunks_beside_the_logits(words: int) -> None:
    labels = torch.zeros(TOKENS, dtype=torch.int64, device=META)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return losses.cross_entropies(logits.flatten(0, 1), labels, -100).sum()

    peak, size = beside(words, loss)
    chunk = losses.CHUNK["accelerator"]
    assert size < peak <= size + 2.1 * chunk < 2 * size  # a float32 copy alone is twice the logits


@pytest.mark.parametrize("kind", ["probe", "theta"])
@pytest.mark.parametrize("words", [32_000, 256_000])
def test_a_probe_has_its_numbers_and_a_few_chunks_beside_them(words: int, kind: Any) -> None:
    asked = "cross_entropy" if kind == "theta" else "squared"
    peak, size = beside(words, lambda logits: probe_sum(logits, Pass(kind), asked, 0, 0))
    assert size < peak <= size + 6 * 4 * probes.LOOKED_AT < 4 * size


@pytest.mark.parametrize("kind", ["probe", "theta"])
@pytest.mark.parametrize("asked", ["squared", "cross_entropy"])
def test_probes_in_chunks_are_those_of_the_whole(
    kind: Any, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for looked_at in (1, 14, 2**20):
        monkeypatch.setattr(probes, "LOOKED_AT", looked_at)
        total = probe_sum(outputs, Pass(kind), asked, 0, 2)
        assert total == 0
        found += torch.autograd.grad(total, outputs)
    assert found[0].any(-1).all()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_likelihoods_of_a_wide_batch_are_taken_some_rows_after_others() -> None:
    """64 rows of 1,024 tokens at Gemma-2's 256,000 words, whose soft cap copies them."""
    given = ("model=gemma-2-9b", "task=metamath", "init=lora", "train.eval_batch_size=64")
    one = Subject(*given, lengths=(1024,) * 64, layers=2)
    weights = sum(p.nbytes for p in one.model.parameters())
    beside = one.evaluated().peak - weights
    assert LOGITS < beside < 6 * LOGITS < 64 * 1024 * 256_000 * 2 / 5
