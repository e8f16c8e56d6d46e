"""vLLM beside our own generation, on a GPU: the same questions, the same answers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import models
from loraexp.adapter.adapted import attach
from loraexp.adapter.layer import Factors
from loraexp.scoring import backends
from loraexp.scoring.harness import score
from loraexp.scoring.samples import Question
from tests.support.checkpoints import settings_of
from tests.support.shortened import shortened

QUESTIONS = [
    f"Ann has {i} apples{' and then some more' * (i % 4)} and eats {i % 3}. How many are left?"
    for i in range(3, 19)
]


@pytest.mark.gpu
def test_vllm_answers_as_our_own_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 with an adapter, greedily, in float32: kernels may differ in the last digit, so one
    answer in eight may part."""
    pytest.importorskip("vllm")
    settings = settings_of("smollm2-135m")
    tokenizer = models.open(settings).tokenizer
    model = models.open(settings).load(dtype=torch.float32, head_seed=0).to("cuda")
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: Factors(
            A=torch.randn(4, layer.in_features, generator=generator) / layer.in_features**0.5,
            B=torch.randn(layer.out_features, 4, generator=generator) * 1e-2,
            start="shifted",
        )
        for name, layer in model.named_modules()
        if name.endswith("q_proj") and isinstance(layer, torch.nn.Linear)
    }
    attach(model, factors, 1.0, [])
    short = shortened(monkeypatch, "gsm8k", "lora_ga", 48)
    asked = [Question(short.ask(question=question), "1") for question in QUESTIONS]
    places: list[Path] = []
    kept = backends.write_merged
    monkeypatch.setattr(
        backends,
        "write_merged",
        lambda model, tokenizer, folder: (places.append(folder), kept(model, tokenizer, folder)),
    )
    written: dict[str, list[str]] = {}
    for backend in ("hf", "vllm"):
        how = backends.Answering(batch_size=8, backend=backend)  # type: ignore[arg-type]
        with backends.one_copy():
            for again in range(2):
                score(model, tokenizer, short, asked, how, tmp_path / f"{backend}{again}")
        written[backend] = outputs(tmp_path / f"{backend}1")
        assert written[backend] == outputs(tmp_path / f"{backend}0")
    same = sum(ours == theirs for ours, theirs in zip(written["hf"], written["vllm"], strict=True))
    assert same >= len(asked) * 7 // 8
    assert (
        len(places) == 1
        and not places[0].exists()
        and str(places[0]).startswith(tempfile.gettempdir())
    )


def outputs(folder: Path) -> list[Any]:
    return [
        json.loads(line)["output"] for line in (folder / "samples.jsonl").read_text().splitlines()
    ]
