"""The task of every place of every sweep and variant can be made: that it composes says nothing of
names that only the task knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraexp.sweep.cells import expand
from tests.support.text_data import write_all
from tests.support.text_tasks import made
from tests.support.thin import loaded, thin, variants

SWEEPS = Path(__file__).parents[2] / "sweeps"
NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
ORIGINALS = "ORIGINALS"
SKELETON = {"encoder": "tiny-bert", "causal": "tiny-llama", "seq2seq": "tiny-t5"}
HERE = (
    "task.max_length",
    "task.limit_train",
    "task.limit_eval",
    "task.data_dir",
    "task.eval_data_dir",
)


def tasks_of(name: str) -> dict[str, list[str]]:
    """By what differs between them, the overrides that make each task of the sweep."""
    found: dict[str, list[str]] = {}
    for variant in variants(name):
        whole = loaded(name, variant)
        if whole.compute is not None:
            continue
        for cell in expand(thin(whole)):
            kind, target = cell.plain["model"]["kind"], cell.plain["task"]["_target_"]
            if "labelled_csv" in target:
                continue  # a user's own columns, which the smoke variant reads
            words = [
                word
                for word in cell.overrides
                if word.startswith(("task=", "task.")) and word.partition("=")[0] not in HERE
            ]
            words += [f"model={SKELETON[kind]}", "task.limit_train=4", "task.limit_eval=2"]
            if kind == "causal":
                words += ["evaluate.unsafe_code=true"]
            else:
                words += ["task.max_length=64"]
            words += [f"task.data_dir={ORIGINALS}{'/glue' if 'glue' in target else ''}"]
            found.setdefault(json.dumps(words), words)
    return found


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("originals"))


@pytest.mark.parametrize("name", NAMES)
def test_every_task_of_every_variant_can_be_made(
    name: str, originals: Path, tmp_path: Path
) -> None:
    for words in tasks_of(name).values():
        given = [word.replace(ORIGINALS, str(originals)) for word in words]
        task, _, _ = made(*given, cache=tmp_path)
        assert task.splits["train"]
