"""GSM8K: grade-school questions with worked answers; its own training rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraexp.tasks.generation import GenerationTask, build
from loraexp.tasks.pairs import Kind
from loraexp.tasks.recipes import GSM8K
from loraexp.tasks.records import Files, Hub, Records, find


def gsm8k(
    *,
    name: str,
    version: int,
    source: str,
    config: str | None,
    revision: str | None,
    protocol: str | list[str] = "lora_ga",
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
    """GSM8K, e.g. `question: Natalia sold clips to 48 of her friends …`, `answer: Natalia sold 48/2 = … #### 72`.

    Cobbe et al. 2021: 7,473 training and 1,319 test rows. `data_dir` holds train.jsonl and test.jsonl.

    Raises: SourceError where files or the hub's copy are missing; ValueError naming file, row and fix of a bad row.
    """
    train: Records = Hub(source, config, "train", revision, "task.data_dir")
    if data_dir is not None:
        train = Files((find(data_dir, ("train.jsonl", "gsm8k/train.jsonl"), key="task.data_dir", what="train.jsonl and test.jsonl"),))
    return build(
        name=name, version=version, kind=kind, recipes=GSM8K, recipe=recipe, protocol=protocol, names=benchmarks, train=train,
        rows=rows, held_out=held_out, max_length=max_length, limit_train=limit_train, limit_eval=limit_eval,
        eval_dir=eval_data_dir or data_dir, eval_key="task.eval_data_dir" if eval_data_dir else "task.data_dir", skip_bad=skip_bad,
        unsafe_code=unsafe_code, tokenizer=tokenizer, cache_root=cache_root, progress=progress,
    )  # fmt: skip
