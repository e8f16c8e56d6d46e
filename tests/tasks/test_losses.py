"""Cross-entropies in chunks: the values and gradients of the whole, and no float32 copy of all
logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from loraexp.run.batches import count_labels
from loraexp.tasks import losses
from tests.support.text_tasks import ROWS, toy


class Largest(TorchDispatchMode):
    """The largest tensor of each dtype that any call gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[torch.dtype, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        for x in tree_flatten(result)[0]:
            if isinstance(x, torch.Tensor):
                self.numbers[x.dtype] = max(self.numbers.get(x.dtype, 0), x.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_give_the_values_and_gradients_of_the_whole(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    tokens, words = 23, 11
    monkeypatch.setitem(losses.CHUNK, "cpu", 4 * words * chunk)
    logits = (3 * torch.randn(tokens, words)).to(dtype).requires_grad_()
    labels = torch.randint(0, words, (tokens,))
    labels[::4] = -100
    weights = torch.rand(tokens, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    upper = logits.double() if dtype == torch.float64 else logits.float()
    whole = functional.cross_entropy(upper, labels, ignore_index=-100, reduction="none")
    found = losses.cross_entropies(logits, labels, -100)
    assert torch.equal(found, whole)
    expected = torch.autograd.grad((whole * weights).sum(), logits)[0]
    gradient = torch.autograd.grad((found * weights).sum(), logits)[0]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient, expected, rtol=4 * eps, atol=eps)
    assert gradient.dtype == dtype and not gradient[::4].any()


def test_beside_bfloat16_logits_there_is_no_copy_in_float32() -> None:
    """At LLaMA's vocabulary: float32 is held for a chunk alone."""
    words, tokens = 32_000, 256
    logits = torch.randn(tokens, words, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, words, (tokens,))
    with Largest() as seen:
        losses.cross_entropies(logits, labels, -100).sum().backward()
    assert seen.numbers[torch.bfloat16] == tokens * words
    assert 4 * seen.numbers[torch.float32] <= losses.CHUNK["cpu"]


@pytest.mark.parametrize(
    ("kind", "learn"), [("causal", False), ("causal", True), ("seq2seq", False)]
)
def test_what_the_host_knows_of_a_batch_is_in_its_labels(
    kind: str, learn: bool, tmp_path: Path
) -> None:
    task, _ = toy(tmp_path, kind, ROWS, learn_prompt=learn)
    examples = task.splits["train"]
    for rows in ([0], [1, 2], [0, 1, 2]):
        batch: Any = task.collate(examples, np.array(rows))
        here = batch["labels"] != -100
        assert batch.count == int(here.sum()) == task.labels_in(examples, np.array(rows))
        assert batch.most == int(here.sum(1).max())
        assert batch.first == int(here.any(0).nonzero()[0])
        plain: Mapping[str, Any] = dict(batch)
        assert count_labels(dict(plain)) == batch.count  # read where it is not known
