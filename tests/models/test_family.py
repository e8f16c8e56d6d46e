"""`model=hf`: the kind of a model is read from its config.json, and `all-linear` is what PEFT means
by it, for every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraexp import config, models
from loraexp.config import ConfigError
from tests.support.checkpoints import ENCODERS, TEXT, saved

KINDS = {"encoder": "task=tweets", "causal": "task=gsm8k", "seq2seq": "task=cola_t5"}


def kind_of(name: str) -> str:
    return "encoder" if name in ENCODERS else "seq2seq" if name == "t5" else "causal"


@pytest.mark.parametrize("name", [*ENCODERS, *TEXT])
def test_the_kind_is_that_of_the_architecture(name: str, tmp_path: Path) -> None:
    kind, folder = kind_of(name), tmp_path / "my model"
    auto = {"encoder": "SequenceClassification", "causal": "CausalLM", "seq2seq": "Seq2SeqLM"}
    saved(folder, (ENCODERS | TEXT)[name], f"AutoModelFor{auto[kind]}")
    words = ["model=hf", f"model.path='{folder}'", KINDS[kind]]
    settings, plain = config.check(config.compose(words))
    assert (settings.model.kind, settings.model.name) == (kind, "my-model")
    # said or found, it is the same run
    said = config.check(config.compose([*words, f"model.kind={kind}", "model.name=my-model"]))
    assert config.run_id(said[1]) == config.run_id(plain)
    if name == "gpt2":  # its layers are Conv1D
        with pytest.raises(ValueError, match="has no nn.Linear"):
            models.open(settings.model).targets()
        return
    peft = pytest.importorskip("peft")
    bare = models.open(settings.model).bare()
    ours = set(models.open(settings.model).targets())
    task = models.PEFT_TASK[kind]
    theirs = peft.get_peft_model(bare, peft.LoraConfig(target_modules="all-linear", task_type=task))
    wrapped = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in theirs.named_modules()
        if name.endswith(".lora_A")
    }
    # PEFT leaves an encoder's last layer alone: its whole head is trained here
    head = models.open(settings.model).head
    assert ours == {n for n in wrapped if not n.startswith(tuple(head)) and "embed" not in n}
    assert len(ours) >= 4


def test_a_body_alone_is_known_by_its_type_and_what_is_no_text_is_refused(tmp_path: Path) -> None:
    def kind(**architecture: object) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(architecture))
        return config.check(
            config.compose(["model=hf", f"model.path={folder}", "task=data", "task.data_dir=x"])
        )[0].model.kind

    assert kind(model_type="bert", architectures=["BertModel"]) == "encoder"
    assert kind(model_type="llama", architectures=["LlamaModel"]) == "causal"
    assert kind(model_type="t5") == "seq2seq"
    assert kind(model_type="bart", architectures=["BartForConditionalGeneration"]) == "seq2seq"
    assert kind(model_type="bert", architectures=["BertForSequenceClassification"]) == "encoder"
    assert kind(model_type="gpt2", architectures=["GPT2LMHeadModel"]) == "causal"
    with pytest.raises(ConfigError, match="its model_type is vit, which transformers has no class"):
        kind(model_type="vit", architectures=["ViTForImageClassification"])
    with pytest.raises(ConfigError, match="its config.json cannot be read"):
        config.check(config.compose(["model=hf", f"model.path={tmp_path}"]))


def test_all_linear_stands_alone() -> None:
    with pytest.raises(ValueError, match="all-linear stands alone"):
        models.open(
            config.check(config.compose(["model=tiny-bert", "model.targets=[all-linear,query]"]))[
                0
            ].model
        ).targets()
