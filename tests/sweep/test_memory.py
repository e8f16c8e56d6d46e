"""The plan's memory against every byte that is alive, at LLaMA-2-7B's widths on the meta device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from loraexp import config, models
from loraexp.sweep import estimate, sizes
from tests.support.alive import Alive

LAYERS = 4


def flash(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, **_: Any) -> Tensor:
    """Attention as an accelerator computes it: without a (length, length) product."""
    found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, True)[0]
    return found


def peak_of_a_pass(settings: Any, batch: int, length: int) -> int:
    """Bytes alive at the peak of one forward and backward pass through the adapted model."""
    model = estimate.bare(settings.model, torch.bfloat16, 0)
    targets = models.target_layers(model, settings.model.targets, [])
    estimate.attached(model, targets, [], settings.rank, {"A", "B"}, settings.model)
    model.train()
    ids = torch.zeros(batch, length, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, length, length, dtype=torch.bfloat16, device="meta")
    alive = Alive()
    for tensor in (*model.parameters(), *model.buffers()):
        alive.note(tensor)
    with alive:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        loss = functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")
        del logits
        loss.backward()
    return alive.peak


@pytest.mark.parametrize(("batch", "length"), [(1, 1024), (4, 512)])
def test_training_needs_what_the_plan_says(
    batch: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "scaled_dot_product_attention", flash)
    words = ["model=llama-2-7b", "task=metamath", "precision=bf16", "init=lora", "device=cuda"]
    whole = sizes.offline(config.check(config.compose(words))[0])
    assert whole.model.config is not None
    small = replace(whole.model, config=whole.model.config | {"num_hidden_layers": LAYERS})
    train = replace(whole.train, batch_size=batch, micro_batches=1)
    settings = replace(whole, model=small, train=train)
    planned, _ = estimate.counted(sizes.shape_of(settings, length=length))
    measured = peak_of_a_pass(settings, batch, length)
    assert planned.train - planned.optimizer == pytest.approx(measured, rel=0.15)
