"""Under torchrun the questions of every text task are shared, each row is scored once, and the
result is one process's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import text_processes
from tests.support.forks import alone, torchrun
from tests.support.text_data import overrides, write_all


def run(
    data: Path, out: Path, world: int, *, steps: int = 0, names: Sequence[str] = ()
) -> dict[str, Any]:
    """The record of each task, by name, by so many processes."""
    given, log = (text_processes.main, data, out, steps, tuple(names)), out.with_suffix(".log")
    status, said = alone(*given, log=log) if world == 1 else torchrun(*given, world=world, log=log)
    assert status == 0, said[-6000:]
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
    return run(data, data / "of1", 1), run(data, data / "of2", 2)


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
    records = run(data, data / "trained", 2, steps=2, names=("gsm8k", "cola_t5"))
    assert [records[name]["status"] for name in ("gsm8k", "cola_t5")] == ["finished"] * 2
    assert set(records["gsm8k"]["metrics"]) == {
        "held_out",
        "gsm8k/lora_ga",
        "gsm8k/lora_ga_released",
        "gsm8k/lora_sb",
        "gsm8k/cot",
    }
