"""Models for tests: the settings of those of conf/model, and checkpoints of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loraexp import config
from loraexp.config.settings import ModelSettings
from loraexp.models.tokenizer import trained
from tests.support.glue import write_glue


def settings_of(name: str, **changes: object) -> ModelSettings:
    tasks = {"encoder": "cola", "seq2seq": "cola_t5", "causal": "gsm8k"}
    task = tasks[config.read_yaml("model", name)["kind"]]
    settings, _ = config.check(config.compose([f"model={name}", f"task={task}"]))
    return ModelSettings(**{**vars(settings.model), **changes})  # type: ignore[arg-type]


SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 30522,
}


ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SIZE | {"model_type": "bert"},
    "roberta": SIZE | {"model_type": "roberta", "max_position_embeddings": 514},
    "deberta-v2": (
        SIZE
        | {
            "model_type": "deberta-v2",
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
        }
    ),
}


TEXT: dict[str, dict[str, Any]] = {
    "t5": {
        "model_type": "t5",
        "vocab_size": 1024,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 1024, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": SIZE | {"model_type": "llama", "vocab_size": 1024, "num_key_value_heads": 1},
    "qwen2": (
        SIZE
        | {
            "model_type": "qwen2",
            "vocab_size": 1024,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        }
    ),
}


BART: dict[str, Any] = {
    "model_type": "bart",
    "vocab_size": 1024,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 64,
}


def saved(
    folder: Path,
    architecture: dict[str, Any],
    auto: str = "AutoModelForSequenceClassification",
    **labels: Any,
) -> Path:
    """A checkpoint of random weights, as its users save one."""
    import transformers

    torch.manual_seed(7)
    own = transformers.AutoConfig.for_model(**architecture, **labels)
    getattr(transformers, auto).from_config(own).save_pretrained(folder)
    return folder


def text_settings(path: Path, kind: str, target: str) -> ModelSettings:
    task, model = (
        ("task=cola_t5", "model=tiny-t5")
        if kind == "seq2seq"
        else ("task=gsm8k", "model=tiny-llama")
    )
    overrides = [
        task,
        model,
        "model.config=null",
        f"model.path={path}",
        f"model.targets=[{target}]",
    ]
    return config.check(config.compose(overrides))[0].model


def t5_of_folder(tmp_path: Path) -> list[str]:
    """The overrides of a T5 in a folder, as its users save one, on a task's rows."""
    own = TEXT["t5"] | {"decoder_start_token_id": 0}
    base = saved(tmp_path / "base", own, "AutoModelForSeq2SeqLM")
    trained("trained:1024", "seq2seq").save_pretrained(base)
    folder = write_glue(tmp_path / "glue")
    return [
        "task=cola_t5",
        f"task.data_dir={folder}",
        "model=tiny-t5",
        "model.config=null",
        "model.tokenizer=null",
        f"model.path={base}",
        "train.max_steps=2",
        "rank=2",
        "init=pissa",
    ]
