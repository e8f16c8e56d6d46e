"""A base is opened once: what a run asks of it is read a single time."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraexp import config, models
from loraexp.models.load import recompute
from loraexp.run import kept
from tests.support.checkpoints import ENCODERS, saved, settings_of, t5_of_folder
from tests.support.runs import run

ONCE = ("locate", "load_config", "new_modules", "load_tokenizer", "pretrained")


@pytest.mark.parametrize("name", ["encoder", "full", "text"])
def test_a_run_asks_each_thing_of_its_base_once(name: str, tmp_path: Path) -> None:
    words = {
        "encoder": ["model=minilm", "init=lora"],
        "full": ["model=minilm", "init=full"],
        "text": t5_of_folder(tmp_path) if name == "text" else [],
    }[name]
    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and "loraexp/models/" in code.co_filename and code.co_name in ONCE:
            calls[code.co_name] += 1

    kept.clear()
    short = ["task.limit_train=32", "task.limit_eval=16", "train.max_steps=1", "init.samples=8"]
    given = [*words, *(word for word in short if word.partition("=")[0] not in " ".join(words))]
    sys.setprofile(count)
    try:
        outcome = run(*given, out=tmp_path / "out")
    finally:
        sys.setprofile(None)
    assert outcome.record["status"] == "finished"
    assert calls == dict.fromkeys(ONCE, 1)


def test_recomputed_layers_are_asked_for_by_a_name_that_is_not_deprecated() -> None:
    words = ["model=minilm", "model.gradient_checkpointing=true"]
    settings = config.check(config.compose(words))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = models.open(settings.model).load(dtype=torch.float32, head_seed=0, num_labels=2)
    assert sum(bool(getattr(m, "gradient_checkpointing", False)) for m in model.modules()) >= 2


def test_recomputed_layers_are_asked_for_by_the_older_name_too() -> None:
    asked: list[dict[str, bool]] = []
    recompute(SimpleNamespace(gradient_checkpointing_enable=asked.append))
    assert asked == [{"use_reentrant": False}]


# sizes that are no multiple of what a generator fills at once
ODD = {"hidden_size": 18, "intermediate_size": 30, "num_attention_heads": 2}


def in_both(settings: Any, **labels: Any) -> list[dict[str, torch.Tensor]]:
    return [
        models.open(settings).load(dtype=dtype, head_seed=3, **labels).state_dict()
        for dtype in (torch.float32, torch.bfloat16)
    ]


def test_what_is_drawn_for_bf16_is_what_is_drawn_for_fp32_rounded(tmp_path: Path) -> None:
    """A model's random weights, and the head of a checkpoint: a seed means the same in every
    precision."""
    own = config.read_yaml("model", "tiny-bert")["config"]
    folder = saved(tmp_path, ENCODERS["bert"] | ODD)
    stored = settings_of("tiny-bert", path=str(folder), config=None)
    for settings in (settings_of("tiny-bert", config=own | ODD), stored):
        single, narrow = in_both(settings, num_labels=3)
        assert single.keys() == narrow.keys() and single["classifier.weight"].shape == (3, 18)
        for key, value in single.items():
            assert narrow[key].dtype == torch.bfloat16 or not value.is_floating_point(), key
            assert torch.equal(narrow[key], value.to(narrow[key].dtype)), key
