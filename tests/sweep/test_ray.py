"""A sweep on a real Ray cluster of this machine, of which a worker is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.slurm import until
from tests.support.small_sweep import written

STEPS = 600


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed (pip install 'loraexp[ray]')",
)
def test_the_run_of_a_killed_worker_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path, STEPS, rows={"lora": {"label": "LoRA"}}, grid={"seed": [0, 1]})
    out = tmp_path / "out"
    words = ["sweep", str(path), f"output_root={out}", "train.log_every=5"]
    words += ["train.checkpoint_every=20", "hydra/launcher=ray"]
    words += [
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ]
    command = subprocess.Popen(
        [sys.executable, "-m", "loraexp", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    until(lambda: list(out.rglob("metrics.jsonl")), "a run", seconds=150)
    first = next(iter(out.rglob("metrics.jsonl"))).parent
    until(lambda: (first / "checkpoint" / "state.pt").exists(), "a checkpoint")
    worker_of(first, command.pid).kill()
    _, said = command.communicate(timeout=300)
    assert command.returncode == 0, said[-3000:]
    found = {p.parent: json.loads(p.read_text()) for p in out.rglob("record.json")}
    assert [record["status"] for record in found.values()] == ["finished"] * 2
    assert [folder for folder, record in found.items() if record.get("resumed")] == [first]
    assert 0 < found[first]["resumed"][0]["step"] < STEPS


def worker_of(folder: Path, command: int) -> psutil.Process:
    """The process that has the log of a run open, below a command."""
    for process in psutil.Process(command).children(recursive=True):
        with suppress(psutil.Error):
            if any(Path(file.path).parent == folder for file in process.open_files()):
                return process
    raise LookupError(f"nobody runs {folder}")
