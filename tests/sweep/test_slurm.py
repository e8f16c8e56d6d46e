"""A sweep on a real Slurm cluster of this machine: a job array, of which one task is preempted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support import slurm
from tests.support.small_sweep import go, written

MISSING = slurm.missing()


needs_slurm = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
STEPS = 400


@needs_slurm
def test_a_preempted_task_is_requeued_and_its_run_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path, STEPS, rows={"lora": {"label": "LoRA"}}, grid={"seed": [0, 1, 2]})
    found, [first] = preempted(tmp_path, path)
    assert len(found) == 3 and not any("packed" in record for record in found.values())
    others = jobs(found[folder] for folder in found if folder != first)
    assert len(others) == 2 and others.isdisjoint(jobs([found[first]]))
    assert len({name.partition("_")[0] for name in others}) == 1  # tasks of one array
    # the run itself goes on in its requeued task, or, where all others had ended before Slurm began
    # that again, in a job that the command sent: whoever comes first has it
    assert went_on(found) == {first}
    assert go(path, tmp_path / "out") == 0  # nothing is left to do


@needs_slurm
def test_a_preempted_task_of_runs_that_train_together_goes_on_together(tmp_path: Path) -> None:
    """A task a group: both runs of the one that is told to stop leave a checkpoint, and go on from
    the same step in one job again, the one that was requeued or another that the command sent."""
    grid = {"lr": [1e-3, 1e-4], "seed": [0, 1]}
    path = written(tmp_path, STEPS, rows={"lora": {"label": "LoRA"}}, grid=grid)
    found, stopped = preempted(tmp_path, path, "sweep.pack=2")
    assert [record["packed"] for record in found.values()] == [2] * 4
    assert len(jobs(found.values())) == 2 and len(stopped) == 2
    assert went_on(found) == stopped
    [own] = jobs(found[folder] for folder in stopped)
    assert own not in jobs(found[folder] for folder in found.keys() - stopped)
    entries = [entry for folder in stopped for entry in found[folder]["resumed"]]
    assert entries[0]["step"] == entries[1]["step"] and all(e["packed"] == 2 for e in entries)
    assert go(path, tmp_path / "out", "sweep.pack=2") == 0


def preempted(
    tmp_path: Path, path: Path, *more: str
) -> tuple[dict[Path, dict[str, Any]], set[Path]]:
    """The records of a sweep that ran as a job array, and the folders of the runs of the task that
    was told to stop, and requeued, after some steps."""
    out = tmp_path / "out"
    words = ["sweep", str(path), f"output_root={out}", "train.log_every=5", *more]
    words += ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=20"]
    words += [
        "hydra.launcher.cpus_per_task=1",
        "+hydra.launcher.additional_parameters={requeue: true}",
    ]
    with slurm.cluster(tmp_path / "slurm") as environment:
        command = subprocess.Popen(
            [sys.executable, "-m", "loraexp", *words],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        slurm.until(lambda: list(out.rglob("metrics.jsonl")), "a run", seconds=150)
        first = next(iter(out.rglob("metrics.jsonl"))).parent
        slurm.until(lambda: len((first / "metrics.jsonl").read_text().splitlines()) >= 5, "steps")
        before = records(out)
        job = before[first]["environment"]["job"]
        slurm.asked(["scontrol", "requeue", job], environment)
        _, said = command.communicate(timeout=400)
    assert command.returncode == 0, said[-3000:]
    found = records(out)
    assert {record["status"] for record in found.values()} == {"finished"}
    assert all("_" in name for name in jobs(before.values()))  # tasks of an array
    return found, {folder for folder, record in before.items() if jobs([record]) == {job}}


def records(out: Path) -> dict[Path, dict[str, Any]]:
    return {path.parent: json.loads(path.read_text()) for path in out.rglob("record.json")}


def jobs(found: Iterable[dict[str, Any]]) -> set[str]:
    return {str(record["environment"].get("job")) for record in found}


def went_on(found: dict[Path, dict[str, Any]]) -> set[Path]:
    """The runs that went on once, from a step between the first and the last."""
    several = {folder: record["resumed"] for folder, record in found.items() if "resumed" in record}
    assert all(0 < entry["step"] < STEPS for [entry] in several.values())
    return set(several)
