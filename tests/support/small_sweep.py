"""A small sweep for tests: two initializers, two seeds, the tiny model; given to the command line
as a yaml of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from loraexp import cli
from loraexp.sweep import reading
from loraexp.sweep.cells import Cell, expand
from tests.support.runs import PLACE

TINY = [
    "experiment=smoke",
    "wandb.mode=disabled",
    f"device={PLACE}",
    "task.limit_train=64",
    "task.limit_eval=32",
    "init.samples=16",
]


def written(folder: Path, steps: int = 2, **changes: Any) -> Path:
    """A sweep of two rows and two seeds on the tiny model."""
    content = {
        "title": "two initializers",
        "paper": "none",
        "artifact": "test",
        "kind": "table",
        "base": [*TINY, f"train.max_steps={steps}", "train.eval_every=1000"],
        "grid": {"lr": 1e-3, "seed": [0, 1]},
        "rows": {
            "lora": {"label": "LoRA", "overrides": ["init=lora"]},
            "pissa": {"label": "PiSSA", "overrides": ["init=pissa"]},
        },
        "columns": {
            "tweets": {"label": "Tweets", "overrides": ["task=tweets"], "value": "dev/accuracy"}
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def cells_of(path: Path, out: Path) -> list[Cell]:
    return expand(reading.load(str(path), None, [f"output_root={out}"]))


def go(path: Path, out: Path, *more: str) -> int:
    return cli.main(["sweep", str(path), f"output_root={out}", *more])
