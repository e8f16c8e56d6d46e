"""One run, from configuration to record: the whole story on one page."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from loraexp import config, models
from loraexp.adapter.adapted import (
    Adapters,
    attach,
    scaling_factor,
    shared_out,
    train_everything,
)
from loraexp.config.settings import Settings
from loraexp.machine import collector, repository
from loraexp.machine.device import Runtime, choose_device, deterministic, name_of, unread_masks
from loraexp.machine.files import check_writable, folder_written, write_json
from loraexp.machine.processes import Processes, job_of_scheduler, misfit
from loraexp.machine.progress import log, logged
from loraexp.machine.signals import Interrupted, Stop, watched
from loraexp.models import Base
from loraexp.records import record as records
from loraexp.records.content import content
from loraexp.records.record import Record
from loraexp.records.sections import RunRecord
from loraexp.run import kept, sources
from loraexp.run.adapter_files import described, write_adapter
from loraexp.run.checkpoint import Checkpoint, seed_generators
from loraexp.run.components import check_data, check_model, labels, make, optimizer_of, tokenise
from loraexp.run.initialise import initialize
from loraexp.run.loop import Ahead, Loop, unpadded_of
from loraexp.run.model_files import write_model
from loraexp.run.observer import SILENT, Observer, Outcome
from loraexp.run.phases import Phases
from loraexp.run.sharding import spread
from loraexp.run.train import train

if TYPE_CHECKING:
    from loraexp.run.task import Task

Result = TypeVar("Result")
Story = Generator[Ahead, None, Result]  # stands before each step until it is asked to go on


def run(settings: Settings, plain: config.Plain, observer: Observer = SILENT) -> Outcome:
    """Train, evaluate and record one run; a finished one is not run again, an interrupted one goes
    on."""
    told = story(settings, plain, observer)
    while True:
        try:
            next(told)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def story(
    settings: Settings,
    plain: config.Plain,
    observer: Observer = SILENT,
    stop: Stop | None = None,
) -> Story[Outcome]:
    """The same, a step at a time. `stop`: of several runs that go on in turn, which are told to
    stop together."""
    folder = config.run_folder(plain)
    found = content(folder)
    if not settings.force:
        records.refuse_newer(folder, found)
        if found.record is not None:
            sources.require_same(found.record, folder)
        if found.record is not None and found.finished:
            return Outcome(folder, found.record, already=True)
    unfit = misfit(
        shard=settings.train.shard,
        device=settings.device,
        quantise=settings.model.quantise,
        precision=settings.precision,
        gpus_per_run=settings.train.gpus_per_run,
    )
    if unfit is not None:
        raise config.ConfigError(unfit)
    try:
        check_writable(folder)
    except OSError as error:
        raise config.ConfigError(str(error.args[-1])) from error
    with repository.pins(Path(settings.output_root)):
        base = models.open(settings.model)
        check_model(settings, base)
        check_data(settings, base)
        observer.begun(settings, folder)
        try:
            result = yield from recorded(settings, plain, folder, observer, base, stop)
            return Outcome(folder, result)
        except records.Finished as elsewhere:
            return Outcome(folder, elsewhere.record, already=True)


def recorded(
    settings: Settings,
    plain: config.Plain,
    folder: Path,
    observer: Observer,
    base: Base,
    shared: Stop | None,
) -> Story[RunRecord]:
    """The run itself; returns its record, which is left behind also when it fails or is told to
    stop."""
    processes = Processes(settings.device)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        nullcontext(shared) if shared is not None else watched() as stop,
        deterministic(settings.train.deterministic),
        logged(folder / "run.log") if processes.main else nullcontext(),
        Record(
            folder,
            config.run_id(plain),
            plain,
            settings.wandb,
            main=processes.main,
            forced=settings.force,
        ) as record,
    ):
        experiment = Experiment(settings, base, record, stop, processes, observer)
        with unread_masks(experiment.runtime.device):
            result = yield from experiment.story()
    if stop.name is not None and shared is None:
        raise Interrupted(stop.name, "after the run had finished")
    return result


class Experiment:
    """A run from its data to its record; what is saved is saved before anything is evaluated."""

    def __init__(
        self,
        settings: Settings,
        base: Base,
        record: Record,
        stop: Stop,
        processes: Processes,
        observer: Observer,
    ) -> None:
        self.settings, self.base, self.record = settings, base, record
        self.observer = observer
        self.runtime = Runtime(
            device=choose_device(settings.device),
            precision=settings.precision,
            processes=processes,
        )
        self.phase = Phases(settings, record, stop)
        self.checkpoint = Checkpoint(
            record.folder / "checkpoint",
            record.content["run_id"],
            selects=settings.train.select == "best",
        )
        self.full = config.Component.of(settings.init, "init").full
        self.head: list[str] = []

    def story(self) -> Story[RunRecord]:
        """The whole story; returns the record."""
        settings, record = self.settings, self.record
        self.look_back()
        record.update(environment=self.used())
        seed_generators(settings.seed, self.runtime.processes.rank)
        with repository.reading() as read:
            with self.phase("data"):
                task = kept.task(settings, lambda: tokenise(settings, self.base))
                if self.checkpoint.state_path.exists():
                    sources.require_same_rows(record, task.describe())
                record.update(data=task.describe(), labels=labels(task))
                for split, rows in record.content["data"].items():
                    log(f"  {split}: {rows.get('rows')} rows of {rows.get('source')}")
            with self.phase("model"):
                model = self.model(task)
                record.update(model=self.base.identity(), hub=dict(sorted(read.items())))
                loaded = record.content["model"]
                which = loaded["commit"] or loaded["sha256"] or "random weights"
                name = loaded["source"] or settings.model.name
                log(f"  {name} ({which}) on {self.runtime.device}")
        if self.runtime.processes.main:
            record.update(sources=sources.of(settings, self.base, record.content["data"]))
        collector.work()  # what is imported is here
        with self.phase("initialisation"):
            adapters = self.start(model, task)
            record.update(parameters=adapters.count())
        with self.phase("model"):
            training = self.training(model, task, adapters)
        with self.phase("training", patient=True):
            state = yield from train(training)
        best = state.best if settings.train.select == "best" else None
        with self.phase("saving", patient=True):
            self.save(
                adapters,
                model,
                record.folder / "adapter",
                step=best["step"] if best else state.step,
            )
        with self.phase("evaluation"):
            began = time.perf_counter()
            metrics = training.metrics(task.reports, record.folder)
            if best is not None:
                metrics = {best["split"]: best["metrics"]} | metrics
        record.update(metrics=metrics, cost={"eval_seconds": time.perf_counter() - began})
        result = record.finish()
        if self.runtime.processes.main and not settings.train.keep_checkpoint:
            self.checkpoint.remove()
        return result

    def used(self) -> config.Plain:
        """What of the machine this run uses: how many processes, on which devices, by which
        algorithms."""
        devices = self.runtime.processes.gather(name_of(self.runtime.device))
        exact = self.settings.train.deterministic
        return {
            "processes": self.runtime.processes.world,
            "devices": devices,
            "job": job_of_scheduler(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "shard": self.settings.train.shard,
            "deterministic": exact,
        }

    def look_back(self) -> None:
        """What an earlier attempt left: with `force` nothing of it is used, and what is damaged is
        set aside."""
        if self.runtime.processes.main:
            if self.settings.force:
                self.checkpoint.remove()
            self.checkpoint.examine(factors=not self.full)
        self.runtime.processes.wait()

    def say(self, line: str) -> None:
        """A line for the person who watches."""
        if self.runtime.processes.main:
            log(line, said=True)
            self.observer.note(line)

    def model(self, task: Task) -> nn.Module:
        """The base with the task's head, on the device."""
        settings = self.settings
        dtype = models.dtype_of(settings.model, settings.precision, full=self.full)
        own = self.full or self.runtime.processes.world > 1
        how: dict[str, Any] = {"dtype": dtype, "labels": labels(task)}
        if settings.train.shard == "full":
            model = self.spread(**how)
        else:
            how |= {"device": self.runtime.device, "own": own, "full": self.full}
            model = kept.model(settings, self.base, **how)
        self.head = models.head(model)
        notes = models.notes(model)
        self.record.update(model={"notes": notes, "untied": models.untied(model)})
        for note in notes:
            self.say(f"model {settings.model.name}: {note}")
        return model

    def spread(self, dtype: torch.dtype, labels: Mapping[str, object]) -> nn.Module:
        """The base with the task's head, in pieces over the processes; a new head that trains
        beside adapters is whole on all of them."""
        kept.MODEL.clear()
        return spread(
            lambda: self.base.load(
                dtype=dtype, head_seed=self.settings.seed, full=self.full, device=None, **labels
            ),
            lambda model: [] if self.full else models.head(model),
            self.runtime.device,
        )

    def start(self, model: nn.Module, task: Task) -> Adapters:
        """Where training starts: the initializer's factors in their layers, or those of the
        interrupted run."""
        if self.full:
            return train_everything(model)
        settings, record = self.settings, self.record
        scaling = scaling_factor(settings.adapter.scaling, settings.alpha, settings.rank)
        stored = self.checkpoint.load_factors()
        # nobody writes factors before everybody has looked whether there were any
        self.runtime.processes.wait()
        if stored is not None:
            factors, extra = stored
            record.update(cost=extra["cost"])
            if "packed" in record.before:  # in whose time and memory other runs had a part
                record.update(packed=record.before["packed"])
            return attach(model, factors, scaling, self.head, dropout=settings.adapter.dropout)
        targets = self.base.targets(model)
        made = initialize(
            model,
            targets,
            task,
            make(settings.init),
            scaling=scaling,
            settings=settings,
            runtime=self.runtime,
        )
        adapters = attach(model, made.factors, scaling, self.head, dropout=settings.adapter.dropout)
        ledger = made.finish()
        record.update(cost=made.cost)
        if self.runtime.processes.main:
            self.observer.initialised(ledger)
            self.save(adapters, model, record.folder / "init")
            write_json(record.folder / "init" / "ledger.json", ledger)
            self.checkpoint.save_factors(made.factors, {"cost": made.cost})
        self.runtime.processes.wait()
        return adapters

    def training(self, model: nn.Module, task: Task, adapters: Adapters) -> Loop:
        """The model as the loop calls it, and its optimizer."""
        settings = self.settings
        self.runtime.processes.share([p for p in adapters.trainable() if not shared_out(p)])
        return Loop(
            model=model,
            task=task,
            adapters=adapters,
            optimizer=optimizer_of(settings, adapters),
            settings=settings,
            record=self.record,
            checkpoint=self.checkpoint,
            phase=self.phase,
            runtime=self.runtime,
            keep=lambda step: self.save(adapters, model, self.record.folder / "adapter", step=step),
            say=self.say,
            unpadded=unpadded_of(model, settings, self.runtime),
        )

    def save(
        self, adapters: Adapters, model: nn.Module, folder: Path, step: int | None = None
    ) -> None:
        """The run's weights, written by the main process. `step`: of those that are its result,
        which the record then names."""
        base, kind, processes = self.base, self.settings.model.kind, self.runtime.processes
        with folder_written(folder) if processes.main else nullcontext() as place:
            if not adapters.layers:
                write_model(model, place, processes)
            elif place is not None:
                write_adapter(place, adapters, base=base, kind=kind, head=self.head)
        if step is not None and processes.main:
            self.record.update(**described(folder, step))
