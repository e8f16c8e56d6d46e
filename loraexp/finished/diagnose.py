"""Alignment diagnostics of a finished run: what is measured, and between which runs that makes
sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from loraexp import config
from loraexp.config import ConfigError
from loraexp.finished import angles
from loraexp.finished.findings import Alignment, Angles, KeptStep, Predictions
from loraexp.finished.opened import FinishedRun
from loraexp.machine.progress import bar

WHERE = ("device", "cache_root", "task.data_dir", "task.eval_data_dir")
SHOWN = 13  # points of the line, which t = 0 and t = 1 are among


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is looked at."""

    rows: int = 512  # training rows of the one-step gradient
    held_out: int = 128  # held-out rows for predictions and losses
    directions: int | None = None  # leading directions that are compared; null: the rank
    points: int = 9  # of each side of the plane


def override(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or key not in WHERE:
        raise ConfigError(
            f"align: {word}: expected KEY=VALUE of {', '.join(WHERE)}; the run's other keys are"
            " what it was trained with"
        )
    read = yaml.safe_load(value)
    return key, config.place(str(read)) if read is not None and key != "device" else read


def check(subject: FinishedRun, full: FinishedRun | None, directions: int | None) -> None:
    """The run has factors of that many directions, and the other is full fine-tuning of the same
    thing."""
    subject.require_same("data", "init", "task")
    rank = subject.settings.rank
    if directions is not None and directions > rank:
        raise ConfigError(
            f"--directions {directions}: the run's rank is {rank}; expected at most that"
        )
    if full is None:
        return
    if full.has_factors:
        raise ConfigError(
            f"--against {full.folder}: init={full.settings.init['name']}; expected a run with"
            " init=full"
        )
    if not subject.has_factors:
        raise ConfigError(
            f"{subject.folder}: init=full is not compared with another full run; leave out"
            " --against"
        )
    same: dict[str, tuple[Any, Any]] = {
        "model": (subject.settings.model.name, full.settings.model.name),
        "model.path": (subject.settings.model.path, full.settings.model.path),
        "task": (subject.settings.task["name"], full.settings.task["name"]),
        "task.protocol": (
            subject.settings.task.get("protocol"),
            full.settings.task.get("protocol"),
        ),
    }
    for key, (ours, theirs) in same.items():
        if ours != theirs:
            raise ConfigError(
                f"--against {full.folder}: {key}={theirs}, and the run has {ours}; expected the"
                " same"
            )


# --------------------------------------------------------------------------------------------------
# measuring


def diagnose(subject: FinishedRun, full: FinishedRun | None, extent: Extent) -> Alignment:
    """Angles to the one-step gradient at every kept step, distance of the predictions from full
    fine-tuning's, and the loss on the way from the pretrained weights to the run's."""
    stages = (
        ["angles"] * subject.has_factors
        + ["predictions"] * (full is not None)
        + ["loss between the weights"]
    )
    seen: Angles | None = None
    apart: Predictions | None = None
    with bar("aligning", len(stages)) as advance:
        if subject.has_factors:
            k = extent.directions or subject.settings.rank
            gradient = angles.one_step_gradient(subject, subject.base(), extent.rows, k)
            steps: list[KeptStep] = []
            for step, path in angles.kept_factors(subject):
                layers = angles.angles(subject, gradient, path, k)
                steps.append({"step": step, "classes": angles.by_class(layers), "layers": layers})
            rows = min(extent.rows, len(subject.task.splits["train"]))
            seen = {"directions": k, "rows": rows, "steps": steps}
            advance()
        if full is not None:
            apart = angles.prediction_distances(subject, full, extent.held_out)
            advance()
        loss = angles.slices(subject, full, extent.held_out, SHOWN, extent.points)
        advance()
    found = Alignment(
        run=subject.folder.name,
        init=subject.settings.init["name"],
        against=full.folder.name if full else None,
        loss=loss,
    )
    if seen is not None:
        found["angles"] = seen
    if apart is not None:
        found["predictions"] = apart
    return found
