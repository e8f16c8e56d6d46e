"""MetaMathQA: mathematical questions rewritten from GSM8K and MATH, with worked answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraexp.tasks.generation import GenerationTask, build
from loraexp.tasks.pairs import Kind
from loraexp.tasks.recipes import METAMATH
from loraexp.tasks.records import Files, Hub, Records, find


def metamath(
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
    """MetaMathQA, e.g. `query: Randy has 60 mango trees …`, `response: … #### 35\nThe answer is: 35`, `type: GSM_Rephrased`.

    Yu et al. 2024, "MetaMath": 395,000 rows. The recipe says which of them and how: `lora_ga`, `lora_one` the first
    100,000 of type GSM under 512 tokens, `lora_sb` the first 50,000 of any type; `rows` takes another number, 0 all.
    Scored on GSM8K and MATH. `data_dir` holds MetaMathQA-395K.json (or any .json or .jsonl in its columns).

    Raises: SourceError where files or the hub's copy are missing; ValueError naming file, row and fix of a bad row.
    """
    train: Records = Hub(source, None, "train", revision, "task.data_dir")
    if data_dir is not None:
        train = Files(
            (
                find(
                    data_dir,
                    ("MetaMathQA-395K.json", "metamathqa/MetaMathQA-395K.json", "MetaMathQA*.json*", "train.json*"),
                    key="task.data_dir",
                    what="MetaMathQA's file",
                ),
            )
        )
    return build(
        name=name, version=version, kind=kind, recipes=METAMATH, recipe=recipe, protocol=protocol, names=benchmarks, train=train,
        rows=rows, held_out=held_out, max_length=max_length, limit_train=limit_train, limit_eval=limit_eval,
        eval_dir=eval_data_dir or data_dir, eval_key="task.eval_data_dir" if eval_data_dir else "task.data_dir", skip_bad=skip_bad,
        unsafe_code=unsafe_code, tokenizer=tokenizer, cache_root=cache_root, progress=progress,
    )  # fmt: skip
