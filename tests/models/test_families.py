"""Encoders of every family, as their users save them: a body alone, a masked model, a classifier.

What is drawn is in the adapter, so that a stranger's base of another seed is the same function
through PEFT, and so is the merged checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import config, models
from loraexp.adapter.adapted import attach
from loraexp.adapter.formats import merge, save_peft
from loraexp.adapter.layer import Factors
from tests.support.checkpoints import BART, SIZE, saved

V = {"vocab_size": 1024}
MARKS = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
BODY, MASKED, CLASSES = "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"
FAMILIES: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {  # saved as, targets, drawn
    "distilbert": (
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        MASKED,
        "q_lin,v_lin",
        ["pre_classifier", "classifier"],
    ),
    "electra": (SIZE | {"embedding_size": 16}, BODY, "query,value", ["classifier"]),
    "albert": (
        SIZE | {"embedding_size": 8},
        MASKED,
        "query,value",
        ["classifier", "albert.pooler"],
    ),
    "mpnet": (SIZE, MASKED, "q,v", ["classifier"]),
    "xlm-roberta": (SIZE | {"type_vocab_size": 1}, MASKED, "query,value", ["classifier"]),
    "camembert": (SIZE | {"type_vocab_size": 1}, BODY, "query,value", ["classifier"]),
    "modernbert": (SIZE | MARKS | {"pad_token_id": 0}, MASKED, "Wqkv", ["head", "classifier"]),
    "roformer": (SIZE | {"embedding_size": 16}, MASKED, "query,value", ["classifier"]),
    "bart": (BART, BODY, "q_proj,v_proj", ["classification_head"]),
    "qwen2": (
        SIZE | {"num_key_value_heads": 1, "pad_token_id": 0},
        CLASSES,
        "q_proj,v_proj",
        ["score"],
    ),
    "xlnet": (
        {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
        BODY,
        "layer_1",
        ["sequence_summary", "logits_proj"],
    ),
}


def base_of(path: Path, targets: str) -> models.Base:
    given = [f"model.path={path}", f"model.targets=[{targets}]", "model.config=null"]
    return models.open(config.check(config.compose(["model=tiny-bert", *given]))[0].model)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_has_all_that_a_base_of_another_seed_lacks(name: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    sizes, auto, targets, drawn = FAMILIES[name]
    path = saved(tmp_path / "m", sizes | V | {"model_type": name}, auto)
    base = base_of(path, targets)
    model: Any = base.load(dtype=torch.float32, head_seed=0, num_labels=3)
    assert models.head(model) == drawn
    torch.manual_seed(1)
    factors = {
        place: Factors(
            A=torch.randn(2, layer.in_features),  # type: ignore[call-overload]
            B=torch.randn(layer.out_features, 2),  # type: ignore[call-overload]
            start="shifted",
        )
        for place, layer in base.targets(model).items()
    }
    tokens = torch.randint(5, 1024, (2, 9))
    tokens[:, -1] = 2
    asked = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.no_grad():
        adapters = attach(model, factors, 0.5, drawn)
        ours = model(**asked).logits
        save_peft(
            adapters, tmp_path / "a", base="m", revision=None, task_type="SEQ_CLS", head=drawn
        )
        torch.manual_seed(5)
        stranger = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=3, ignore_mismatched_sizes=True
        )
        through = PeftModel.from_pretrained(stranger, tmp_path / "a").eval()
        torch.testing.assert_close(through(**asked).logits, ours, rtol=1e-5, atol=1e-6)
        merge(adapters).save_pretrained(tmp_path / "w")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "w").eval()
        torch.testing.assert_close(again(**asked).logits, ours, rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_not_linear_is_named(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "m", V | {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
    )
    with pytest.raises(ValueError, match=r"'c_attn' is a Conv1D, and an adapter goes on a linear"):
        base_of(path, "c_attn").targets()
