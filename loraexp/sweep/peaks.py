"""Bytes at the peak of the passes of a run, counted on its model without numbers by the code that
trains, evaluates and collects statistics.

A model is the same block again and again: what a pass needs is counted at two small depths and
goes on in a line to the model's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from loraexp import models
from loraexp.adapter.adapted import Adapters, attach, scaling_factor, train_everything
from loraexp.adapter.layer import CurvatureRequest, Factors, Initializer, Weighting
from loraexp.config.settings import ModelSettings
from loraexp.machine.alive import Alive
from loraexp.machine.device import to_device
from loraexp.machine.meta import META, Answers
from loraexp.run.components import make
from loraexp.run.initialise import objective as objective_of
from loraexp.run.task import Task
from loraexp.statistics.collect import like
from loraexp.statistics.room import widest_sweep
from loraexp.statistics.sweeps import Sweeper
from loraexp.sweep.hollow import Autocast, checkpointed, on_a_card, task_of
from loraexp.sweep.reduction import Reduction
from loraexp.tasks.text import TextTask

ANSWER = 16  # tokens of the decoder of an encoder-decoder: its tasks answer with a class in words
FEW = 2  # blocks, or periods of them, of the smaller of two models
DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers")


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Bytes beside the weights, the factors and the optimizer's state."""

    trained: int  # of a step: passes with their gradients, or the rule's own work
    evaluated: int  # of a batch of an evaluation
    swept: int  # of a batch of statistics; the loss alone where there are none


@dataclass(frozen=True, kw_only=True)
class Asks:
    """What of an initializer the passes of a batch of statistics depend on."""

    needs: frozenset[str]
    weighting: Weighting
    curvature: CurvatureRequest | None

    @classmethod
    def of(cls, made: Initializer, rank: int, keywords: Mapping[str, Any]) -> Asks | None:
        asked = made.request(rank, **keywords).get("curvature")
        if not made.needs:
            return None
        # every probe needs what one does, in a basis of any size
        curvature = CurvatureRequest(m=1, loss=asked.loss) if is_curvature(asked) else None
        forward = made.needs <= {"input_moment"}
        needs = made.needs if forward else made.needs & {"curvature"} | {"gradient"}
        return cls(needs=needs, weighting=made.weighting, curvature=curvature)


def is_curvature(asked: object) -> TypeGuard[CurvatureRequest]:
    return isinstance(asked, CurvatureRequest)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What of a run its passes depend on."""

    settings: str  # of the model, json
    dtype: torch.dtype
    precision: str
    classes: tuple[str, ...]
    rank: int
    trains: frozenset[str]
    full: bool
    offset: bool
    optimizer: str  # json
    length: int
    batch: int  # rows of a pass of one process
    parts: int  # passes of a step
    evaluated: int  # rows of a batch of an evaluation
    fused: bool
    shards: int  # processes that hold the weights in pieces
    asks: Asks | None  # None: there are no statistics

    @property
    def model(self) -> ModelSettings:
        return ModelSettings(**json.loads(self.settings))


# what neither the weights nor the passes of statistics depend on
ALIKE: dict[str, Any] = {
    "asks": None,
    "optimizer": "",
    "trains": frozenset(),
    "offset": False,
    "parts": 1,
    "rank": 1,
}


def passes(kind: Kind) -> Passes:
    """At the depth of the model, from two depths where all of its blocks are alike."""
    bare = models.open(kind.model).config
    same = replace(kind, **ALIKE)
    depth = int(getattr(bare, "num_hidden_layers", 0) or 0)
    small = FEW * period(bare)
    if not depth or 2 * small >= depth or not alike(same, small, depth):
        return at(kind, None)
    one, two = at(kind, small), at(kind, 2 * small)
    further = (depth - 2 * small) / small

    def goes_on(name: str) -> int:
        first, second = getattr(one, name), getattr(two, name)
        return int(second + further * (second - first))

    return Passes(**{field.name: goes_on(field.name) for field in fields(Passes)})


def period(architecture: Any) -> int:
    """After how many blocks their kinds repeat: Gemma's attention alternates."""
    kinds: Sequence[str] = getattr(architecture, "layer_types", None) or ()
    for step in range(1, len(kinds)):
        if all(kinds[i] == kinds[i % step] for i in range(len(kinds))):
            return step
    return 1


@cache
def alike(kind: Kind, small: int, depth: int) -> bool:
    """Whether the numbers of weights grow in a line with the depth."""
    first, second, whole = (
        sum(p.numel() for p in of_depth(kind, layers).parameters())
        for layers in (small, 2 * small, depth)
    )
    return (whole - first) * small == (second - first) * (depth - small)


def of_depth(kind: Kind, layers: int | None) -> nn.Module:
    """The model without numbers, with so many blocks; None: its own."""
    base = models.open(kind.model)
    own = base.config
    fewer: dict[str, Any] = {}
    if layers is not None:
        fewer = {name: layers for name in DEPTHS if getattr(own, name, None)}
        kinds = getattr(own, "layer_types", None)
        fewer |= {"layer_types": list(kinds)[:layers]} if kinds else {}
    labels = {"num_labels": len(kind.classes)} if kind.classes else {}
    return base.bare(kind.dtype, **labels, **fewer)


def at(kind: Kind, layers: int | None) -> Passes:
    """What is counted at one depth: each part once for all kinds that agree in what it needs."""
    alone = replace(kind, asks=None)
    return Passes(
        swept=swept_at(replace(kind, **(ALIKE | {"asks": kind.asks})), layers),
        trained=trained_at(alone, layers),
        evaluated=evaluated_at(alone, layers),
    )


@dataclass(frozen=True)
class Subject:
    """A model without numbers, and rows for it."""

    model: nn.Module
    head: list[str]
    targets: dict[str, Any]
    task: Task

    @classmethod
    def of(cls, kind: Kind, layers: int | None) -> Subject:
        model = of_depth(kind, layers)
        model.requires_grad_(kind.full)
        if kind.model.gradient_checkpointing:
            checkpointed(model, lower=kind.precision == "bf16", fused=kind.fused)
        model.eval()
        head = models.new_modules(model, kind.model.kind)
        rows = (kind.length,) * max(kind.batch, kind.evaluated)
        answer = ANSWER if kind.model.kind == "seq2seq" else kind.length - 1
        task = task_of(kind.model, rows, min(answer, kind.length - 1), kind.classes)
        return cls(model, head, models.target_layers(model, kind.model.targets, head), task)

    def adapted(self, kind: Kind) -> Adapters:
        if kind.full:
            return train_everything(self.model)
        given = self.model, self.targets, self.head, kind.rank, kind.trains
        return hollow_adapters(*given, offset=kind.offset)


@cache
def swept_at(kind: Kind, layers: int | None) -> int:
    one = Subject.of(kind, layers)
    return of_statistics(kind, one.model, one.targets, one.task)


@cache
def trained_at(kind: Kind, layers: int | None) -> int:
    one = Subject.of(kind, layers)
    return of_training(kind, one.model, one.task, one.adapted(kind))


@cache
def evaluated_at(kind: Kind, layers: int | None) -> int:
    one = Subject.of(kind, layers)
    one.adapted(kind)
    return of_evaluation(kind, one.model, one.task)


def precisely(kind: Kind) -> AbstractContextManager[Any]:
    return Autocast() if kind.precision == "bf16" else nullcontext()


def resident(model: nn.Module, *others: Tensor) -> Alive:
    """A count that begins with what stays: weights, factors, the optimizer's state."""
    alive = Alive()
    for tensor in (*model.parameters(), *model.buffers(), *others):
        alive.note(tensor)
    alive.reset()
    return alive


def batch_of(task: Task, rows: int) -> dict[str, Any]:
    return to_device(task.collate(task.splits["train"], range(rows)), META)


# --------------------------------------------------------------------------------------------------
# statistics


def of_statistics(
    kind: Kind, model: nn.Module, targets: Mapping[str, nn.Module], task: Task
) -> int:
    """The passes of a batch, with the inputs and output gradients that sums are made of."""

    alive = resident(model)
    before = alive.now
    objective = objective_of(task, partial(precisely, kind))
    if kind.asks is None:
        with on_a_card(fused=kind.fused), torch.no_grad(), alive:
            objective.loss_sum(model, batch_of(task, kind.batch))
        return alive.recent - before
    asks = kind.asks
    calibration = replace(
        objective,
        batches=(task.collate(task.splits["train"], range(kind.batch)),),
        weighting=asks.weighting,
    )
    sweeper = Sweeper(model, targets, calibration, "squared")
    likes = {name: like(module, META) for name, module in targets.items()}
    asked = {} if asks.curvature is None else {"curvature": asks.curvature}
    sweep = widest_sweep(sweeper, likes, asks.needs, asked)
    with on_a_card(fused=kind.fused), alive:
        sweep()
    return alive.recent - before


# --------------------------------------------------------------------------------------------------
# training and evaluation


def hollow_adapters(
    model: nn.Module,
    targets: Mapping[str, Any],
    head: list[str],
    rank: int,
    trains: Any,
    *,
    offset: bool = False,
) -> Adapters:
    """Factors without numbers in their layers; with `offset`, a second pair beside each."""
    with torch.device("meta"):
        factors = {
            name: Factors(
                A=torch.zeros(rank, m.in_features),
                B=torch.zeros(m.out_features, rank),
                R=torch.zeros(rank, rank) if "R" in trains else None,
                start="shifted",
                train=frozenset(trains),
            )
            for name, m in targets.items()
        }
        adapters = attach(model, factors, scaling_factor("lora", rank, rank), head)
        for layer in adapters if offset else ():
            layer.factors.offset_A = torch.zeros_like(layer.lora_A.data)
            layer.factors.offset_B = torch.zeros_like(layer.lora_B.data)
    return adapters


def of_training(kind: Kind, model: nn.Module, task: Task, adapters: Adapters) -> int:
    """A step: its passes, one after another, with gradients as they come; then the rule."""
    trainable = adapters.trainable()
    if not trainable:
        return 0
    rule: Any = make(json.loads(kind.optimizer))
    optimizer = rule(adapters, lr=1e-3, weight_decay=0.0)
    state = [x for held in optimizer.state.values() for x in held.values()]
    alive = resident(model, *state)
    before = alive.now
    batches = [
        batch_of(task, kind.batch) for _ in range(min(kind.parts, 2))
    ]  # from the 2nd on alike
    model.train()
    reduction = Reduction(model, kind.shards)
    for parameter in trainable if kind.full and kind.shards > 1 else ():
        parameter.register_post_accumulate_grad_hook(reduction)
    with on_a_card(fused=kind.fused), Answers(), alive:  # type: ignore[no-untyped-call]
        for batch in batches:
            with precisely(kind):
                loss, _ = task.loss_sum(model, batch)
            loss.backward()
            del loss
            reduction.end()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return alive.recent - before


def of_evaluation(kind: Kind, model: nn.Module, task: Task) -> int:
    """The loss, or the scores, of a batch."""
    if not kind.evaluated:
        return 0
    model.eval()
    alive = resident(model)
    before = alive.now
    measure = task.scored if isinstance(task, TextTask) else task.scores
    batch = batch_of(task, kind.evaluated)
    with on_a_card(fused=kind.fused), torch.no_grad(), alive, precisely(kind):
        measure(model, batch)
    return alive.recent - before
