"""Told to stop, or a worker killed, under the programs that start processes: torchrun, accelerate,
joblib, submitit and Ray, where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cases import RUN, Case, Reference

STEPS = 120
LONG = (*RUN, f"train.max_steps={STEPS}", "train.checkpoint_every=1h", "train.eval_every=60")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "loraexp")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"),
    *("--mixed_precision=no", "--dynamo_backend=no", "--module", "loraexp"),
)
# launcher of a sweep → its words, and runs that it has going at once
LAUNCHERS: dict[str, tuple[tuple[str, ...], int]] = {
    "joblib": (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), 2),
    "submitit": (("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"), 1),
    "ray": (("hydra/launcher=ray", "+hydra.launcher.ray.remote.num_cpus=1"), 1),
}
SWEEP = f"""
title: three runs
paper: none
artifact: campaign
kind: table
base: [{", ".join(LONG)}]
grid: {{lr: 1.0e-3, seed: [0, 1, 2]}}
rows: {{lora: {{label: LoRA, overrides: [init=lora]}}}}
columns: {{tweets: {{label: Tweets, overrides: [task=tweets], value: dev/accuracy}}}}
"""
PATIENCE = 240.0  # seconds for a start or an end on a busy machine


def launchers(of: Reference, small: bool) -> list[Case]:
    cases = [
        told("torchrun, SIGTERM to the launcher", TORCHRUN, whom="launcher"),
        told("torchrun, SIGTERM to one worker", TORCHRUN, whom="worker"),
    ]
    if importlib.util.find_spec("accelerate") is not None:
        cases.append(told("accelerate, SIGTERM to all, as Slurm does", ACCELERATE, whom="all"))
    for name in LAUNCHERS:
        if importlib.util.find_spec(name) is not None:
            cases += [stopped(name), killed(name)]
    return cases[:1] if small else cases


def started(words: Sequence[str], place: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (place / "said").open("a") as said:
        return subprocess.Popen(
            [sys.executable, *words],
            stdout=said,
            stderr=said,
            text=True,
            env=environment,
            cwd=place,
            start_new_session=True,
        )


def running(out: Path, many: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many runs have logged a step. Raises: RuntimeError where they do not."""
    deadline = time.monotonic() + PATIENCE
    while sum(path.stat().st_size > 0 for path in out.rglob("metrics.jsonl")) < many:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ended with {process.poll()} before it had run a step")
        time.sleep(0.02)


def told(name: str, start: tuple[str, ...], whom: str) -> Case:
    """One run in a launcher's processes: a checkpoint, a record that says so, and it goes on."""

    def tried(place: Path) -> str:
        out = place / "out"
        words = [*start, *LONG, f"output_root={out}"]
        process = started(words, place)
        try:
            running(out, 1, process)
            if whom == "all":
                os.killpg(process.pid, signal.SIGTERM)
            elif whom == "worker":
                psutil.Process(process.pid).children()[-1].terminate()
            else:
                process.terminate()
            process.wait(PATIENCE)
            at = settled(out)
            if at["status"] != "interrupted":
                return f"the record says {at['status']}"
            process = started(words, place)
            process.wait(PATIENCE)
        finally:
            end(process)
        if process.returncode != 0:
            return f"status {process.returncode} when it went on"
        after = records(out)[0]
        if after["status"] != "finished" or not after.get("resumed"):
            return f"the record says {after['status']}, resumed {after.get('resumed')}"
        return every_step(out)

    return Case(name, tried)


@contextmanager
def sweeping(place: Path, out: Path, launcher: str) -> Iterator[subprocess.Popen[str]]:
    """The command of a sweep, with all the runs going that its launcher has at once."""
    more, width = LAUNCHERS[launcher]
    process = started(sweep_words(place, out, more), place)
    try:
        running(out, width, process)
        yield process
    finally:
        end(process)


def stopped(launcher: str) -> Case:
    """A sweep whose command alone is told to stop."""

    def tried(place: Path) -> str:
        out = place / "out"
        with sweeping(place, out, launcher) as process:
            process.terminate()
            process.wait(PATIENCE)
            if process.returncode != 143:
                return f"status {process.returncode}, expected 143: {last(place)}"
            statuses = {record["status"] for record in records(out)}
            if not statuses <= {"interrupted", "finished"} or "interrupted" not in statuses:
                return f"the records say {', '.join(sorted(statuses))}"
            return goes_on(place, out, LAUNCHERS[launcher][0])

    return Case(f"{launcher}, SIGTERM to the sweep", tried)


def killed(launcher: str) -> Case:
    """A sweep whose worker dies without a word in the middle of a run: all runs finish, and none is
    condemned."""

    def tried(place: Path) -> str:
        out = place / "out"
        with sweeping(place, out, launcher) as process:
            victim = worker_of(out, process.pid)
            if victim is None:
                return "no process holds a run"
            victim.kill()
            process.wait(PATIENCE * 2)
        found = [record["status"] for record in records(out)]
        if process.returncode != 0 or found != ["finished"] * 3:
            return f"status {process.returncode}, records {', '.join(found)}: {last(place)}"
        return every_step(out)

    return Case(f"{launcher}, a worker killed with -9", tried)


def worker_of(out: Path, command: int) -> psutil.Process | None:
    """The process, other than the command itself, that has the log of a run open."""
    for process in psutil.process_iter():
        try:
            files = [file.path for file in process.open_files()]
        except psutil.Error:
            continue
        logs = [path for path in files if path.startswith(str(out)) and path.endswith(".jsonl")]
        if logs and process.pid != command:
            return process
    return None


def sweep_words(place: Path, out: Path, more: Sequence[str]) -> list[str]:
    (place / "three.yaml").write_text(SWEEP)
    return ["-m", "loraexp", "sweep", str(place / "three.yaml"), f"output_root={out}", *more]


def goes_on(place: Path, out: Path, more: Sequence[str]) -> str:
    """The same command finishes every run."""
    process = started(sweep_words(place, out, more), place)
    try:
        process.wait(PATIENCE * 2)
    finally:
        end(process)
    found = [record["status"] for record in records(out)]
    if process.returncode != 0 or found != ["finished"] * 3:
        return f"going on: status {process.returncode}, {', '.join(found)}: {last(place)}"
    return every_step(out)


def every_step(out: Path) -> str:
    """Each run has logged each step once."""
    for path in out.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [line["step"] for line in lines if "loss" in line]
        if steps != list(range(1, STEPS + 1)):
            return f"{path.parent.name}: {len(steps)} lines of {STEPS} steps"
    return ""


def settled(out: Path) -> dict[str, Any]:
    """The one record, once its run has ended: a launcher may be gone before its workers."""
    deadline = time.monotonic() + 30
    while (found := records(out)[0])["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out.rglob("record.json"))]


def last(place: Path) -> str:
    return ((place / "said").read_text(errors="replace").strip().splitlines() or [""])[-1][:200]


def end(process: subprocess.Popen[str]) -> None:
    """Nothing is left running."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
