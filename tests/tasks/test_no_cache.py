"""A loss keeps no keys and values: they are for generation, and cost memory at every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loraexp import models
from tests.support.checkpoints import settings_of
from tests.support.text_tasks import ROWS, toy


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-llama", "tiny-gemma", "tiny-mistral"])
def test_the_loss_of_a_text_task_keeps_no_cache(name: str, tmp_path: Path) -> None:
    settings = settings_of(name)
    model: Any = models.open(settings).load(dtype=torch.float32, head_seed=0)
    kept: list[Any] = []
    model.register_forward_hook(
        lambda _module, _arguments, output: kept.append(output.past_key_values)
    )
    task, _ = toy(tmp_path, settings.kind, ROWS)
    batch = task.collate(task.splits["train"], np.arange(len(ROWS)))
    reads = {"decoder_input_ids": batch["input_ids"]} if settings.kind == "seq2seq" else {}
    model(input_ids=batch["input_ids"], **reads)
    assert kept.pop() is not None  # what the model does by itself
    loss, _ = task.loss_sum(model, batch)
    assert loss.isfinite() and kept == [None]
