"""What a run leaves in memory: nothing but what is kept for the next, with the collector of cycles
off."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from loraexp.run import kept
from loraexp.scoring import protocols
from tests.support.glue import write_glue
from tests.support.runs import run
from tests.support.shortened import shortened
from tests.support.text_tasks import write_gsm8k

TEXT = (
    "model=tiny-llama",
    "task=gsm8k",
    "task.limit_train=16",
    "task.limit_eval=1",
    "task.max_length=128",
    "train.batch_size=8",
)


LABELS = ("model=tiny-t5", "task=cola_t5", "train.batch_size=8", "task.limit_eval=8")


@pytest.mark.parametrize("kind", ["classification", "text", "labels", "beams", "full"])
def test_the_weights_of_a_run_go_with_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []
    make = kept.model

    def noted(*arguments: Any, **options: Any) -> Any:
        model = make(*arguments, **options)
        models.append(weakref.ref(model))
        models.extend(weakref.ref(p) for p in model.parameters())
        return model

    monkeypatch.setattr(kept, "model", noted)
    beams = protocols.find("gsm8k", "llm_adapters")
    assert beams.decoding is not None and beams.decoding.beams > 1
    shortened(monkeypatch, "gsm8k", "llm_adapters", 16)
    gsm8k = (*TEXT, f"task.data_dir={write_gsm8k(tmp_path)}")
    words = {
        "classification": (),
        "full": ("init=full",),
        "text": gsm8k,
        "beams": (*gsm8k, "task.recipe=lora_ga", "task.protocol=llm_adapters"),
        "labels": (*LABELS, f"task.data_dir={write_glue(tmp_path)}"),
    }[kind]
    # what libraries set up once is not the run's
    run(*words, "train.max_steps=1", out=tmp_path / "warm")
    models.clear()
    gc.collect()
    gc.disable()
    try:
        run(*words, "train.max_steps=1", "seed=1", out=tmp_path / "out")
        kept.clear()
        assert models and [reference() for reference in models if reference() is not None] == []
    finally:
        gc.enable()
