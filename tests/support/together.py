"""Runs that train together, each beside the run that it would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from loraexp import config
from loraexp.run import experiment, packed
from tests.support.runs import SMOKE

SHORT = ("task.limit_train=64", "task.limit_eval=32", "init.samples=16")
TWENTY = ("train.max_steps=20", "train.eval_every=10", "train.batch_size=4", "train.log_every=1")
WITHOUT_DROPOUT = (
    "+model.config.hidden_dropout_prob=0",
    "+model.config.attention_probs_dropout_prob=0",
)


def runs(out: Path, words: Sequence[str], each: Sequence[Sequence[str]]) -> list[Any]:
    """The checked configurations of runs that have `words` in common."""
    shared = [*SMOKE, *SHORT, f"output_root={out}", f"cache_root={out.parent / 'cache'}", *words]
    return [config.check(config.compose([*shared, *own])) for own in each]


def together(out: Path, words: Sequence[str], each: Sequence[Sequence[str]]) -> list[Any]:
    """Their outcomes, trained together; the first that failed is raised."""
    outcomes = packed.run(runs(out, words, each))
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return list(outcomes)


def alone(out: Path, words: Sequence[str], each: Sequence[Sequence[str]]) -> list[Any]:
    """Their outcomes, one after the other."""
    return [experiment.run(settings, plain) for settings, plain in runs(out, words, each)]


def factors(folder: Path, part: str = "adapter") -> dict[str, Tensor]:
    return load_file(folder / part / "factors.safetensors")


def farthest(one: Path, other: Path, part: str = "adapter") -> float:
    """The largest difference between what two runs trained."""
    a, b = factors(one, part), factors(other, part)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def moved(folder: Path) -> float:
    """How far a run's training went."""
    a, b = factors(folder, "init"), factors(folder)
    return max(float((a[name] - b[name]).abs().max()) for name in b.keys() & a.keys())
