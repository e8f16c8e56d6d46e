"""What the training loop works on and tells: the run that it trains, its clocks, the step ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraexp.adapter.adapted import Adapters
from loraexp.config.settings import Settings
from loraexp.machine.device import Runtime, is_accelerator
from loraexp.machine.measure import Stopwatch
from loraexp.models.unpadded import ENCODERS, Unpadded, layers
from loraexp.records.record import Record
from loraexp.run.batches import Step
from loraexp.run.checkpoint import Checkpoint, Progress
from loraexp.run.evaluate import evaluate
from loraexp.run.phases import Phases

if TYPE_CHECKING:
    from loraexp.run.task import Task


class Pace:
    """Seconds of training, those of an evaluation left out: of the clock, and of the processor,
    which what else runs on the machine does not change."""

    def __init__(self, before: Progress) -> None:
        self.began = time.perf_counter() - before.seconds
        self.worked = time.process_time() - before.processor_seconds

    def tell(self, state: Progress) -> None:
        state.seconds = time.perf_counter() - self.began
        state.processor_seconds = time.process_time() - self.worked

    @contextmanager
    def paused(self) -> Any:
        """Within: the clocks stand."""
        stopped, idle = time.perf_counter(), time.process_time()
        yield
        self.began += time.perf_counter() - stopped
        self.worked += time.process_time() - idle


@dataclass(kw_only=True)
class Loop:
    """What a run trains, with, and where what becomes of it is written."""

    model: nn.Module
    task: Task
    adapters: Adapters
    optimizer: torch.optim.Optimizer | None
    settings: Settings
    record: Record
    checkpoint: Checkpoint
    phase: Phases
    runtime: Runtime
    keep: Callable[[int], None]  # saves the adapter as it is after a step
    say: Callable[[str], None]
    unpadded: Unpadded | None = None  # where its rows lie one after another

    def metrics(self, splits: Iterable[str], folder: Path | None = None) -> dict[str, Any]:
        """The metrics of splits, of the model as it is."""
        size = self.settings.train.eval_batch_size
        return evaluate(
            self.model, self.task, splits, batch_size=size, runtime=self.runtime, folder=folder
        )

    @property
    def watched(self) -> list[str]:
        """The splits that are evaluated on the way: the one that selects, and with `report_during`
        the reported ones."""
        reported = self.task.reports if self.settings.train.report_during else ()
        return [
            split for split in dict.fromkeys((self.task.selection, *reported)) if split is not None
        ]


def unpadded_of(model: nn.Module, settings: Settings, runtime: Runtime) -> Unpadded | None:
    """The passes of a run without padding: with `train.unpadded`, and with
    `train.micro_batches=auto` where they are known to be the fastest, an encoder's of one process
    on a CPU."""
    if settings.train.unpadded:
        return Unpadded(model)
    alone = runtime.processes.world == 1 and not is_accelerator(runtime.device)
    if settings.train.micro_batches != "auto" or not alone:
        return None
    body: Any = getattr(model, "module", model)
    try:
        layers(body)
    except ValueError:
        return None
    return Unpadded(model) if body.config.model_type in ENCODERS else None


@dataclass(frozen=True)
class Ahead:
    """A step that a run is about to make. Whoever lets several runs go on in turn may leave its
    gradient in `.grad` and its loss in `step.loss`; without, the run makes both itself."""

    run: Loop
    number: int
    step: Step
    clock: Stopwatch
    pace: Pace
