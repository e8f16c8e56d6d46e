"""What a configuration names, as the things themselves: components, the task in tokens, labels; and
whether they fit one another, seen before a run has a folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraexp import config, models
from loraexp.adapter.adapted import Adapters
from loraexp.adapter.layer import as_initializer
from loraexp.config.settings import Settings
from loraexp.machine.device import choose_device
from loraexp.machine.hub import SourceError, Unreachable
from loraexp.machine.progress import Progress, tally
from loraexp.machine.signals import Interrupted, watched
from loraexp.models import Base
from loraexp.models.unpadded import layers
from loraexp.run import kept
from loraexp.run.initialise import settled, training_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraexp.run.task import Task


def check_model(settings: Settings, base: Base) -> None:
    """The targets are in the model, the rank fits them, and the initializer's hyper-parameters the
    training: seen on the model's skeleton, before any weight is loaded."""
    try:
        _ = base.skeleton
    except Unreachable:
        return  # the run itself fails on it, and leaves a record that says so
    except SourceError as error:
        raise config.ConfigError(str(error)) from error
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise config.ConfigError(f"model={settings.model.name}: {error}") from error
    try:
        targets = base.targets()
        initializer = config.Component.of(settings.init, "init")
        asked = as_initializer(initializer.function).request(settings.rank, **initializer.keywords)
        models.check_rank(
            targets, settings.rank, max((getattr(ask, "k", 0) for ask in asked.values()), default=0)
        )
        if settings.train.unpadded:
            layers(base.skeleton)
        choose_device(settings.device)
        settled(make(settings.init), training_of(settings, rows=1))
    except ValueError as error:
        raise config.ConfigError(str(error)) from error


def check_data(settings: Settings, base: Base) -> None:
    """The rows are there, are what the task says, and suit the model, before a folder is made; the
    run itself finds them kept."""
    try:
        with watched() as stop, stop.patiently(False):
            kept.task(settings, lambda: tokenise(settings, base))
    except Unreachable:
        return  # the run itself fails on it, and leaves a record that says so
    except Interrupted as told:
        told.where = told.where or "while reading the data; the same command goes on"
        raise
    except (ValueError, ImportError) as error:
        raise config.ConfigError(str(error)) from error
    except (MemoryError, OSError):
        return  # likewise, with what to lower


def tokenise(settings: Settings, base: Base) -> Task:
    """The task in the tokens of the model's tokenizer, which the model reads to the last one."""
    with tally("tokenising") as progress:
        task = make_task(settings, base.tokenizer, progress)
    read = [examples for examples in task.splits.values() if len(examples)]
    if settings.model.kind == "seq2seq":  # each side by itself
        prompts = max((int(x.prompts.max()) for x in read), default=0)
        answers = max((int((x.lengths - x.prompts).max()) for x in read), default=0)
        models.check_reach(base, prompts, types=0)
        models.check_reach(base, answers, types=0, side="decoder")
    if settings.model.kind == "encoder":
        longest = max((int(examples.lengths.max()) for examples in read), default=0)
        types = [int(examples.types.max()) for examples in read if examples.types is not None]
        models.check_reach(base, longest, max(types, default=0))
    return task


def make_task(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None
) -> Task:
    """The task, tokenised; it is told the model's kind and how it is evaluated, where it takes
    that."""
    made = make(settings.task)
    told = {"kind": settings.model.kind} | vars(settings.evaluate)
    taken = inspect.signature(made.func).parameters
    task: Task = made(
        tokenizer=tokenizer,
        cache_root=Path(settings.cache_root),
        progress=progress,
        **{key: value for key, value in told.items() if key in taken},
    )
    return task


def make(node: Mapping[str, object]) -> partial[Any]:
    """`functools.partial` of the function behind `_target_` with the keys of its node."""
    return config.Component.of(node, "config").partial


def optimizer_of(settings: Settings, adapters: Adapters) -> torch.optim.Optimizer | None:
    """The training rule over what trains. None of an initializer that trains nothing, on a model
    without a new head, which is evaluated as it is."""
    if not adapters.trainable():
        return None
    rule = make(settings.optimizer)
    # `_target_: torch.optim.SGD`
    plain = inspect.isclass(rule.func) and issubclass(rule.func, torch.optim.Optimizer)
    steps = adapters.trainable() if plain else adapters
    optimizer: torch.optim.Optimizer = rule(
        steps, lr=settings.lr, weight_decay=settings.train.weight_decay
    )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # what the schedule multiplies
    return optimizer


def labels(task: Task) -> dict[str, Any]:
    """What the model's head must know of the task."""
    if task.num_labels is None:
        return {}
    named = dict(enumerate(task.label_names)) if task.label_names else {}
    return {"num_labels": task.num_labels, "problem_type": task.problem} | (
        {"id2label": named} if named else {}
    )
