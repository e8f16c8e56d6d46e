"""Seconds and bytes of the parts of an initialisation, and what a run would initialise, without a
run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loraexp import config, models
from loraexp.adapter.adapted import scaling_factor
from loraexp.config.settings import Settings
from loraexp.machine.alive import MadeWithin
from loraexp.machine.device import Runtime, choose_device
from loraexp.machine.processes import Processes
from loraexp.run.components import labels, make, make_task
from loraexp.run.initialise import Made, calibration_rows, initialize
from loraexp.statistics.hooks import Sums
from loraexp.statistics.sweeps import Sweeper


@dataclass
class Meter:
    """Seconds of named parts, one after another, and with `alive` the bytes that each held at its
    peak beyond its start.
    """

    device: torch.device
    alive: MadeWithin | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    part: str | None = None
    since: float = 0.0
    held: int = 0

    def switch(self, part: str | None) -> None:
        """End the part that is under way, and begin another."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.part is not None:
            self.seconds[self.part] = self.seconds.get(self.part, 0.0) + now - self.since
            if self.alive is not None:
                self.bytes[self.part] = max(
                    self.bytes.get(self.part, 0), self.alive.recent - self.held
                )
        if self.alive is not None:
            self.alive.reset()
            self.held = self.alive.now
        self.part, self.since = part, time.perf_counter()

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        self.switch(part)
        try:
            yield
        finally:
            self.switch(None)


class MeteredSweeper(Sweeper):
    """A sweeper whose sweeps are parts of their own: what is between them is a QR, what follows the
    last an eigenproblem.
    """

    meter: Meter
    iterations: int
    runs = 0

    def run(self, make: Callable[[], Sums], first_samples: int | None = None) -> Sums:
        last = self.runs == self.iterations
        self.meter.switch("projecting" if last else "sketching")
        try:
            return super().run(make, first_samples)
        finally:
            self.runs += 1
            self.meter.switch("SVD" if last else "QR")


@dataclass
class Bench:
    """A model on its device, its target layers and the calibration batches of one method."""

    settings: Settings
    model: nn.Module
    targets: dict[str, nn.Module]
    task: Any
    device: torch.device

    @property
    def scaling(self) -> float:
        return scaling_factor(
            self.settings.adapter.scaling, self.settings.alpha, self.settings.rank
        )

    @property
    def runtime(self) -> Runtime:
        processes = Processes(str(self.device))
        return Runtime(device=self.device, precision=self.settings.precision, processes=processes)

    @property
    def weights(self) -> int:
        """Bytes of the model."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        examples, asked = self.task.splits["train"], self.settings.calibration
        rows = calibration_rows(len(examples), asked, self.settings.seed)
        return [
            self.task.collate(examples, part)
            for part in np.split(rows, range(asked.batch_size, len(rows), asked.batch_size))
        ]

    def initialise(self) -> Made:
        """The initialisation as a run does it."""
        return initialize(
            self.model,
            self.targets,
            self.task,
            make(self.settings.init),
            scaling=self.scaling,
            settings=self.settings,
            runtime=self.runtime,
        )

    def backward_passes(self) -> float:
        """Those of the initialisation, over all samples."""
        return float(self.initialise().ledger["statistics"]["backward_sweeps"])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model and the task that an initialisation is measured on; `overrides`: what else
    `loraexp` would be given."""

    model: str
    task: str
    overrides: list[str]
    data_dir: str | None = None
    device: str = "auto"

    def bench(self, *own: str, like: Bench | None = None) -> Bench:
        words = [f"model={self.model}", f"task={self.task}", f"device={self.device}"]
        words += [f"task.data_dir={self.data_dir}"] if self.data_dir else []
        return prepare([*words, "init.cache=false", *self.overrides, *own], like)


def prepare(overrides: list[str], like: Bench | None = None) -> Bench:
    """What a run would initialise; with `like`, on the model and the task of another bench."""
    settings, _ = config.check(config.compose(overrides))
    if like is not None:
        return Bench(settings, like.model, like.targets, like.task, like.device)
    device = choose_device(settings.device)
    base = models.open(settings.model)
    task = make_task(settings, base.tokenizer)
    model = base.load(dtype=torch.float32, head_seed=settings.seed, **labels(task)).to(device)
    return Bench(settings, model, base.targets(model), task, device)
