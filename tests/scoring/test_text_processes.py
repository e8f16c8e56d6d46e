"""Under torchrun the questions of every text task are shared, each row is scored once, and the
result is one process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.text_data import overrides, write_all

SCRIPT = Path(__file__).parents[1] / "support" / "text_processes.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run(
    data: Path, out: Path, *launcher: str, steps: int = 0, names: Sequence[str] = ()
) -> dict[str, Any]:
    """The record of each task, by name."""
    command = [sys.executable, *launcher, str(SCRIPT), str(data), str(out), str(steps), *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    records = {path.parent: json.loads(path.read_text()) for path in out.rglob("record.json")}
    return {
        record["config"]["task"]["name"]: record | {"folder": folder}
        for folder, record in records.items()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def both(data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(records of one process, records of two)."""
    return run(data, data / "of1"), run(data, data / "of2", *TORCHRUN)


@pytest.mark.parametrize("name", overrides(Path()))
def test_two_processes_score_what_one_scores(
    both: tuple[dict[str, Any], dict[str, Any]], name: str
) -> None:
    one, two = (records[name] for records in both)
    assert (one["status"], two["status"]) == ("finished", "finished")
    assert two["metrics"] == one["metrics"] and two["data"] == one["data"]
    samples = [record["folder"] / "samples.jsonl" for record in (one, two)]
    assert [path.exists() for path in samples] == [not name.endswith("_t5")] * 2
    if samples[0].exists():
        assert samples[1].read_text() == samples[0].read_text()
        lines = [json.loads(line) for line in samples[0].read_text().splitlines()]
        # whose answers are letters
        assert len({line["output"] for line in lines}) > 1 or name == "alpaca"


def test_a_run_that_two_processes_trained_is_scored_too(data: Path) -> None:
    records = run(data, data / "trained", *TORCHRUN, steps=2, names=("gsm8k", "cola_t5"))
    assert [records[name]["status"] for name in ("gsm8k", "cola_t5")] == ["finished"] * 2
    assert set(records["gsm8k"]["metrics"]) == {
        "held_out",
        "gsm8k/lora_ga",
        "gsm8k/lora_ga_released",
        "gsm8k/lora_sb",
        "gsm8k/cot",
    }
