"""Data sets of the hub through the real clients: the rows and the commit that are read, and what is
said when they fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraexp.data import benchmarks
from loraexp.data.rows import Hub as Rows
from loraexp.data.tables import Columns, label_parser, labelled
from loraexp.machine import repository
from loraexp.machine.hub import SourceError
from loraexp.tasks.recipes import TRAINING_SETS
from tests.support.hub import offline, start
from tests.support.hub_repositories import CONF, config, pinned
from tests.support.hub_rows import GLUE_COMMIT, cola, read_hub
from tests.support.hub_server import Fault, Hub
from tests.support.hub_sets import GLUE, ORIGINALS, glue, words


def sentences(split: Rows) -> list[Any]:
    return [
        text
        for (text,) in read_hub(
            split, text=["sentence"], label="label", names=["unacceptable", "acceptable"]
        ).texts
    ]


# ---- every set


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_read_as_the_hub_has_it(name: str, hub: Hub) -> None:
    task = config("task", name)
    splits = ["train", *(split.replace("dev", "validation") for split in task["dev_splits"])]
    for at, split in enumerate(splits):
        rows = read_hub(
            Rows(task["source"], task["config"], split, task["revision"], "k"),
            text=task["text"],
            label="label",
            names=None if name == "stsb" else task["label_names"],
        )
        assert rows.source == f"nyu-mll/glue ({name}, {split}) at {GLUE_COMMIT}"
        assert len(rows) == (96 if at == 0 else 24)
        assert rows.texts[5] == tuple(
            f"{words(1000 * at + 5)} {side}" for side in range(len(task["text"]))
        )
        classes = 26 if name == "stsb" else len(task["label_names"])
        assert rows.labels[5] == pytest.approx(
            (1000 * at + 5) % classes / (5 if name == "stsb" else 1)
        )
    assert all(path.startswith(f"{name}/") or path == "README.md" for path in hub.transfers)


SETS = ["alpaca", "code_feedback", "commonsense170k", "gsm8k", "metamath", "metamath395k"]


@pytest.mark.parametrize("name", SETS)
def test_training_rows_are_read_and_those_without_text_counted(
    name: str, hub: Hub, tmp_path: Path
) -> None:
    """The real sets have a few: Code-Feedback an empty `answer`, MetaMathQA four blank `query`."""
    from loraexp import config as settings
    from loraexp.data.pairs import Reading, encode_pairs
    from loraexp.models.tokenizer import trained

    task = config("task", name)
    commit = task["revision"] or hub.repositories["datasets", task["source"]].names["main"]
    blank = {"code_feedback": 1, "metamath": 1, "metamath395k": 1}.get(name, 0)
    for by, recipe in TRAINING_SETS[task["training_set"]].items():
        how = Reading(f"{name} {by}", 1, recipe.pair, "causal", 1024, recipe.below, recipe.rows)
        records = Rows(
            task["source"], task.get("config"), "train", task["revision"], "task.data_dir"
        )
        examples = encode_pairs(records, how, trained("trained:512", "causal"), cache_root=tmp_path)
        config_and_split = f"{task['config']}, train" if task.get("config") else "train"
        assert examples.source == f"{task['source']} ({config_and_split}) at {commit}"
        rows = 80 if name == "commonsense170k" else 60
        # a third of the rows is of another kind
        other = {"type": "MATH_AnsAug", "query": "q", "response": "So.\nThe answer is: 1"}
        gsm_alone = task["training_set"] == "metamath" and recipe.pair(other) is None
        assert len(examples) + examples.skipped == (40 if gsm_alone else rows)
        assert examples.skipped == blank
        assert (f"{blank} rows without a prompt or an answer skipped" in examples.notes) == (
            blank > 0
        )
    # any other bad row still stops a run
    assert settings.compose([f"task={name}", "model=tiny-llama"]).task.skip_bad is False


@pytest.mark.parametrize("name", sorted(set(benchmarks.names()) - {"mmlu"}))
def test_every_benchmark_is_read_from_the_hub(name: str, hub: Hub) -> None:
    found, notes = benchmarks.read(
        [name], directory=None, key="task.data_dir", limit=None, skip_bad=False
    )
    benchmark = benchmarks.named(name)
    source = benchmark.source
    commit = benchmark.revision or hub.repositories["datasets", source].names["main"]
    assert found[name].source.startswith(f"{source} (") and found[name].source.endswith(
        f") at {commit}"
    )
    assert len(found[name].rows) >= 3 and not notes and not found[name].skipped


def test_mmlu_has_five_shots_a_subject(hub: Hub) -> None:
    found, _ = benchmarks.read(
        ["mmlu"], directory=None, key="task.data_dir", limit=None, skip_bad=False
    )
    rows = found["mmlu"].rows
    assert len(rows) == 6 and all(len(row["shots"]) == 5 for row in rows)
    assert rows[1]["answer"] == "B" and rows[1]["A"] == words(1)


def test_every_set_that_a_yaml_names_is_on_the_hub(hub: Hub) -> None:
    named = {
        config("task", path.stem).get("source") or "package:"
        for path in (CONF / "task").glob("*.yaml")
    }
    sources = (
        {source for source in named if not source.startswith("package:")}
        | set(pinned())
        | set(ORIGINALS)
    )
    assert sources <= {id for kind, id in hub.repositories if kind == "datasets"}


# ---- which commit


def other_commit(hub: Hub) -> str:
    """Another commit of GLUE, with other rows and one more of them, in the cache already."""
    commit = hub.repositories["datasets", "nyu-mll/glue"].add(
        glue(rows=97, shift=5000), name="newer"
    )
    assert len(cola(revision=commit).table) == 97
    return commit


def test_another_commit_in_the_cache_is_never_read_in_its_place(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client alone falls back to the latest version that it has, and says so in a warning."""
    newer = other_commit(hub)
    hub.faults = [Fault("datasets/nyu-mll", status=503)]
    with pytest.raises(
        SourceError,
        match=rf"nyu-mll/glue \(cola, train\) at {GLUE_COMMIT}: 503 Service Unavailable; the "
        rf"hub is not well: wait, then",
    ):
        len(cola().table)
    hub.clear()
    repository.Repository("nyu-mll/glue", "dataset", GLUE_COMMIT, repository.MODEL).snapshot(
        "README.md"
    )
    # now in the middle: its list of files is known already
    hub.faults = [Fault("datasets/nyu-mll", status=503)]
    with pytest.raises(
        SourceError, match="503|stopped answering, and the cache has another commit"
    ):
        len(cola().table)
    hub.clear()
    assert sentences(cola())[0] == f"{words(0)} 0"
    assert sentences(cola(revision=newer))[0] == f"{words(5000)} 0"
    offline(monkeypatch)
    hub.clear()
    assert (len(sentences(cola())), len(sentences(cola(revision=newer)))) == (96, 97)
    assert hub.count() == 0


def test_offline_with_another_commit_alone_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_commit(hub)
    offline(monkeypatch)
    with pytest.raises(
        SourceError,
        match=rf"nyu-mll/glue \(cola, train\) at {GLUE_COMMIT}: not in the cache .*unset "
        rf"HF_HUB_OFFLINE, or set task.data_dir=DIR",
    ):
        len(cola().table)


def test_a_null_revision_is_one_commit_that_the_name_says(hub: Hub, tmp_path: Path) -> None:
    made = hub.repository("acme/moving", "datasets")
    first = made.add(glue())
    with repository.pins(tmp_path), repository.reading() as read:
        before = cola(revision=None, source="acme/moving")
        assert len(before.table) == 96
        made.add(glue(rows=97))
        again = cola(revision=None, source="acme/moving")
        assert (
            len(again.table) == 96
            and again.name == before.name == f"acme/moving (cola, train) at {first}"
        )
    assert read == {"datasets/acme/moving@main": first}


def test_a_folder_of_the_same_name_is_not_taken_for_the_hubs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nyu-mll" / "glue"
    for path, content in glue(rows=50).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SourceError,
        match=(
            f"nyu-mll/glue is a folder here, and task.revision={GLUE_COMMIT} names a commit of"
            " the hub"
        ),
    ):
        len(cola().table)
    local = cola(source="./nyu-mll/glue", revision=None)
    assert len(local.table) == 50 and local.name == "./nyu-mll/glue (cola, train)"
    assert hub.count() == 0


def test_a_columns_class_names_are_the_sets_own(hub: Hub) -> None:
    assert cola(config="mnli").classes("label") == ["entailment", "neutral", "contradiction"]
    assert cola(config="stsb").classes("label") is None


def test_the_client_prints_nothing_of_its_own(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(cola().table) == 96
    assert capfd.readouterr() == ("", "")


def test_two_processes_prepare_one_set(hub: Hub, tmp_path: Path) -> None:
    code = f"""
from loraexp.data.rows import Hub as Rows
split = Rows("nyu-mll/glue", "cola", "train", {GLUE_COMMIT!r}, "task.data_dir")
print(split.name, len(split.table), split.table[95]["sentence"])
"""
    two = [start(hub, tmp_path / "shared", code) for _ in range(2)]
    said = [process.communicate(timeout=90) for process in two]
    assert said == [(f"nyu-mll/glue (cola, train) at {GLUE_COMMIT} 96 {words(95)} 0\n", "")] * 2


def test_words_of_the_papers_stand_for_the_names_of_the_hub(hub: Hub) -> None:
    """T5 writes `different` where MRPC's classes are `not_equivalent` and `equivalent`."""
    from loraexp.tasks.glue_text import SAME

    mrpc = Rows("nyu-mll/glue", "mrpc", "train", GLUE_COMMIT, "task.data_dir")
    columns = {"text": ["sentence1", "sentence2"], "label": "label"}
    head = read_hub(mrpc, names=["not_equivalent", "equivalent"], **columns)  # type: ignore[arg-type]
    parse = label_parser("single_label_classification", ["different", "equivalent"], SAME)
    text = labelled(mrpc, Columns(parse=parse, **columns))  # type: ignore[arg-type]
    assert text.labels.tolist() == head.labels.tolist() and set(head.labels.tolist()) == {0.0, 1.0}
    other = read_hub(mrpc, names=["equivalent", "not_equivalent"], **columns)  # type: ignore[arg-type]
    assert other.labels.tolist() == (1 - head.labels).tolist()


def test_data_of_ones_own_are_read_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    from loraexp import config as settings
    from loraexp import models
    from loraexp.run.components import make_task

    given = [
        "task=data",
        "task.format=hub",
        "task.source=nyu-mll/glue",
        "task.config=cola",
        f"task.revision={GLUE_COMMIT}",
        "task.train=train",
        "task.dev=validation",
        "task.text=[sentence]",
        "model=tiny-bert",
        f"cache_root={tmp_path}",
    ]
    checked, _ = settings.check(settings.compose(given))
    task = make_task(checked, models.open(checked.model).tokenizer)
    assert task.label_names == [
        "unacceptable",
        "acceptable",
    ]  # as the set names its classes, in its order
    assert len(task.splits["dev"]) == 24 and len(task.splits["train"]) == 96 - 9
