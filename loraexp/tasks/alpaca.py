"""Alpaca: instructions with answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraexp.tasks.generation import GenerationTask, build
from loraexp.tasks.pairs import Kind
from loraexp.tasks.recipes import ALPACA
from loraexp.tasks.records import Files, Hub, Records, find


def alpaca(
    *,
    name: str,
    version: int,
    source: str,
    revision: str | None,
    protocol: str | list[str] = "lora_one",
    recipe: str | None = None,
    benchmarks: list[str],
    rows: int | None = None,
    held_out: int = 200,
    max_length: int = 1024,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    data_dir: str | None = None,
    eval_data_dir: str | None = None,
    skip_bad: bool = False,
    tokenizer: Any,
    kind: Kind,
    unsafe_code: bool = False,
    cache_root: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> GenerationTask:
    """Alpaca (cleaned), e.g. `instruction: Give three tips for staying healthy.`, `input:`, `output: 1. Eat a balanced …`.

    Taori et al. 2023, in yahma's cleaned copy: 51,760 rows, scored on MMLU with five examples, weighted by questions.
    `data_dir` holds alpaca_data_cleaned.json, or any other alpaca*.json in its columns.

    Raises: SourceError where files or the hub's copy are missing; ValueError naming file, row and fix of a bad row.
    """
    train: Records = Hub(source, None, "train", revision, "task.data_dir")
    if data_dir is not None:
        train = Files(
            (
                find(
                    data_dir,
                    ("alpaca_data_cleaned.json", "alpaca_data.json", "cherry_alpaca_5_percent.json", "*alpaca*.json", "train.json*"),
                    key="task.data_dir",
                    what="Alpaca's file",
                ),
            )
        )
    return build(
        name=name, version=version, kind=kind, recipes=ALPACA, recipe=recipe, protocol=protocol, names=benchmarks, train=train,
        rows=rows, held_out=held_out, max_length=max_length, limit_train=limit_train, limit_eval=limit_eval,
        eval_dir=eval_data_dir or data_dir, eval_key="task.eval_data_dir" if eval_data_dir else "task.data_dir", skip_bad=skip_bad,
        unsafe_code=unsafe_code, tokenizer=tokenizer, cache_root=cache_root, progress=progress,
    )  # fmt: skip
