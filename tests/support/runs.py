"""Runs for tests: composed as on the command line, in this process or in one that can be killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from loraexp import config

# where these runs compute: `LORAEXP_TEST_DEVICE=cuda pytest tests/run …` takes them to a card
PLACE = os.environ.get("LORAEXP_TEST_DEVICE", "cpu")
SMOKE = ("experiment=smoke", "wandb.mode=disabled", f"device={PLACE}")
# Differ between two runs of the same thing: clocks, memory, and what the clock enters.
TIMES = {"started", "ended", "cost", "environment", "seconds"}


def run(*overrides: str, out: Path, notes: list[str] | None = None) -> Any:
    """The outcome of one run with the smoke experiment underneath; `notes` gets what it tells on
    the way."""
    from loraexp.run.experiment import run as experiment
    from loraexp.run.observer import Observer

    observer = Observer()
    if notes is not None:
        observer.note = notes.append  # type: ignore[method-assign]
    settings, plain = config.check(config.compose([*SMOKE, f"output_root={out}", *overrides]))
    return experiment(settings, plain, observer)


def folder_of(*overrides: str, out: Path) -> Path:
    _, plain = config.check(config.compose([*SMOKE, f"output_root={out}", *overrides]))
    return config.run_folder(plain)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


def metric_lines(folder: Path) -> list[dict[str, Any]]:
    return [
        without_times(json.loads(line))
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
