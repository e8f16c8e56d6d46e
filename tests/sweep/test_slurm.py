"""A sweep on a real Slurm cluster of this machine: a job array, of which one task is preempted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import slurm
from tests.support.small_sweep import go, written

MISSING = slurm.missing()


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_preempted_task_is_requeued_and_its_run_goes_on(tmp_path: Path) -> None:
    steps = 400
    path = written(tmp_path, steps, rows={"lora": {"label": "LoRA"}}, grid={"seed": [0, 1, 2]})
    out = tmp_path / "out"
    words = ["sweep", str(path), f"output_root={out}", "train.log_every=5"]
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
        job = str(json.loads((first / "record.json").read_text())["environment"]["job"])
        slurm.asked(["scontrol", "requeue", job], environment)
        _, said = command.communicate(timeout=400)
    assert command.returncode == 0, said[-3000:]
    found = {p.parent: json.loads(p.read_text()) for p in out.rglob("record.json")}
    assert [record["status"] for record in found.values()] == ["finished"] * 3
    others = [r["environment"]["job"] for folder, r in found.items() if folder != first]
    assert {name.partition("_")[0] for name in (job, *others)} == {job.partition("_")[0]}
    assert all("_" in name for name in (job, *others))  # tasks of one array
    [entry] = found[first]["resumed"]
    assert 0 < entry["step"] < steps
    assert not any(record.get("resumed") for folder, record in found.items() if folder != first)
    assert go(path, out) == 0  # nothing is left to do
