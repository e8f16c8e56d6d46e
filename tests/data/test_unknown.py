"""Text that the tokenizer does not know: refused where it is most of it, said and recorded where it
is some."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.support.runs import run

THAI = "วันนี้อากาศดีมาก เราไปเดินเล่น"  # MiniLM's vocabulary has no letter of it
SHORT = ("train.max_steps=1", "init=lora", "rank=2", "train.checkpoint_every=0")


def rows_of(folder: Path, thai: int, rows: int = 60) -> str:
    """A file of labelled rows, of which some are Thai."""
    folder.mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "answer"])
        for i in range(rows):
            text = (
                " ".join([THAI] * (i + 1)) if i < thai else f"film number {i} was quite good to see"
            )
            writer.writerow([text, "yes" if i % 2 else "no", text])
    return f"task.data_dir={folder}"


@pytest.mark.parametrize("model", ["minilm", "tiny-bert"])
def test_a_data_set_in_an_unknown_script_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"100\.0% of the tokens of .*train\.csv are unknown to \S+ \(\[UNK\]\); expected at"
        r" most 50%.*set model\.tokenizer",
    ):
        run("task=data", rows_of(tmp_path / "d", 60), f"model={model}", *SHORT, out=tmp_path / "o")


def test_some_unknown_tokens_are_counted_and_recorded(tmp_path: Path) -> None:
    words = ("task=data", "task.selection=paper", "model=minilm", *SHORT)
    with pytest.warns(UserWarning, match=r"^\d+\.\d% of the tokens of .* are unknown to"):
        outcome = run(*words, rows_of(tmp_path / "some", 6), out=tmp_path / "o")
    told = outcome.record["data"]["train"]
    assert 0.01 < told["unknown"] < 0.1
    (note,) = [note for note in told["notes"] if "unknown" in note]
    assert float(re.match(r"[\d.]+", note)[0]) == pytest.approx(100 * told["unknown"], abs=0.06)  # type: ignore[index]
    outcome = run(*words, rows_of(tmp_path / "none", 0), out=tmp_path / "o")
    assert outcome.record["data"]["train"]["unknown"] == 0.0


@pytest.mark.parametrize("model", ["smollm2-135m", "tiny-llama", "tiny-t5"])
def test_bytes_are_never_unknown(model: str, tmp_path: Path) -> None:
    from loraexp import config, models
    from loraexp.run.components import make_task

    asks = ['task.prompt="{text}"', 'task.response="{answer}"']
    given = ["task=data", rows_of(tmp_path / "d", 60), f"model={model}", *asks, "task.held_out=0"]
    settings, _ = config.check(config.compose([*given, f"cache_root={tmp_path / 'cache'}"]))
    task = make_task(settings, models.open(settings.model).tokenizer)
    assert task.describe()["train"]["unknown"] == 0.0


def test_prompts_in_an_unknown_script_are_refused(tmp_path: Path) -> None:
    """A tokenizer of words that has no letter of the text, for a model that writes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from loraexp.data.pairs import Pair, Reading, encode_pairs
    from loraexp.data.rows import Files

    words = {word: i for i, word in enumerate(["<unk>", "</s>", "film", "was", "good"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    rows_of(tmp_path / "d", 60)
    how = Reading("own", 1, lambda row: Pair(row["text"], row["answer"]), "causal", 64)
    with pytest.raises(ValueError, match=r"100\.0% of the tokens of .* expected at most 50%"):
        encode_pairs(
            Files((tmp_path / "d" / "train.csv",)), how, tokenizer, cache_root=tmp_path / "cache"
        )
