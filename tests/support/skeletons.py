"""Models of the papers' size without numbers: the real code initialises, trains and evaluates them
on the meta device, and every byte and every call of it can be counted.

What the host reads of a tensor's values is answered by a fixed number, ones; what it decides by
them is what it decides where all is well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from loraexp import config, models
from loraexp.adapter.adapted import Adapters, attach, scaling_factor, train_everything
from loraexp.config.settings import Settings
from loraexp.initializers import lora_da
from loraexp.machine import device as devices
from loraexp.machine import measure
from loraexp.machine.alive import Alive
from loraexp.machine.device import Runtime
from loraexp.machine.meta import META, Answers
from loraexp.machine.processes import Processes
from loraexp.run import initialise, train
from loraexp.run.batches import Batches
from loraexp.run.experiment import make
from loraexp.sweep import sizes
from loraexp.sweep.hollow import Autocast, checkpointed, on_a_card, task_of
from loraexp.sweep.peaks import DEPTHS
from loraexp.tasks.text import TextTask


class Unmarked:
    """An event of a device that has none."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Unmarked) -> float:
        return 0.0


@contextlib.contextmanager
def card_of(size: int | None, alive: Alive) -> Iterator[None]:
    """Within: the device is a card with so many bytes; None: nobody knows how many it has."""

    def free(device: torch.device) -> int | None:
        return None if size is None else size - alive.now

    @contextlib.contextmanager
    def host() -> Iterator[torch.device]:
        with alive.elsewhere():
            yield META

    with (
        mock.patch.object(devices, "on_host", host),
        mock.patch.object(measure, "free_bytes", free),
        mock.patch.object(measure, "reset_peak", lambda device: alive.reset()),
        mock.patch.object(measure, "peak_bytes", lambda device: alive.recent),
    ):
        yield


def sound(read: list[Tensor]) -> list[float]:
    """What LoRA-DA looks at: its step is one (largest entry, median, whether a factor failed, least
    output moment), and nothing exceeds its tolerance."""
    return [1.0, 1.0, 0.0, 1.0] + [0.0] * (len(read) - 4)


original = torch.autocast


def cast_on_meta(device_type: str, *given: Any, enabled: bool = True, **how: Any) -> Any:
    """`torch.autocast` that knows the meta device."""
    if device_type != META.type:
        return original(device_type, *given, enabled=enabled, **how)
    return Autocast() if enabled else contextlib.nullcontext()


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Within: the code of a run works on the meta device as on an accelerator."""
    with (
        Answers(),
        mock.patch.object(measure, "event", lambda device: Unmarked()),
        mock.patch.object(lora_da, "numbers", sound),
        mock.patch.object(torch, "autocast", cast_on_meta),
        on_a_card(),
    ):
        yield


def of_depth(settings: Settings, layers: int | None) -> Settings:
    """The same model with fewer layers."""
    architecture = settings.model.config
    if layers is None or architecture is None:
        return settings
    fewer = {name: layers for name in DEPTHS if name in architecture}
    return replace(settings, model=replace(settings.model, config=architecture | fewer))


class Subject:
    """A model without numbers, adapted and trained by the code of a run; each part says how many
    bytes were alive at its peak, and what calls it made."""

    def __init__(
        self,
        *words: str,
        lengths: tuple[int, ...],
        answer: int = 0,
        layers: int | None = None,
        card: int | None = None,
    ) -> None:
        self.card = card
        composed = config.compose(["precision=bf16", "init.cache=false", "device=cuda", *words])
        self.settings = of_depth(sizes.offline(config.check(composed)[0]), layers)
        self.processes = Processes("cpu")
        self.runtime = Runtime(
            device=META, precision=self.settings.precision, processes=self.processes
        )
        self.task = task_of(self.settings.model, lengths, answer or max(lengths) - 1, ("no", "yes"))
        full = config.Component.of(self.settings.init, "init").full
        dtype = models.dtype_of(self.settings.model, self.settings.precision, full=full)
        own = self.task.num_labels
        self.base = models.open(self.settings.model)
        self.model = self.base.bare(dtype, **({"num_labels": own} if own else {}))
        for parameter in self.model.parameters():
            parameter.requires_grad_(full)
        if self.settings.model.gradient_checkpointing:
            checkpointed(self.model, lower=self.settings.precision == "bf16")
        self.model.eval()
        self.head = self.base.head
        self.adapters: Adapters | None = None
        self.optimizer: Any = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[Alive]:
        """Within: what is alive is counted, weights among it."""
        alive = Alive()
        held: list[Any] = [*self.model.parameters(), *self.model.buffers()]
        if self.optimizer is not None:
            held += [x for s in self.optimizer.state.values() for x in s.values()]
        for tensor in held:
            alive.note(tensor)
        with card_of(self.card, alive), without_numbers(), alive:
            yield alive

    def initialised(self) -> Alive:
        """Statistics and factors, in their layers."""
        settings, initializer = self.settings, make(self.settings.init)
        with self.watched() as alive:
            if config.Component.of(settings.init, "init").full:
                self.adapters = train_everything(self.model)
                return alive
            scaling = scaling_factor(settings.adapter.scaling, settings.alpha, settings.rank)
            self.made = initialise.initialize(
                self.model,
                models.target_layers(self.model, settings.model.targets, self.head),
                self.task,
                initializer,
                scaling=scaling,
                settings=settings,
                runtime=self.runtime,
            )
            self.adapters = attach(self.model, self.made.factors, scaling, self.head)
        return alive

    def trained(self, steps: int = 2) -> Alive:
        """Steps of the rule; the peak of the first lacks the optimizer's moments."""
        assert self.adapters is not None
        with self.watched() as alive:
            rule = make(self.settings.optimizer)
            self.optimizer = rule(self.adapters, lr=1e-4, weight_decay=0.0)
            for group in self.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
            self.model.train()
            batches = Batches(self.task, self.settings.train, 0, self.runtime)
            for number in range(steps):
                clock = measure.Stopwatch(META)
                train.step(self.loop(), batches.of(number), number, steps, clock)
        return alive

    def evaluated(self) -> Alive:
        """The scores, or the likelihood, of the rows."""
        size, runtime = self.settings.train.eval_batch_size, self.runtime
        with self.watched() as alive:
            if isinstance(self.task, TextTask):
                self.task.likelihood(self.model, "dev", batch_size=size, runtime=runtime)
            else:
                self.task.evaluate(
                    self.model, None, "dev", batch_size=size, runtime=runtime, folder=None
                )
        return alive

    def loop(self) -> train.Loop:
        """What a step reads of a run; nothing is recorded."""
        nothing: Any = None
        return train.Loop(
            model=self.model,
            task=self.task,
            adapters=nothing if self.adapters is None else self.adapters,
            optimizer=self.optimizer,
            settings=self.settings,
            record=nothing,
            checkpoint=nothing,
            phase=nothing,
            runtime=self.runtime,
            keep=lambda step: None,
            say=lambda line: None,
            unpadded=None,
        )
