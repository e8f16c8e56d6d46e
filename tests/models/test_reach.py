"""What a tokenizer knows and an encoder reads, asked before any weight is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import config, models
from loraexp.config.settings import ModelSettings
from loraexp.machine.hub import SourceError
from loraexp.machine.reach import positions
from tests.support.checkpoints import BART, ENCODERS, TEXT, saved
from tests.support.glue import write_glue
from tests.support.runs import run


def of_folder(path: Path, kind: str) -> ModelSettings:
    words = {
        "encoder": ["model=tiny-bert"],
        "seq2seq": ["model=tiny-t5", "task=cola_t5"],
        "causal": ["model=tiny-llama", "task=gsm8k"],
    }
    given = [*words[kind], "model.config=null", "model.tokenizer=null", f"model.path={path}"]
    return config.check(config.compose(given))[0].model


@pytest.mark.parametrize("name", [*ENCODERS, *TEXT])
def test_a_folder_without_a_tokenizer_is_refused(name: str, tmp_path: Path) -> None:
    """transformers makes an empty vocabulary of it: every word is unknown, or there is no token at
    all."""
    kind = "encoder" if name in ENCODERS else "seq2seq" if name == "t5" else "causal"
    auto = {
        "encoder": "AutoModel",
        "seq2seq": "AutoModelForSeq2SeqLM",
        "causal": "AutoModelForCausalLM",
    }[kind]
    path = saved(tmp_path / "m", (ENCODERS | TEXT)[name], auto)
    with pytest.raises(SourceError, match="knows no word|no usable tokenizer"):
        _ = models.open(of_folder(path, kind)).tokenizer


def test_a_tokenizer_that_is_there_is_taken() -> None:
    settings = config.check(config.compose([]))[0].model
    assert len(models.open(settings).tokenizer.get_vocab()) == 30522


def test_rows_and_token_types_beyond_the_model_are_refused() -> None:
    def model(*overrides: str) -> ModelSettings:
        return config.check(config.compose(list(overrides)))[0].model

    # 512 positions; 514, of which the first is padding's
    bert, roberta = model("model=tiny-bert"), model("model=tiny-roberta")
    models.check_reach(models.open(bert), longest=512, types=1)
    models.check_reach(models.open(roberta), longest=513, types=1)
    for settings, window in ((bert, 512), (roberta, 513)):
        with pytest.raises(
            SourceError,
            match=(
                f"a row has {window + 1} tokens, and model=.* reads {window}; set"
                f" task.max_length={window}"
            ),
        ):
            models.check_reach(models.open(settings), longest=window + 1, types=0)
    with pytest.raises(SourceError, match=r"token type 1, and the model has 1 \(0 to 0\)"):
        models.check_reach(
            models.open(model("model=tiny-roberta", "model.config.type_vocab_size=1")),
            longest=8,
            types=1,
        )


def test_a_run_says_so_before_it_loads_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraexp.models import load

    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(config.ConfigError, match="reads 16; set task.max_length=16"):
        run("model.config.max_position_embeddings=16", out=tmp_path)


def test_a_side_of_an_encoder_decoder_beyond_its_positions_is_refused(tmp_path: Path) -> None:
    from loraexp.models.tokenizer import trained

    base = saved(tmp_path / "m", BART | {"max_position_embeddings": 16}, "AutoModelForSeq2SeqLM")
    trained("trained:1024", "seq2seq").save_pretrained(base)
    given = ["task=cola_t5", f"task.data_dir={write_glue(tmp_path / 'glue')}", "model=tiny-t5"]
    own = ["model.config=null", "model.tokenizer=null", f"model.path={base}"]
    targets = "model.targets=[q_proj,v_proj]"
    with pytest.raises(config.ConfigError, match=r"a row has \d+ tokens, .* reads 16; set"):
        run(*given, *own, targets, "init=lora", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("model_type", "window"),
    [("xlnet", None), ("funnel", None), ("bloom", None), ("t5", None), ("bart", 1024)]
    + [("led", 16384), ("pegasus", 1024), ("marian", 1024)]
    + [("deberta-v2", 512), ("roberta", 510), ("distilbert", 512), ("modernbert", 8192)],
)
def test_positions_of_an_architecture(model_type: str, window: int | None) -> None:
    from transformers import AutoConfig

    own = AutoConfig.for_model(model_type)
    assert positions(own) == window
    assert positions(own, "decoder") == (1024 if model_type == "led" else window)
    if model_type == "deberta-v2":
        own.position_biased_input = False
        assert positions(own) is None
