"""Commonsense170K: the training rows of eight commonsense benchmarks, in LLM-Adapters' form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraexp.sources import SourceError
from loraexp.tasks.generation import GenerationTask, build
from loraexp.tasks.pairs import Kind
from loraexp.tasks.recipes import COMMONSENSE
from loraexp.tasks.records import Files, Hub, Records


def commonsense170k(
    *,
    name: str,
    version: int,
    source: str,
    revision: str | None,
    protocol: str | list[str] = "llm_adapters",
    recipe: str | None = None,
    benchmarks: list[str],
    rows: int | None = None,
    held_out: int = 200,
    max_length: int = 512,
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
    """Commonsense170K, e.g. `instruction: Please answer the following question with true or false, question: …`, `output:
    the correct answer is true`, `answer: true`.

    Hu et al. 2023, "LLM-Adapters". Scored on the eight test sets, each and the mean of them. `data_dir` holds
    commonsense_170k.json, or the folders `TASK/train.json`, which are then read one after another in the order of
    `benchmarks`, and `TASK/test.json`.

    Raises: SourceError where files or the hub's copy are missing; ValueError naming file, row and fix of a bad row.
    """
    train: Records = Hub(source, None, "train", revision, "task.data_dir")
    if data_dir is not None:
        train = Files(training_files(Path(data_dir).expanduser(), benchmarks))
    return build(
        name=name, version=version, kind=kind, recipes=COMMONSENSE, recipe=recipe, protocol=protocol, names=benchmarks, train=train,
        rows=rows, held_out=held_out, max_length=max_length, limit_train=limit_train, limit_eval=limit_eval,
        eval_dir=eval_data_dir or data_dir, eval_key="task.eval_data_dir" if eval_data_dir else "task.data_dir", skip_bad=skip_bad,
        unsafe_code=unsafe_code, tokenizer=tokenizer, cache_root=cache_root, progress=progress, average=True,
    )  # fmt: skip


def training_files(directory: Path, tasks: list[str]) -> tuple[Path, ...]:
    """The one file of all rows, or every task's own, in `directory` or in `directory/commonsense`.

    Raises: SourceError where neither is there.
    """
    for folder in (directory, directory / "commonsense"):
        whole = folder / "commonsense_170k.json"
        if whole.is_file():
            return (whole,)
        parts = tuple(path for task in tasks if (path := folder / task / "train.json").is_file())
        if parts:
            return parts
    raise SourceError(
        f"task.data_dir={directory}: neither commonsense_170k.json nor TASK/train.json is there; give LLM-Adapters' folder of data, "
        "or set task.data_dir=null for the hub"
    )
