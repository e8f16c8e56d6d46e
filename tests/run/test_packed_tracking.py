"""Several runs of one process, each with its own copy in W&B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraexp import config
from loraexp.records import record, tracking
from loraexp.run import packed
from tests.support.copies import copies
from tests.support.together import TWENTY, runs

WORDS = ("model=tiny-bert", "task=tweets", *TWENTY, "wandb.mode=offline", "optimizer=gd")


def same(one: tracking.Copied, folder: Path) -> None:
    """W&B has the lines of a run, its configuration, and its record; nothing of another's."""
    assert one.where.startswith(f"{folder}/")
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert one.lines() == tracking.merged(logged)
    found = record.read(folder)
    assert found is not None and one.record is not None
    assert one.record["run_id"] == found["run_id"] == one.run_id
    assert one.record["metrics"] == found["metrics"] and "wandb_error" not in found
    assert one.config["lr"] == found["config"]["lr"]


def test_each_of_several_runs_has_its_own_copy(tmp_path: Path) -> None:
    """They end at other steps, and one diverges while the others go on."""
    each = [
        ["lr=1e-2", "train.max_steps=7"],
        ["lr=1e30", "train.max_grad_norm=null"],
        ["lr=2e-2", "init=pissa"],
        ["lr=3e-2"],
    ]
    prepared = runs(tmp_path / "out", WORDS, each)
    ends = packed.run(prepared)
    assert isinstance(ends[1], FloatingPointError)
    told = copies(tmp_path / "out")
    folders = [config.run_folder(plain) for _, plain in prepared]
    assert len(told) == 4
    for folder, (_, plain) in zip(folders, prepared, strict=True):
        same(told[config.run_id(plain)], folder)
    assert [told[config.run_id(plain)].state for _, plain in prepared] == [
        *("finished", "failed", "finished", "finished")
    ]


def test_where_wandb_fails_for_one_the_others_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its start, and in the middle."""
    import wandb

    prepared = runs(tmp_path / "out", WORDS, [["lr=1e-2"], ["lr=2e-2"], ["lr=3e-2"]])
    ids = [config.run_id(plain) for _, plain in prepared]
    start, log = wandb.init, wandb.Run.log

    def refused(**how: Any) -> Any:
        if how["id"] == ids[1]:
            raise OSError("no space left")
        return start(**how)

    def broken(run: Any, line: dict[str, Any], step: int | None = None) -> None:
        if run.id == ids[2] and line["step"] == 9:
            raise ConnectionError("gone")
        log(run, line, step=step)

    monkeypatch.setattr("wandb.init", refused)
    monkeypatch.setattr("wandb.Run.log", broken)
    packed.run(prepared)
    folders = [config.run_folder(plain) for _, plain in prepared]
    found = [record.read(folder) or {} for folder in folders]
    assert [one["status"] for one in found] == ["finished"] * 3
    assert [one.get("wandb_error") for one in found] == [
        *(None, "OSError: no space left", "ConnectionError: gone")
    ]
    told = copies(tmp_path / "out", broken=1)
    assert set(told) == {ids[0], ids[2]}
    same(told[ids[0]], folders[0])
    assert [line["step"] for line in told[ids[2]].lines()] == list(range(1, 9))


def test_a_copy_that_nobody_holds_does_not_keep_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended without a word to its copy, as one that was killed in a test."""
    ended: list[int] = []
    monkeypatch.setattr(tracking, "let_go", lambda: ended.append(1))
    lost, failed = (tracking.Copy(None, tmp_path, name, {}) for name in ("lost", "failed"))
    tracking.Open.copies.update((lost, failed))
    del lost
    with failed.second_to_disk():
        raise OSError("no space left")
    assert ended == [1] and failed.error == "OSError: no space left"
