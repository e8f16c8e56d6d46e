"""What the campaign's parts share: a case, the run that all of them disturb, and what it is
compared with."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import forks
from benchmarks.forks import Command, Ended

# A run of twelve steps on the tiny model: a checkpoint after each, an evaluation after every
# fourth.
RUN = (
    "experiment=smoke",
    "wandb.mode=disabled",
    "device=cpu",
    "task.limit_train=64",
    "task.limit_eval=32",
    "init=lora",
    "init.samples=16",
    "train.max_steps=12",
    "train.eval_every=4",
    "train.log_every=1",
    "train.checkpoint_every=1",
)
CLOCKS = {
    "started",
    "ended",
    "cost",
    "environment",
    "seconds",
    "data",
    "history",
    "notes",
    "config",
    "identity",
}


@dataclass(frozen=True)
class Case:
    """Something that is tried in an empty folder: `attempt` says what did not hold, or nothing."""

    name: str
    attempt: Callable[[Path], str]


@dataclass(frozen=True)
class Reference:
    """The undisturbed run, how long it took, and a stopped one with a checkpoint of its sixth
    step."""

    finished: Path
    stopped: Path
    seconds: float
    rng: random.Random


def words(out: Path, *more: str) -> list[str]:
    return [*RUN, f"output_root={out}", *more]


def folder_of(out: Path) -> Path:
    """The folder of the one run below an output root."""
    (folder,) = {path for path in out.glob("*/*-s[0-9]*") if path.is_dir()}
    return folder


def reference(place: Path, seed: int) -> Reference:
    finished, stopped = place / "finished", place / "stopped"
    forks.imported(*words(place / "first"))
    ended = forks.run(*words(finished))
    command = Command(words(stopped))
    while command.poll() is None and lines(stopped) < 6:
        pass
    command.signal(9)
    command.wait()
    if ended.status != 0 or not 6 <= lines(stopped) < 12:
        raise RuntimeError(
            f"the campaign's own run fails: status {ended.status}, {lines(stopped)}"
            f" steps\n{ended.err}"
        )
    return Reference(finished, stopped, ended.seconds, random.Random(seed))


def lines(out: Path) -> int:
    """Lines of the log so far."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/*/metrics.jsonl"))


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True)
    return target


# --------------------------------------------------------------------------------------------------
# what holds


def polite(ended: Ended, *statuses: int) -> str:
    """A command ends with one of these statuses, and speaks in lines and not in tracebacks."""
    last = (ended.err.strip().splitlines() or ["nothing on standard error"])[-1][:200]
    if ended.traceback:
        return f"a traceback: {last}"
    return (
        ""
        if ended.status in statuses
        else f"status {ended.status}, expected {' or '.join(map(str, statuses))}: {last}"
    )


def completes(out: Path, like: Path, *, log: bool = True, seconds: float = 120.0) -> str:
    """The same command again finishes, and its result is that of the undisturbed run, bit for
    bit."""
    ended = forks.run(*words(out), seconds=seconds)
    return polite(ended, 0) or same(out, like, log=log)


def same(out: Path, like: Path, *, log: bool = True) -> str:
    mine, theirs = folder_of(out), folder_of(like)
    for name in ("adapter/adapter_model.safetensors", "init/adapter_model.safetensors"):
        if not (mine / name).exists() or (mine / name).read_bytes() != (theirs / name).read_bytes():
            return f"{name} differs from that of the undisturbed run"
    records = [json.loads((folder / "record.json").read_text()) for folder in (mine, theirs)]
    for key in ("status", "metrics", "best", "parameters"):
        if records[0].get(key) != records[1].get(key):
            return f"{key} differs: {records[0].get(key)}"[:200]
    if log and timeless(mine) != timeless(theirs):
        return "metrics.jsonl differs from that of the undisturbed run"
    return ""


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The log without its clocks."""
    text = (folder / "metrics.jsonl").read_text()
    return [
        {key: value for key, value in json.loads(line).items() if key not in CLOCKS}
        for line in text.splitlines()
    ]
