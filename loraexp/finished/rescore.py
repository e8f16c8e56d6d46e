"""A finished run's adapter scored again, under other protocols, benchmarks or limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from loraexp import config
from loraexp.config import ConfigError
from loraexp.finished.opened import FinishedRun, find_run
from loraexp.records import record
from loraexp.records.environment import environment
from loraexp.records.sections import Evaluation, RunRecord
from loraexp.run import sources
from loraexp.run.evaluate import evaluate

# What a finished run may be scored again with: nothing that changes what was trained.
SCORING: tuple[str, ...] = (
    "task.protocol",
    "task.benchmarks",
    "task.eval_data_dir",
    "task.limit_eval",
    "task.skip_bad",
    "train.eval_batch_size",
    "evaluate.backend",
    "evaluate.unsafe_code",
    "device",
    "cache_root",
)
Metrics = dict[str, dict[str, float]]  # split → metric → value


def rescore(word: str, overrides: Sequence[str]) -> Metrics:
    """Score the run that `word` names with the overrides, one protocol after another.

    The run's own metrics stay as they are: what is found stands in `evaluations`, with all that
    made it differ.
    """
    folder, content = find_run(word)
    changed = dict(override(each) for each in overrides)
    protocols = changed.pop("task.protocol", None)
    scores: Metrics = {}
    described: dict[str, Any] = {}
    for protocol in protocols if protocols is not None else [None]:
        run, metrics = score(
            folder, content, changed | ({"task.protocol": protocol} if protocol else {})
        )
        described |= run.task.describe()
        for split, values in metrics.items():
            scores[split if "/" in split or not protocol else f"{split}/{protocol}"] = values
    if run.runtime.processes.main:
        record.add_evaluation(folder, entry(run, described, scores, overrides), run.settings.wandb)
    return scores


def entry(
    run: FinishedRun, described: Mapping[str, Any], scores: Metrics, overrides: Sequence[str]
) -> Evaluation:
    """A re-score as the record keeps it: protocol, limits, rows, versions, metrics."""
    task = run.settings.task
    different = sources.changed(run.record.get("sources") or {}, "data")
    return {
        "key": " ".join(sorted(overrides)) or "again",
        "when": record.now(),
        "overrides": list(overrides),
        "protocol": (
            sorted({split.partition("/")[2] for split in scores if "/" in split})
            or task.get("protocol")
        ),
        "limits": {
            key: task[key]
            for key in ("limit_eval", "benchmarks", "eval_data_dir", "skip_bad")
            if key in task
        },
        "rows": {split: part.get("rows") for split, part in described.items() if split != "train"},
        "fingerprints": {
            split: part.get("fingerprint") for split, part in described.items() if split != "train"
        },
        "environment": environment(),
        "notes": [f"{different[1]} has changed since the run"] if different else [],
        "metrics": scores,
    }


def override(word: str) -> tuple[str, Any]:
    """`KEY=VALUE` of a key that only scoring reads; the protocols are a list."""
    key, equals, value = word.partition("=")
    if not equals or key not in SCORING:
        raise ConfigError(f"eval: {word}: expected KEY=VALUE of {', '.join(SCORING)}")
    read = yaml.safe_load(value)
    if key == "task.protocol":
        names = read.split(",") if isinstance(read, str) else list(read)
        return key, [name.strip() for name in names]
    if key == "task.eval_data_dir" and read is not None:
        return key, config.place(str(read))
    return key, read


def score(folder: Path, content: RunRecord, changed: dict[str, Any]) -> tuple[FinishedRun, Metrics]:
    """The run, and its metrics on the reported splits, with some keys of its configuration
    changed."""
    trained_by = content["data"].get("train", {}).get("recipe")
    run = FinishedRun.of(
        folder, content, changed | ({"task.recipe": trained_by} if trained_by else {})
    )
    task, settings = run.task, run.settings
    model = run.adapted().model if run.has_factors else run.whole()
    size = settings.train.eval_batch_size
    return run, evaluate(
        model, task, task.reports, folder=folder, batch_size=size, runtime=run.runtime
    )
