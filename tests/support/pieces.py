"""Run by several processes under torchrun (see tests/sweep/test_pieces.py): steps of a model in
pieces, and the bytes that were alive at the peak of one beside what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from loraexp import config, models
from loraexp.adapter.adapted import attach, train_everything
from loraexp.adapter.layer import Factors
from loraexp.config.settings import Settings
from loraexp.machine.device import autocast
from loraexp.machine.processes import Processes
from loraexp.run import sharding
from loraexp.run.components import make
from loraexp.run.task import Task
from loraexp.sweep.hollow import task_of

LENGTH = 64


def settings_of(words: list[str]) -> Settings:
    return config.check(config.compose(words))[0]


def rows_of(settings: Settings) -> Task:
    rows = settings.micro_batch // settings.train.gpus_per_run
    return task_of(settings.model, (LENGTH,) * rows, LENGTH - 1, ("no", "yes"))


def allocated(events: Any) -> list[tuple[int, int]]:
    """(when, how many bytes) of every allocation, negative where memory is given back."""
    found: list[tuple[int, int]] = []
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    return sorted(found, key=lambda one: one[0])


def peak(step: Any) -> int:
    """Bytes beside those that were there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    now = most = 0
    for _, size in allocated(profiled.profiler.kineto_results.experimental_event_tree()):
        now += size
        most = max(most, now)
    return most


def measured(settings: Settings) -> int:
    """The peak of a step, when the optimizer has its moments."""
    full = config.Component.of(settings.init, "init").full
    base, device = models.open(settings.model), torch.device("cpu")
    dtype = models.dtype_of(settings.model, settings.precision, full=full)
    task = rows_of(settings)
    labels = {"num_labels": 2} if settings.model.kind == "encoder" else {}
    model = sharding.spread(
        lambda: base.load(dtype=dtype, head_seed=0, full=full, **labels),
        lambda model: [] if full else models.head(model),
        device,
    )
    if full:
        adapters = train_everything(model)
    else:
        factors = {
            name: Factors(
                A=torch.randn(settings.rank, m.in_features),
                B=torch.zeros(m.out_features, settings.rank),
                start="pretrained",
            )
            for name, m in base.targets(model).items()
        }
        adapters = attach(model, factors, 1.0, models.head(model))
    optimizer = make(settings.optimizer)(adapters, lr=1e-4, weight_decay=0.0)
    processes = Processes("cpu")
    processes.share([] if full else adapters.trainable())
    model.train()
    batch = task.collate(task.splits["train"], range(len(task.splits["train"])))

    def step() -> None:
        with autocast(device, settings.precision):
            loss, _ = task.loss_sum(model, batch)
        loss.backward()
        del loss
        processes.average()
        processes.clip(adapters.trainable(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    step()
    # what another thread gives back, gloo's, is not seen: the least of some is the truth
    return min(peak(step) for _ in range(4))


def main(words: str, out: str) -> int:
    """`words`: a JSON file with the configurations; `out`: where the first process writes."""
    torch.set_num_threads(1)
    Processes("cpu")
    found = [measured(settings_of(each)) for each in json.loads(Path(words).read_text())]
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(found))
    return 0
