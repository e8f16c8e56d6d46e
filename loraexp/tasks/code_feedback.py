"""Code-Feedback: programming questions with answers that hold code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraexp.tasks.generation import GenerationTask, build
from loraexp.tasks.pairs import Kind
from loraexp.tasks.recipes import CODE_FEEDBACK
from loraexp.tasks.records import Files, Hub, Records, find


def code_feedback(
    *,
    name: str,
    version: int,
    source: str,
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
    """Code-Feedback, e.g. `query: Write a function that …`, `answer: Here is …```python\ndef …````.

    Zheng et al. 2024, "OpenCodeInterpreter". The answer up to the end of its first code block, rows under 1,024 tokens,
    the first 100,000. Scored by running HumanEval's programs, in a sandbox (`unsafe_code` is the only way past it).
    `data_dir` holds a .json or .jsonl in the hub's columns (`query`, `answer`, or `messages`).

    Raises: SourceError where files or the hub's copy are missing; ValueError naming file, row and fix of a bad row.
    """
    train: Records = Hub(source, None, "train", revision, "task.data_dir")
    if data_dir is not None:
        train = Files(
            (
                find(
                    data_dir,
                    ("CodeFeedback*.json*", "Code-Feedback*.json*", "code_feedback/*.json*", "train.json*"),
                    key="task.data_dir",
                    what="Code-Feedback's file",
                ),
            )
        )
    return build(
        name=name, version=version, kind=kind, recipes=CODE_FEEDBACK, recipe=recipe, protocol=protocol, names=benchmarks, train=train,
        rows=rows, held_out=held_out, max_length=max_length, limit_train=limit_train, limit_eval=limit_eval,
        eval_dir=eval_data_dir or data_dir, eval_key="task.eval_data_dir" if eval_data_dir else "task.data_dir", skip_bad=skip_bad,
        unsafe_code=unsafe_code, tokenizer=tokenizer, cache_root=cache_root, progress=progress,
    )  # fmt: skip
