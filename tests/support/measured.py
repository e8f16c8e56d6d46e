"""A small sweep whose records are written by hand: what results and tables do with them needs no
training."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraexp.records.record import SCHEMA
from loraexp.results import gather
from loraexp.sweep import reading
from loraexp.sweep.cells import Cell, expand
from loraexp.sweep.schema import Sweep

CONTENT = """
# A sweep for tests.
title: Two methods on two tasks
paper: a_paper
artifact: table1
kind: table
base: [model=tiny-bert, task=tweets, task.max_length=16]
grid:
  lr: [1.0e-3, 2.0e-3]
  seed: [0, 1, 2]
rows:
  plain: {label: LoRA, overrides: [init=lora]}
  gradient: {label: LoRA-GA & co_1, overrides: [init=lora_ga], note: with 100 % of the rows}
columns:
  first: {label: First, overrides: [task.limit_train=64], value: dev/accuracy}
  second: {label: Second, overrides: [task.limit_train=65], value: dev/accuracy}
report: {unit: percent, digits: 1}
published:
  plain: {first: [70.0, 0.5], second: 60.0}
settings: {model: roberta-base, rank: 8, lr: [1.0e-3, 2.0e-3], train.epochs: 3}
deviations: [a declared one]
claims:
  - {text: LoRA-GA beats LoRA, value: gradient/first, minus: plain/first, above: 0, source: line 1}
"""
LR = (1e-3, 2e-3)


@functools.cache
def cells_of(content: str) -> list[Cell]:
    return expand(reading.read(yaml.safe_load(content), Path("mine.yaml"), None, []))


@pytest.fixture(autouse=True)
def expanded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing every cell takes most of a test's time: a content that was expanded before only
    changes its output_root."""

    def expanded(wanted: Sweep) -> list[Cell]:
        cells = []
        for cell in cells_of(wanted.path.read_text()):
            folder = wanted.output_root / cell.folder.parent.name / cell.folder.name
            cells.append(
                dataclasses.replace(
                    cell, folder=folder, plain=cell.plain | {"output_root": str(wanted.output_root)}
                )
            )
        return cells

    monkeypatch.setattr(gather, "expand", expanded)


def load(folder: Path, content: str = CONTENT, *, name: str = "mine") -> Sweep:
    """The sweep, from a file in `folder`; its records belong under `folder/outputs`."""
    path = folder / f"{name}.yaml"
    path.write_text(content)
    return reading.load(str(path), None, [f"output_root={folder / 'outputs'}"])


def put(
    cell: Cell, accuracy: float, validation: float, folder: Path | None = None, **changes: Any
) -> Path:
    """Write a finished record of a cell; `changes` replace its sections."""
    folder = folder or cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA,
        "status": "finished",
        "run_id": cell.run_id,
        "config": cell.plain,
        "metrics": {"dev": {"accuracy": accuracy}},
        "best": {
            "step": 5,
            "split": "held_out",
            "metric": "accuracy",
            "value": validation,
            "metrics": {"accuracy": validation},
        },
        "cost": {"init_seconds": 1.0, "train_seconds": 3599.0},
        "parameters": {"trainable": 10, "total": 100, "adapter": 10},
        "data": {"train": {"rows": 64}, "dev": {"rows": 1000}},
        "environment": {
            "commit": "0123456789abcdef",
            "dirty": False,
            "versions": {"python": "3.11.7", "torch": "2.0", "transformers": "5.0"},
            "hardware": {"cpu": "A CPU", "cores": 2},
            "threads": 1,
        },
        "ended": "2026-01-01T00:00:00+00:00",
    }
    (folder / "record.json").write_text(json.dumps(record | changes))
    return folder


def fill(wanted: Sweep, numbers: Callable[[Cell], tuple[float, float] | None]) -> list[Cell]:
    """Records for the cells that `numbers` gives (reported, validation) for; returns all cells."""
    cells = expand(wanted)
    for cell in cells:
        given = numbers(cell)
        if given is not None:
            put(cell, *given)
    return cells


def at(cells: Sequence[Cell], row: str, column: str, lr: float = LR[0], seed: int = 0) -> Cell:
    found = [
        c
        for c in cells
        if (c.row, c.column, c.point["lr"], c.point["seed"]) == (row, column, lr, seed)
    ]
    assert len(found) == 1
    return found[0]


def log(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
