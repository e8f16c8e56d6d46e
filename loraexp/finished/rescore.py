"""A finished run's adapter scored again, under other protocols, benchmarks or limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from loraexp.config import ConfigError
from loraexp.finished.opened import FinishedRun, find_run
from loraexp.machine.processes import Processes
from loraexp.records import record
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
    """Score the run that `word` names with the overrides, one protocol after another, and keep the metrics in its record."""
    folder, content = find_run(word)
    changed = dict(override(each) for each in overrides)
    protocols = changed.pop("task.protocol", None)
    scores: Metrics = {}
    for protocol in protocols if protocols is not None else [None]:
        named = changed | ({"task.protocol": protocol} if protocol else {})
        for split, values in score(folder, content, named).items():
            scores[split if "/" in split or not protocol else f"{split}/{protocol}"] = values
    keep(folder, content, scores, list(overrides))
    return scores


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
        return key, str(Path(read).expanduser().absolute())
    return key, read


def score(folder: Path, content: dict[str, Any], changed: dict[str, Any]) -> Metrics:
    """The metrics of a run's adapter on the reported splits, with some keys of its configuration changed."""
    trained_by = content["data"].get("train", {}).get("recipe")
    run = FinishedRun.of(folder, content, changed | ({"task.recipe": trained_by} if trained_by else {}))
    task, settings = run.task, run.settings
    model = run.adapted().model if run.has_factors else run.whole()
    how = {"device": run.device, "precision": settings.precision, "processes": Processes(settings.device)}
    size = settings.train.eval_batch_size
    return evaluate(model, task, task.reports, folder=folder, batch_size=size, **how)


def keep(folder: Path, content: dict[str, Any], scores: Metrics, overrides: list[str]) -> None:
    """Add metrics to a run's record, and what made them."""
    content["metrics"] |= scores
    made = {"when": record.now(), "overrides": overrides}
    content["evaluated_again"] = content.get("evaluated_again", {}) | {split: made for split in scores}
    record.write_json(folder / "record.json", content)
