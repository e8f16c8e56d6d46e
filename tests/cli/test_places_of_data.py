"""Training rows and benchmarks, each from a folder or from the hub, in one command, for every text
task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraexp.cli.main import main
from tests.support.hub_server import Hub
from tests.support.text_data import write_all

TASKS = {
    "gsm8k": [],
    "metamath": [],
    "metamath395k": [],
    "code_feedback": ["evaluate.unsafe_code=true"],
    "alpaca": [],
    "commonsense170k": ["task.benchmarks=[boolq,piqa]"],  # of eight, which ask alike
    "rte": ["model=tiny-bert"],
    "cola_t5": ["model=tiny-t5", "task.protocol=cg_lora"],
}
PLACES = {  # of the training rows, of what is reported: overrides
    ("here", "here"): ["task.data_dir={0}"],
    ("here", "hub"): ["task.data_dir={0}", "task.eval_data_dir=hub"],
    ("hub", "here"): ["task.eval_data_dir={0}"],
    ("hub", "hub"): ["task.data_dir=hub"],
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("originals"))


def sources(record: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Where the training rows were read, and where those that are reported."""

    def where(part: dict[str, Any]) -> str:
        return "here" if part["source"].startswith("/") else "hub"

    data = record["data"]
    reported = {where(part) for part in data.values() if "reported" in part["part"]}
    return {where(data["train"])}, reported


@pytest.mark.parametrize("name", TASKS)
def test_each_comes_from_where_it_is_said_to(
    name: str, hub: Hub, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAEXP_CACHE", str(tmp_path / "cache"))
    folder = originals / "glue" if name in ("rte", "cola_t5") else originals
    short = ["task.limit_train=8", "task.limit_eval=2", "train.max_steps=0"]
    if name in ("rte", "cola_t5"):
        chosen = ["task.max_length=64"]
    else:
        chosen = ["model=tiny-llama", "task.held_out=2", "+model.config.initializer_range=0.2"]
    quiet = ["init=lora", "wandb.mode=disabled", "device=cpu"]
    for (train, reported), words in PLACES.items():
        given = [word.format(folder) for word in words]
        out = f"output_root={train}-{reported}"
        command = [f"task={name}", *chosen, *TASKS[name], *short, *quiet, *given, out]
        assert main(command) == 0, command
        (path,) = Path(f"{train}-{reported}").glob("*/*/record.json")
        assert sources(json.loads(path.read_text())) == ({train}, {reported})
