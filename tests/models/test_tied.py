"""An output layer that shares its weight with the embedding, as a target: through PEFT, merged, and
read again from its checkpoint, it is one function, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraexp import cli, models
from loraexp.adapter.adapted import attach
from loraexp.adapter.formats import merge, save_peft
from loraexp.adapter.layer import Factors
from tests.support.checkpoints import BART, SIZE, TEXT, saved, t5_of_folder, text_settings
from tests.support.runs import run

OPT = {
    "model_type": "opt",
    "vocab_size": 1024,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 16,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 16,
}
GROUPED = SIZE | {"vocab_size": 1024, "num_key_value_heads": 1, "head_dim": 8}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": TEXT["t5"],
    "t5-v1.1": TEXT["t5"] | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": TEXT["t5"] | {"model_type": "mt5"},
    "bart": BART,
    "pegasus": BART | {"model_type": "pegasus"},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": TEXT["gpt2"],
    "qwen2": TEXT["qwen2"],
    "opt": OPT,
    "gemma": GROUPED | {"model_type": "gemma"},
    "gemma2": GROUPED | {"model_type": "gemma2"},
    "mistral": GROUPED | {"model_type": "mistral"},
}
SHARED = (*SEQ2SEQ, *(name for name in CAUSAL if name != "mistral"))


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, of the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", [*SEQ2SEQ, *CAUSAL])
def test_a_shared_output_layer_is_one_function_everywhere(name: str, tmp_path: Path) -> None:
    import transformers
    from peft import PeftModel

    both = name in SEQ2SEQ
    auto = getattr(transformers, f"AutoModelFor{'Seq2SeqLM' if both else 'CausalLM'}")
    path = saved(tmp_path / "base", (SEQ2SEQ | CAUSAL)[name], auto.__name__)
    settings = text_settings(path, "seq2seq" if both else "causal", "lm_head")
    model: Any = models.open(settings).load(dtype=torch.float32, head_seed=0)
    assert models.untied(model) == ["lm_head"] * (name in SHARED)
    torch.manual_seed(1)
    tokens = torch.randint(5, 1000, (2, 9))
    asked = {"input_ids": tokens} | ({"decoder_input_ids": tokens[:, :5]} if both else {})
    with torch.no_grad():
        plain = auto.from_pretrained(path).eval()(**asked).logits
        assert off(model(**asked).logits, plain) < 1e-6
        embedding = model.get_input_embeddings().weight.detach().clone()
        factors = Factors(A=torch.randn(2, 16), B=torch.randn(1024, 2), start="shifted")
        adapters = attach(model, {"lm_head": factors}, 0.5)
        apart = model(**asked).logits
        assert off(apart, plain) > 0.1
        kind = models.PEFT_TASK[settings.kind]
        save_peft(
            adapters, tmp_path / "peft", base=str(path), revision=None, task_type=kind, head=[]
        )
        through = PeftModel.from_pretrained(auto.from_pretrained(path), tmp_path / "peft").eval()
        assert off(through(**asked).logits, apart) < 1e-6
        whole = models.written_out(merge(adapters))
        assert off(whole(**asked).logits, apart) < 1e-6
        assert torch.equal(whole.get_input_embeddings().weight, embedding)
        whole.save_pretrained(tmp_path / "merged")
        again = auto.from_pretrained(tmp_path / "merged").eval()
        assert off(again(**asked).logits, apart) < 1e-6
    stored = json.loads((tmp_path / "merged" / "config.json").read_text())
    # a version that knows no `scale_decoder_outputs` does not scale where the weights are not tied
    assert not stored["tie_word_embeddings"] and not stored.get("scale_decoder_outputs")


def test_a_run_on_a_shared_output_layer_verifies_and_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

    from loraexp.finished import verify
    from loraexp.finished.opened import FinishedRun

    outcome = run(*t5_of_folder(tmp_path), "model.targets=[lm_head,q]", out=tmp_path / "out")
    assert outcome.record["model"]["untied"] == ["lm_head"]
    opened = FinishedRun.of(outcome.folder, outcome.record)
    differences = verify.in_float32(opened)
    assert set(differences) == {"this project", "merged in float32", "PEFT"}
    assert max(differences.values()) < 1e-5
    for name, options in (("adapter", []), ("merged", ["--merged"])):
        to = tmp_path / name
        assert cli.main(["export", str(outcome.folder), "--to", str(to), *options]) == 0
        writes = GenerationConfig.from_pretrained(to)
        assert (writes.eos_token_id, writes.pad_token_id) == (1, 0)
        assert AutoTokenizer.from_pretrained(to)("a")["input_ids"]
    assert (
        "Do not merge it with `merge_and_unload`: lm_head"
        in (tmp_path / "adapter" / "README.md").read_text()
    )
    whole = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    expected = verify.logits(opened.adapted(torch.float32).model)
    assert off(verify.logits(whole), expected) < 1e-5


def test_training_every_weight_leaves_shared_ones_shared(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

    words = [word for word in t5_of_folder(tmp_path) if not word.startswith(("init", "rank"))]
    outcome = run(*words, "init=full", "model.targets=[lm_head,q]", out=tmp_path / "out")
    assert outcome.record["model"]["untied"] == []
    stored = load_file(outcome.folder / "adapter" / "model.safetensors")
    assert "lm_head.weight" not in stored and "shared.weight" in stored
    to = tmp_path / "to"
    assert cli.main(["export", str(outcome.folder), "--to", str(to), "--merged"]) == 0
    assert AutoTokenizer.from_pretrained(to)("a fine day")["input_ids"]
    assert GenerationConfig.from_pretrained(to).eos_token_id == 1
    whole = AutoModelForSeq2SeqLM.from_pretrained(to)
    assert whole.lm_head.weight is whole.shared.weight
