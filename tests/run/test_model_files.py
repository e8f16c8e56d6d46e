"""A whole model on the disk: the files of `save_pretrained` to the byte, from one tensor at a
time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraexp.machine.processes import Processes
from loraexp.run import model_files
from loraexp.run.model_files import write_model

MOE = {
    "model_type": "mixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "vocab_size": 96,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "tied llama": {"model_type": "llama", "tie_word_embeddings": True},
    "t5": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2},
    "bart": {"model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
    "bert": {"model_type": "bert"},
    "experts": MOE,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "vocab_size": 96,
    "pad_token_id": 0,
}


def built(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    settings = {**SMALL, **KINDS[kind]}
    name = settings.pop("model_type")
    builder: Any = AutoModelForCausalLM
    if name in ("t5", "bart"):
        builder = AutoModelForSeq2SeqLM
        settings = {k: v for k, v in settings.items() if k not in SMALL or k == "vocab_size"}
    if name == "bert":
        builder = AutoModelForSequenceClassification
    model: nn.Module = builder.from_config(AutoConfig.for_model(name, **settings))
    return model.to(dtype)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["50GB", "20KB"])
def test_the_files_are_those_of_save_pretrained(
    kind: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one file and in several with their index, tied weights once, experts by themselves as
    others read them."""
    model: Any = built(kind, torch.bfloat16 if kind == "llama" else torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    written: list[str] = []
    write: Callable[..., str] = model_files.write_tensors

    def noted(path: Path, *rest: Any) -> str:
        written.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(model_files, "write_tensors", noted)
    (tmp_path / "ours").mkdir()
    write_model(model, tmp_path / "ours", Processes("cpu"), max_shard_size=size)
    ours, theirs = files(tmp_path / "ours"), files(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    weights = [name for name in theirs if name.endswith(".safetensors")]
    assert (len(weights) > 1) == (size == "20KB")
    assert sorted(written) == weights


def test_experts_are_gathered_a_layer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are two tensors of a layer in the model, and twelve on the disk: what a layer's become
    is gone before the next one's are made."""
    from loraexp.machine import weight_files

    model: Any = built("experts")
    alive: list[tuple[str, list[weakref.ref[Tensor]]]] = []
    real = weight_files.pieces

    def watched(model: Any, name: str, value: Tensor) -> dict[str, Tensor]:
        made = real(model, name, value)
        if value.device.type != "meta":
            alive.append((name, [weakref.ref(x) for x in made.values()]))
            layers = {name for name, there in alive if any(one() is not None for one in there)}
            assert len({name.split(".")[2] for name in layers}) == 1
        return made

    monkeypatch.setattr(weight_files, "pieces", watched)
    write_model(model, tmp_path, Processes("cpu"))
    assert sorted(len(made) for _, made in alive) == [4, 4, 8, 8]
    assert all(one() is None for _, made in alive for one in made)


def test_what_is_made_of_several_is_written_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraexp.machine import weight_files

    model: Any = built("experts")
    model.save_pretrained(tmp_path / "theirs")
    monkeypatch.setattr(weight_files, "makers_of", lambda *_: None)
    (tmp_path / "ours").mkdir()
    write_model(model, tmp_path / "ours", Processes("cpu"))
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
