"""Frozen weights in 4 and 8 bits, by bitsandbytes itself on the CPU: a run from initialising to its
saved adapter, stopped on the way and gone on with, and that adapter on the stored weights."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraexp import cli, models
from loraexp.adapter.adapted import AdaptedLinear
from loraexp.machine.hub import SourceError
from loraexp.machine.signals import Interrupted
from loraexp.models.load import quantised
from loraexp.run import kept, train
from loraexp.sweep import estimate
from tests.support.checkpoints import settings_of
from tests.support.glue import write_glue
from tests.support.runs import metric_lines, run
from tests.support.shortened import shortened
from tests.support.text_tasks import write_gsm8k

KINDS = ("encoder", "LLaMA", "T5")
BITS = ("4bit", "8bit")
MODELS = {"encoder": "tiny-bert", "LLaMA": "tiny-llama", "T5": "tiny-t5"}
bits_and_bytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and of each kind a checkpoint: what has random weights is not quantised."""
    root = tmp_path_factory.mktemp("quantised")
    write_gsm8k(root, rows=24)
    write_glue(root / "glue")
    for name in MODELS.values():
        base = models.open(settings_of(name))
        model: Any = base.load(dtype=torch.float32, head_seed=0)
        model.save_pretrained(root / name)
    return root


def words(place: Path, kind: str, bits: str) -> list[str]:
    name = MODELS[kind]
    task = {
        "encoder": [],
        "LLaMA": [
            "task=gsm8k",
            f"task.data_dir={place}",
            "task.max_length=64",
            "task.protocol=[lora_ga]",
        ],
        "T5": ["task=cola_t5", f"task.data_dir={place / 'glue'}"],
    }[kind]
    stored = [f"model.path={place / name}", "model.config=null", f"model.quantise={bits}"]
    return [
        *(f"model={name}", *task, *stored, "init=lora_one", "init.samples=8", "lr=1e-3"),
        *("task.limit_train=24", "task.limit_eval=4", "train.batch_size=8", "train.max_steps=4"),
        *("train.log_every=1", "train.eval_every=2", "train.checkpoint_every=2"),
    ]


@bits_and_bytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_quantised_weights(
    kind: str, bits: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes

    shortened(monkeypatch, "gsm8k", "lora_ga", 8)
    linear = getattr(bitsandbytes.nn, {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits])
    models_of_runs: list[Any] = []
    make, step = kept.model, train.step

    def noted(*given: Any, **how: Any) -> Any:
        models_of_runs.append(make(*given, **how))
        return models_of_runs[-1]

    monkeypatch.setattr(kept, "model", noted)
    own = words(place, kind, bits)
    notes: list[str] = []
    whole = run(*own, out=tmp_path / "whole", notes=notes)
    (model,) = models_of_runs
    layers = {n: m.base for n, m in model.named_modules() if isinstance(m, AdaptedLinear)}
    # transformers keeps T5's second product of a block in float32
    whole_ones = {name for name, base in layers.items() if type(base) is torch.nn.Linear}
    assert whole_ones == {name for name in layers if name.endswith(".wo")}
    assert whole_ones < layers.keys()
    assert all(type(layers[name]) is linear for name in layers.keys() - whole_ones)
    head = {"encoder": "classifier", "LLaMA": "lm_head", "T5": "lm_head"}[kind]
    assert type(model.get_submodule(head)) is torch.nn.Linear
    record = whole.record
    assert record["status"] == "finished" and record["metrics"]
    assert record["config"]["model"]["quantise"] == bits
    kept_ones = {
        "encoder": "bert.pooler.dense, classifier",
        "LLaMA": "lm_head",
        "T5": "4 layers wo, lm_head",
    }[kind]
    assert any(f"model.quantise={bits} leaves {kept_ones} as stored" in note for note in notes)
    trained = load_file(whole.folder / "adapter" / "adapter_model.safetensors")
    started = load_file(whole.folder / "init" / "adapter_model.safetensors")
    assert any(float((trained[key] - started[key]).abs().max()) > 1e-4 for key in trained)

    def telling(made: Any, parts: Any, number: int, *rest: Any) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(made, parts, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train, "step", telling)
        run(*own, out=tmp_path / "cut")
    again = run(*own, out=tmp_path / "cut")
    assert again.record["resumed"][0]["step"] == 3
    factors = [
        folder / "adapter" / "factors.safetensors" for folder in (whole.folder, again.folder)
    ]
    assert factors[0].read_bytes() == factors[1].read_bytes()
    assert metric_lines(again.folder) == metric_lines(whole.folder)
    assert again.record["metrics"] == record["metrics"]
    # on the stored weights the saved adapter is one function, whatever the run computed in
    assert cli.main(["verify", str(whole.folder)]) == 0
    assert cli.main(["eval", str(whole.folder)]) == 0
    again_scored = json.loads((whole.folder / "record.json").read_text())["evaluations"][-1]
    both = again_scored["metrics"].keys() & record["metrics"].keys()
    assert both and all(again_scored["metrics"][key] == record["metrics"][key] for key in both)


@bits_and_bytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_the_weights_as_they_are_stored(kind: str, bits: str, place: Path) -> None:
    own = {"path": str(place / MODELS[kind]), "config": None, "quantise": bits}
    settings = settings_of(MODELS[kind], **own)
    base, single = models.open(settings), torch.float32
    model = base.load(dtype=single, head_seed=0, device=torch.device("cpu"))
    held = 0
    for parameter in model.parameters():
        held += parameter.numel() * parameter.element_size()
        # of 8 bits a scale a row, which at the width of a real model is nothing
        if hasattr(parameter, "quant_state"):
            held += parameter.quant_state.absmax.nbytes
    assert any(not parameter.is_floating_point() for parameter in model.parameters())
    planned = estimate.weight_bytes(base.bare(single), settings)
    assert planned == pytest.approx(held, abs=1024)  # biases of 4-bit layers are bf16


@bits_and_bytes
@pytest.mark.parametrize("bits", BITS)
def test_a_pooler_that_is_drawn_is_not_quantised(bits: str, place: Path, tmp_path: Path) -> None:
    """A masked language model has none: it trains in full, as the head does."""
    shutil.copytree(place / "tiny-bert", tmp_path / "masked")
    path = tmp_path / "masked" / "model.safetensors"
    stored = {name: x for name, x in load_file(path).items() if "pooler" not in name}
    save_file(stored, path, metadata={"format": "pt"})
    own = {"path": str(tmp_path / "masked"), "config": None, "quantise": bits}
    model: Any = models.open(settings_of("tiny-bert", **own)).load(
        dtype=torch.float32, head_seed=0, device=torch.device("cpu")
    )
    assert models.head(model) == ["classifier", "bert.pooler"]
    for name in ("classifier", "bert.pooler.dense"):
        assert type(model.get_submodule(name)) is torch.nn.Linear, name


@pytest.mark.parametrize("bits", BITS)
def test_what_cannot_be_quantised_says_what_is_missing(
    bits: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {"path": str(place / "tiny-llama"), "config": None, "quantise": bits}
    base = models.open(settings_of("tiny-llama", **stored))
    with pytest.raises(
        SourceError,
        match=f"model.quantise={bits}: bitsandbytes has no products on mps; set device=cuda or",
    ):
        quantised(base, torch.device("mps"))
    with pytest.raises(SourceError, match=f"model.quantise={bits}: .* has random weights"):
        models.open(settings_of("tiny-llama", quantise=bits)).load(
            dtype=torch.float32, head_seed=0, device=torch.device("cpu")
        )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = f'model.quantise={bits}: needs bitsandbytes: pip install "loraexp.quantised.", or set'
    with pytest.raises(SourceError, match=said):
        base.load(dtype=torch.float32, head_seed=0, device=torch.device("cpu"))
