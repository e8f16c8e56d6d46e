"""Real processes that are told to stop: they end with a checkpoint, say so, and the same command
goes on bit by bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.forks import Command
from tests.support.runs import SMOKE, folder_of, metric_lines, run

LONG = (
    "train.max_steps=200",
    "train.checkpoint_every=1h",
    "train.eval_every=100",
    "train.log_every=5",
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


class Typed:
    """The command as a user starts it, where the others are forked (see support/forks.py)."""

    def __init__(self, *words: str, log: Path, world: int = 0) -> None:
        command = [sys.executable, *(TORCHRUN if world else ("-m",)), "loraexp", *words]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    def said(self) -> str:
        return self.log.read_text()

    def ended(self, seconds: float) -> str:
        self.process.wait(seconds)
        return self.said()


def start(
    words: tuple[str, ...], folder: Path, how: type[Command | Typed] = Command, world: int = 0
) -> Command | Typed:
    """The command, once its log has passed step 20."""
    process = how(*words, log=folder.parents[1] / "said.txt", world=world)
    wait_for(lambda: logged(folder) >= 20, process)
    return process


def wait_for(condition: Callable[[], bool], process: Command | Typed, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.returncode is None, f"ended early: {process.said()[-2000:]}"
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.005)


def logged(folder: Path) -> int:
    """The last step in the log of a run."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "factors.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(*LONG, out=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("name", "status", "how"),
    [
        ("SIGTERM", 143, Typed),
        ("SIGINT", 130, Command),
        ("SIGHUP", 143, Command),
        ("SIGUSR1", 143, Command),
    ],
)
def test_a_signal_ends_with_a_checkpoint_and_the_same_command_goes_on(
    name: str, status: int, how: type[Command | Typed], tmp_path: Path, whole: Any
) -> None:
    folder = folder_of(*LONG, out=tmp_path)
    process = start((*SMOKE, *LONG, f"output_root={tmp_path}"), folder, how)
    os.kill(process.pid, getattr(signal, name))
    said = process.ended(30)
    assert process.returncode == status
    record = record_of(folder)
    step = record_of(folder)["error"]["message"].split(" at step ")[1].split(" of ")[0]
    assert (
        said.splitlines()[-1]
        == f"loraexp: interrupted by {name} at step {step} of 200; the same command goes on there"
    )
    assert (
        record["status"] == "interrupted"
        and record["ended"]
        and (folder / "checkpoint" / "state.pt").exists()
    )
    assert not list(folder.rglob(".*.[0-9]*")) and not (folder / ".reserve").exists()
    notes: list[str] = []
    again = run(*LONG, out=tmp_path, notes=notes)
    assert notes == [f"resumed at step {step} of 200"]
    assert adapter_bytes(folder) == adapter_bytes(whole.folder) and metric_lines(
        folder
    ) == metric_lines(whole.folder)
    assert again.record["metrics"] == whole.record["metrics"] and again.record["resumed"][0][
        "step"
    ] == int(step)


def test_a_signal_while_evaluating_stops_at_once(tmp_path: Path) -> None:
    """The checkpoint was written before the evaluation, so nothing is waited for."""
    words = (
        "train.max_steps=20",
        "train.log_every=5",
        "train.eval_batch_size=1",
        "task.limit_eval=null",
        "task.limit_train=null",
    )
    folder = folder_of(*words, out=tmp_path)
    process = start((*SMOKE, *words, f"output_root={tmp_path}"), folder)
    wait_for(lambda: (folder / "adapter" / "factors.safetensors").exists(), process)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    said = process.ended(30)
    assert process.returncode == 143 and time.monotonic() - began < 10
    assert (
        said.splitlines()[-1]
        == "loraexp: interrupted by SIGTERM while evaluating; the same command goes on"
    )
    assert (
        record_of(folder)["status"] == "interrupted" and record_of(folder)["phase"] == "evaluation"
    )


@pytest.mark.parametrize(("whom", "how"), [("the launcher", Typed), ("one worker", Command)])
def test_under_torchrun_every_process_stops_at_the_same_step(
    whom: str, how: type[Command | Typed], tmp_path: Path
) -> None:
    folder = folder_of(*LONG, out=tmp_path)
    process = start((*SMOKE, *LONG, f"output_root={tmp_path}"), folder, how, world=2)
    workers = psutil.Process(process.pid).children()
    target = process.pid if whom == "the launcher" else workers[-1].pid
    os.kill(target, signal.SIGTERM)
    said = process.ended(30)
    assert process.returncode != 0
    record = record_of(folder)
    assert record["status"] == "interrupted" and " at step " in record["error"]["message"], said[
        -2000:
    ]
    step = int(record["error"]["message"].split(" at step ")[1].split(" of ")[0])
    assert not any(worker.is_running() for worker in workers)
    again = run(*LONG, out=tmp_path)
    assert again.record["resumed"][0]["step"] == step >= 20 and again.record["status"] == "finished"
    assert [line["step"] for line in metric_lines(folder) if "loss" in line] == list(
        range(5, 201, 5)
    )


SWEEP = """
# A sweep for tests.
title: Two long runs and one that waits
paper: a_paper
artifact: table1
kind: table
base: [experiment=smoke, wandb.mode=disabled, device=cpu,
  train.max_steps=200, train.checkpoint_every=1h, train.eval_every=100, train.log_every=5]
grid: {lr: [1.0e-3], seed: [0, 1, 2]}
rows:
  plain: {label: LoRA, overrides: [init=lora]}
columns:
  first: {label: First, value: dev/accuracy}
settings: {rank: 8}
"""


@pytest.mark.parametrize(("launcher", "how"), [("basic", Command), ("joblib", Typed)])
def test_a_sweep_that_is_told_to_stop_tells_its_workers(
    launcher: str, how: type[Command | Typed], tmp_path: Path
) -> None:
    """Only the command gets the signal: its runs end with checkpoints, those that wait do not
    begin, and all go on later."""
    (tmp_path / "mine.yaml").write_text(SWEEP)
    out = tmp_path / "outputs"
    words = ["sweep", str(tmp_path / "mine.yaml"), f"output_root={out}"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] * (launcher == "joblib")
    process = how(*words, log=tmp_path / "said.txt")
    running = 2 if launcher == "joblib" else 1
    wait_for(
        lambda: sum(logged(path.parent) >= 20 for path in out.rglob("metrics.jsonl")) >= running,
        process,
    )
    os.kill(process.pid, signal.SIGTERM)
    said = process.ended(30)
    assert process.returncode == 143, said[-2000:]
    assert said.splitlines()[-1].startswith("loraexp: interrupted by SIGTERM ")
    statuses = [json.loads(path.read_text())["status"] for path in out.rglob("record.json")]
    assert statuses == ["interrupted"] * running
    again = how(*words, log=tmp_path / "again.txt")
    said = again.ended(240)
    assert again.returncode == 0, said[-2000:]
    records = [json.loads(path.read_text()) for path in out.rglob("record.json")]
    assert sorted(r["config"]["seed"] for r in records) == [0, 1, 2] and {
        r["status"] for r in records
    } == {"finished"}
    assert sum(bool(r.get("resumed")) for r in records) == running
