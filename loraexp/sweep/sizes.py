"""How much memory and disk a run will need, and what a run's memory depends on.

What is counted on a model's skeleton (estimate.py) is noted, so that a plan is counted once and
needs torch and transformers no more.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from loraexp.config.settings import ModelSettings, Settings
from loraexp.machine.hub import SourceError, resolve
from loraexp.machine.notes import Notes, code, hashed
from loraexp.sweep import duration
from loraexp.sweep.accepted import ours
from loraexp.sweep.shapes import Memory, Shape

NAME = "counted-sizes"


class Unknown(LookupError):
    """The architecture of a model is not reachable, and its yaml does not tell it."""


def offline(everything: Settings) -> Settings:
    """Settings whose architecture is on this machine: their own, that of a local folder, or the
    yaml's; raises Unknown."""
    settings = everything.model
    if settings.config is not None:
        return everything
    if settings.path is not None:
        try:
            if isinstance(resolve(settings.path, key="model.path"), Path):
                return everything
        except SourceError:
            pass
    found = everything.facts.get("model", {}).get("config")
    if found is None:
        raise Unknown(
            f"model={settings.name}: {settings.path} is not on this machine; set model.path=DIR to"
            " count its layers"
        )
    return dataclasses.replace(everything, model=dataclasses.replace(settings, config=found))


def shape_of(settings: Settings, *, length: int | None = None) -> Shape:
    """`length`: tokens of the longest row; None: what recipe and max_length allow. Attention is
    fused on an accelerator, not on a CPU."""
    train, calibration = settings.train, settings.calibration
    parts = {
        "model": dataclasses.asdict(settings.model),
        "init": settings.init,
        "optimizer": settings.optimizer,
        "labels": len(settings.task.get("label_names") or []),
        "problem": settings.task.get("problem"),
        "rank": settings.rank,
        "precision": settings.precision,
        "batch": -(-settings.micro_batch // train.gpus_per_run),
        "shards": train.gpus_per_run if train.shard == "full" else 1,
        "parts": train.gradient_accumulation * min(train.equal_parts, train.batch_size),
        "evaluated": scored_rows(settings),
        "calibration": [calibration.samples, calibration.memory_budget],
    }
    card = settings.device != "cpu"
    return Shape(
        settings=json.dumps(parts, sort_keys=True),
        length=length or duration.longest(settings),
        card=card,
        fused=card and settings.model.attention != "eager",
        written=(train.eval_batch_size, duration.written_tokens(settings)),
    )


def scored_rows(settings: Settings) -> int:
    """Rows of a batch whose scores or likelihood is looked at; 0 where only answers are written."""
    task = settings.task
    answers = bool(task.get("benchmarks")) and not task.get("held_out")
    return 0 if answers else settings.train.eval_batch_size


NOTES: dict[str, Notes] = {}  # by the root of the cache


def keep() -> None:
    """Write what was counted."""
    for notes in NOTES.values():
        notes.keep()


@cache
def counted(shape: Shape, root: str) -> tuple[Memory, dict[str, int]]:
    """What `estimate.counted` counts, once for all that have the cache at `root`.

    It follows from the shape, the versions of the code, and the files where the model is a local
    folder; it is counted anew where a function is of another package.
    """
    parts = json.loads(shape.settings)
    place = local(parts["model"])
    files = [] if place is None else sorted(place.iterdir()) if place.is_dir() else [place]
    seen = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    own = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    key = hashed(code(), own, dataclasses.asdict(shape), str(place), seen)
    notes = NOTES.setdefault(root, Notes(Path(root) / NAME))
    known = notes.get(key) if ours(parts["init"]) and ours(parts["optimizer"]) else None
    if known is not None:
        return Memory(**known[0]), known[1]
    from loraexp.sweep import estimate

    memory, numbers = estimate.counted(shape)
    notes.add(key, [dataclasses.asdict(memory), numbers])
    return memory, numbers


def local(model: Mapping[str, Any]) -> Path | None:
    """The folder whose files say what a model is; None where its configuration does."""
    if model["config"] is not None:
        return None
    place = resolve(ModelSettings(**model).path or "", key="model.path")
    return place if isinstance(place, Path) else None


def disk_bytes(settings: Settings, memory: Memory, numbers: Mapping[str, int]) -> int:
    """What a finished run keeps: the whole model with init=full, else init/ and adapter/ as they
    trained and in PEFT's form."""
    log = 60_000  # record, ledger, configuration, log
    if not numbers["adapter"]:
        return 4 * numbers["total"] + log
    head = 4 * (numbers["trainable"] - min(numbers["trainable"], numbers["adapter"]))
    each = memory.adapter + head
    kept = settings.train.keep_factors_every
    found = duration.steps_and_tokens(settings) if kept else None
    copies = found[0] // kept if found and kept else 0
    return (4 + copies) * each + log


def remedy(memory: Memory, settings: Settings, budget: float) -> str:
    """The key that makes a run fit, by what needs most of the memory."""
    train = settings.train
    if memory.weights > budget:
        return "model.quantise=4bit" if settings.model.quantise != "4bit" else "a smaller model"
    if memory.init > budget and memory.init >= memory.train:
        activations = memory.init_activations > memory.statistics
        return (
            f"train.micro_batches={train.batch_size}"
            if activations and settings.micro_batch > 1
            else "init.memory_budget"
        )
    if memory.write > budget and memory.write >= memory.train:
        return "train.eval_batch_size"
    if memory.activations > memory.optimizer + memory.gradients:
        if train.equal_parts < train.batch_size:
            return f"train.micro_batches={train.batch_size}"
        if not settings.model.gradient_checkpointing:
            return "model.gradient_checkpointing=true"
    return "an initializer with fewer trained weights, or a rule with less state"
