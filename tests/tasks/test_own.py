"""A task of one's own data, in every form, and its rows as they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loraexp import config, models
from loraexp.run.components import make_task
from loraexp.tasks.preview import preview
from tests.support.runs import run


def write(folder: Path, rows: list[dict[str, Any]], form: str, name: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        mark = "," if form == "csv" else "\t"
        path.write_text(
            "\n".join([mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)])
            + "\n"
        )
    return folder


def task_of(tmp_path: Path, *overrides: str) -> Any:
    settings, _ = config.check(
        config.compose(["task=data", f"cache_root={tmp_path / 'cache'}", *overrides])
    )
    return make_task(settings, models.open(settings.model).tokenizer)


FILMS = [
    {
        "text": f"film {i} was {'good' if i % 3 else 'bad'}",
        "label": "positive" if i % 3 else "negative",
    }
    for i in range(60)
]
SUMS = [{"question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(40)]
ASKS = ['task.prompt="Q: {question}\\nA: "', 'task.response="{answer}"']


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_labelled_texts_of_every_form(form: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", FILMS, form)
    given = (
        f"task.data_dir={folder}",
        f"task.format={form}",
        f"task.train=train.{form}",
        "model=tiny-bert",
    )
    task = task_of(tmp_path, *given)
    assert task.label_names == ["negative", "positive"] and task.metric == "accuracy"
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 49,
        "held_out": 5,
        "dev": 6,
    }
    assert sum(sum(part["labels"].values()) for part in task.describe().values()) == 60
    write(folder, FILMS[:9], form, "dev")
    task = task_of(
        tmp_path, *given, f"task.dev=dev.{form}", "task.selection=paper", "task.limit_train=20"
    )
    assert len(task.splits["train"]) == 20 and task.describe()["dev"]["labels"] == {
        "negative": 3,
        "positive": 6,
    }
    assert task.describe()["dev"]["notes"] == ["9 of 9 texts are in train too"]


def test_numbers_are_classes_in_their_order_or_scores(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 11} for i in range(44)]
    given = (f"task.data_dir={write(tmp_path, rows, 'csv')}", "model=tiny-bert")
    assert task_of(tmp_path, *given).label_names == [str(i) for i in range(11)]
    named = task_of(tmp_path, *given, "task.label_names=[10,9,8,7,6,5,4,3,2,1,0]")
    plain = task_of(tmp_path, *given)
    assert named.splits["train"].labels.tolist() == (10 - plain.splits["train"].labels).tolist()
    scores = task_of(tmp_path, *given, "task.problem=regression")
    assert scores.metric == "pearson" and scores.num_labels == 1


@pytest.mark.parametrize(("model", "prompt"), [("tiny-llama", 0), ("tiny-t5", 0)])
def test_instructions_by_template_are_selected_by_likelihood(
    model: str, prompt: int, tmp_path: Path
) -> None:
    folder = write(tmp_path / "mine", SUMS, "jsonl")
    given = (
        f"task.data_dir={folder}",
        "task.format=jsonl",
        "task.train=train.jsonl",
        f"model={model}",
        *ASKS,
    )
    task = task_of(tmp_path, *given)
    assert (
        task.selection == "held_out"
        and task.reports == ("held_out",)
        and task.metric == "log_likelihood"
    )
    assert (len(task.splits["train"]), len(task.splits["held_out"])) == (36, 4)
    shown = preview(task, 2)
    assert len(shown) == 2
    for row in shown:
        asked = "".join(piece for piece, trained in row if not trained)
        answer = "".join(piece for piece, trained in row if trained)
        number = int(asked.split("What is ")[1].split(" ")[0])
        assert (
            f"Q: What is {number} + {number}?" in asked
            and "A:" in asked
            and ("\n" in asked or model == "tiny-t5")
        )
        assert answer.strip().removesuffix("</s>").strip() == str(2 * number) and answer.endswith(
            "</s>"
        )
    learnt = task_of(tmp_path, *given, "task.learn_prompt=true") if model == "tiny-llama" else None
    if learnt is not None:
        assert [trained for _, trained in preview(learnt, 1)[0]] == [False] + [True] * (
            len(preview(learnt, 1)[0]) - 1
        )


def test_a_preview_joins_to_the_text_of_its_tokens_and_ends_in_the_class(tmp_path: Path) -> None:
    task = task_of(tmp_path, f"task.data_dir={write(tmp_path, FILMS, 'csv')}", "model=tiny-bert")
    for index, row in zip([4, 0], preview(task, [4, 0]), strict=True):
        ids = task.collate(task.splits["train"], [index])["input_ids"][0]
        assert "".join(piece for piece, _ in row[:-1]) == task.tokenizer.decode(
            ids, clean_up_tokenization_spaces=False
        )
        name, trained = row[-1]
        assert trained and not any(other for _, other in row[:-1])
        assert name == ("positive" if "good" in "".join(piece for piece, _ in row) else "negative")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=tiny-llama"],
            "task=data: model.kind is causal, which writes text; set task.prompt and task.response",
        ),
        (
            ["model=tiny-bert", *ASKS],
            (
                "task=data: task.prompt needs a model that writes; choose one of kind causal or"
                " seq2seq"
            ),
        ),
        (
            ["model=tiny-llama", ASKS[0]],
            "task.response=null: instructions have a prompt and a response; set both, or neither",
        ),
        (
            ["model=tiny-bert", "task.train=no.csv"],
            "task.data_dir={0}: {0}/no.csv is not there; correct task.train or task.dev",
        ),
        (
            ["model=tiny-bert", "task.data_dir=null"],
            "task.data_dir=null: give the folder of train.csv, or task.format=hub",
        ),
        (
            ["model=tiny-bert", "task.text=[words]"],
            "{0}/train.csv has no column 'words': its first line names 'text', 'label'",
        ),
        (
            ["model=tiny-bert", "task.label=stars"],
            "{0}/train.csv has no column 'stars': its first line names 'text', 'label'",
        ),
        (
            ["model=tiny-bert", "task.metric=f2"],
            "task.metric=f2: expected one of task.metrics, accuracy, macro_f1 or log_likelihood",
        ),
        (
            ["model=tiny-bert", "task.format=hub"],
            "task.source=null: with task.format=hub give the id of a data set",
        ),
        (
            ["model=tiny-llama", 'task.prompt="{question}"', 'task.response="{label}"'],
            "{0}/train.csv line 2: no column 'question'; its columns are text, label; repair",
        ),
        (
            [
                "model=tiny-llama",
                'task.prompt="{text}"',
                'task.response="{label}"',
                "task.benchmarks=[gsm8k]",
            ],
            "task.protocol=null: name the protocols that score gsm8k",
        ),
    ],
)
def test_what_is_wrong_is_one_line(overrides: list[str], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", FILMS, "csv")
    with pytest.raises(ValueError) as caught:
        task_of(tmp_path, f"task.data_dir={folder}", *overrides)
    assert str(caught.value).startswith(message.replace("{0}", str(folder))) and "\n" not in str(
        caught.value
    )


def test_own_data_train_and_are_recorded(tmp_path: Path) -> None:
    """A run of each kind, from file to record, chosen by the likelihood."""
    shared = (
        "train.max_steps=2",
        "train.batch_size=4",
        "init=lora",
        "wandb.mode=disabled",
        "device=cpu",
    )
    films = run(
        "task=data",
        "model=tiny-bert",
        f"task.data_dir={write(tmp_path / 'films', FILMS, 'csv')}",
        "task.metric=log_likelihood",
        *shared,
        out=tmp_path / "out",
    )
    assert films.record["best"]["metric"] == "log_likelihood" and films.record["best"]["value"] < 0
    assert set(films.record["metrics"]["dev"]) == {"accuracy", "macro_f1", "log_likelihood"}
    sums = write(tmp_path / "sums", SUMS, "jsonl")
    write(sums, SUMS[:5], "jsonl", "dev")
    said = run(
        "task=data",
        "model=tiny-llama",
        f"task.data_dir={sums}",
        "task.format=jsonl",
        "task.train=train.jsonl",
        "task.dev=dev.jsonl",
        *ASKS,
        *shared,
        out=tmp_path / "out",
    )
    assert (
        said.record["metrics"]["dev"]["log_likelihood"] < 0
        and said.record["best"]["split"] == "held_out"
    )
    assert said.record["data"]["train"]["notes"][-1].startswith("prompt 'Q: {question}")
    assert np.isfinite(said.record["metrics"]["held_out"]["log_likelihood"])
