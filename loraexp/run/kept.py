"""What a process keeps from one run for the next: the tokenised task and the pretrained model, one
of each.

A run that finds them kept gives bit by bit the result of a run in a process of its own: its model
shares the frozen weights, which nothing writes to, and has buffers, head and modules of its own,
the head drawn anew from its seed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from loraexp import models
from loraexp.config.settings import Settings
from loraexp.machine import repository


class Kept:
    """The last thing that was made, under what it was made from; the one before is dropped first,
    never two at a time."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.value: object = None
        self.read: dict[str, str] = {}  # the commits of the hub that it was made from

    def get(self, made_from: object, make: Callable[[], Any]) -> Any:
        key = json.dumps(made_from, sort_keys=True, default=str)
        if self.key != key:
            self.clear()
            with repository.reading() as self.read:
                self.value = make()
            self.key = key
        repository.note(self.read)
        return self.value

    def clear(self) -> None:
        self.key = self.value = None


TASK, MODEL = Kept(), Kept()


def clear() -> None:
    """Drop both: after a run that ran out of memory."""
    TASK.clear()
    MODEL.clear()


def task(settings: Settings, make: Callable[[], Any]) -> Any:
    """The tokenised task of these settings; `make` makes it where it is not kept."""
    model = settings.model
    reads = [
        model.name,
        model.path,
        model.config,
        model.tokenizer,
        model.pad_token,
        model.revision,
        model.kind,
    ]
    reads += [settings.output_root]  # whose pins say which commit a revision is
    return TASK.get(
        [settings.task, settings.cache_root, dataclasses.asdict(settings.evaluate), *reads], make
    )


def model(
    settings: Settings,
    base: models.Base,
    *,
    dtype: torch.dtype,
    device: torch.device,
    labels: Mapping[str, object],
    own: bool,
    full: bool,
) -> nn.Module:
    """The pretrained model on its device, its head drawn from the run's seed.

    `own`: the run gets weights that nobody else reads, and none are kept: where every weight trains
    (`full`), or processes shard it.
    """

    def load() -> nn.Module:
        loaded = base.load(dtype=dtype, head_seed=settings.seed, full=full, device=device, **labels)
        # a quantised one was loaded onto its device
        return loaded if settings.model.quantise else loaded.to(device)

    if own or settings.model.quantise:
        MODEL.clear()
        return load()
    made_from = [dataclasses.asdict(settings.model), dtype, device, labels, settings.output_root]
    pristine = MODEL.get(made_from, load)
    return fresh(pristine, settings.seed)


def fresh(pristine: nn.Module, seed: int) -> nn.Module:
    """A model with modules, buffers and head of its own on the weights of `pristine`."""
    head = models.head(pristine)
    own = {id(p) for name in head for p in pristine.get_submodule(name).parameters()}
    shared = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad)
        for p in pristine.parameters()
        if id(p) not in own
    }
    copied: nn.Module = copy.deepcopy(pristine, shared)
    places = {name: next(copied.get_submodule(name).parameters()).device for name in head}
    for name in head:
        copied.get_submodule(name).cpu()  # drawn there, like that of a model that was just loaded
    with torch.random.fork_rng(devices=[]):
        models.draw_head(copied, seed)
    for name, device in places.items():
        copied.get_submodule(name).to(device)
    return copied
