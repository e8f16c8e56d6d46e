"""A loss keeps no keys and values: they are for generation, and cost memory at every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraexp import models
from loraexp.tasks.text import TextTask
from tests.models.test_text_models import settings_of


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-llama", "tiny-gemma", "tiny-mistral"])
def test_the_loss_of_a_text_task_keeps_no_cache(name: str) -> None:
    settings = settings_of(name)
    model: Any = models.open(settings).load(dtype=torch.float32, head_seed=0)
    kept: list[Any] = []
    model.register_forward_hook(
        lambda _module, _arguments, output: kept.append(output.past_key_values)
    )
    tokens = torch.randint(5, 1024, (2, 9))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    reads = {"decoder_input_ids": tokens} if settings.kind == "seq2seq" else {}
    model(input_ids=tokens, **reads)
    assert kept.pop() is not None  # what the model does by itself
    task: Any = TextTask.__new__(TextTask)
    task.kind = settings.kind
    task._pad = 0
    logits, _ = TextTask._predictions(task, model, batch)
    assert logits.isfinite().all() and kept == [None]
