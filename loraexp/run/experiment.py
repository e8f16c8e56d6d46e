"""One run, from configuration to record: the whole story on one page."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from loraexp.adapter.formats import FACTORS, save_peft, save_raw
from loraexp.config.settings import Settings
from loraexp.machine import repository
from loraexp.machine.device import choose_device, deterministic, name_of, unread_masks
from loraexp.machine.files import folder_written, sha256, write_json
from loraexp.machine.hub import SourceError, Unreachable
from loraexp.machine.processes import Processes, misfit
from loraexp.machine.progress import log, logged, tally
from loraexp.machine.signals import Interrupted, Stop, watched
from loraexp.models import Base
from loraexp.models.unpadded import Unpadded, layers
from loraexp.records import record as records
from loraexp.records.content import content
from loraexp.records.record import Record
from loraexp.records.sections import RunRecord
from loraexp.run import kept, sources
from loraexp.run.checkpoint import Checkpoint, seed_generators
from loraexp.run.initialise import initialize, settled, training_of
from loraexp.run.model_files import write_model
from loraexp.run.phases import Phases
from loraexp.run.sharding import spread
from loraexp.run.train import Ahead, Loop, train

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its folder, its record, and whether it was there already."""

    folder: Path
    record: RunRecord
    already: bool = False


class Observer:
    """What is told of a run while it goes on; this one keeps it to itself, for runs that are
    reported together."""

    def begun(self, settings: Settings, folder: Path) -> None: ...

    def initialised(self, ledger: dict[str, Any]) -> None: ...

    def note(self, line: str) -> None: ...


SILENT = Observer()


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
        with unread_masks(experiment.device):
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
        self.processes, self.observer = processes, observer
        self.phase = Phases(settings, record, stop)
        self.checkpoint = Checkpoint(
            record.folder / "checkpoint",
            record.content["run_id"],
            selects=settings.train.select == "best",
        )
        self.device = choose_device(settings.device)
        self.full = config.Component.of(settings.init, "init").full
        self.head: list[str] = []

    def story(self) -> Story[RunRecord]:
        """The whole story; returns the record."""
        settings, record = self.settings, self.record
        self.look_back()
        record.update(environment=self.used())
        seed_generators(settings.seed, self.processes.rank)
        with repository.reading() as read:
            with self.phase("data"):
                task = kept.task(settings, lambda: tokenise(settings, self.base))
                self.require_same_rows(task)
                record.update(data=task.describe(), labels=labels(task))
                for split, rows in record.content["data"].items():
                    log(f"  {split}: {rows.get('rows')} rows of {rows.get('source')}")
            with self.phase("model"):
                model = self.model(task)
                record.update(model=self.base.identity(), hub=dict(sorted(read.items())))
                loaded = record.content["model"]
                which = loaded["commit"] or loaded["sha256"] or "random weights"
                log(f"  {loaded['source'] or settings.model.name} ({which}) on {self.device}")
        if self.processes.main:
            record.update(sources=sources.of(settings, self.base, record.content["data"]))
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
        if self.processes.main and not settings.train.keep_checkpoint:
            self.checkpoint.remove()
        return result

    def used(self) -> config.Plain:
        """What of the machine this run uses: how many processes, on which devices, by which
        algorithms."""
        devices = self.processes.gather(name_of(self.device))
        exact = self.settings.train.deterministic
        return {
            "processes": self.processes.world,
            "devices": devices,
            "job": job_of_scheduler(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "shard": self.settings.train.shard,
            "deterministic": exact,
        }

    def look_back(self) -> None:
        """What an earlier attempt left: with `force` nothing of it is used, and what is damaged is
        set aside."""
        if self.processes.main:
            if self.settings.force:
                self.checkpoint.remove()
            self.checkpoint.examine(factors=not self.full)
        self.processes.wait()

    def require_same_rows(self, task: Any) -> None:
        """A run that goes on has the rows that it began with, wherever they were read.

        Raises: ConfigError naming the split; the checkpoint stays.
        """
        before = self.record.before.get("data") or {}
        if not self.checkpoint.state_path.exists():
            return
        for split, described in task.describe().items():
            old, new = (part.get("fingerprint") for part in (before.get(split) or {}, described))
            if old is not None and old != new:
                kept = {
                    key: self.record.before[key]
                    for key in ("data", "sources")
                    if key in self.record.before
                }
                self.record.update(**kept)
                raise config.ConfigError(
                    f"this run began with other data: the rows of {split} have fingerprint"
                    f" {str(new)[:12]}, and had {str(old)[:12]} ({self.record.folder}); put them"
                    " back to go on, or force=true begins again"
                )

    def say(self, line: str) -> None:
        """A line for the person who watches."""
        if self.processes.main:
            log(line, said=True)
            self.observer.note(line)

    def model(self, task: Any) -> nn.Module:
        """The base with the task's head, on the device."""
        settings = self.settings
        dtype = models.dtype_of(settings.model, settings.precision, full=self.full)
        own = self.full or self.processes.world > 1
        how: dict[str, Any] = {"dtype": dtype, "labels": labels(task)}
        if settings.train.shard == "full":
            model = self.spread(**how)
        else:
            how |= {"device": self.device, "own": own, "full": self.full}
            model = kept.model(settings, self.base, **how)
        self.head = models.head(model)
        notes = models.notes(model)
        self.record.update(model={"notes": notes, "untied": models.untied(model)})
        for note in notes:
            self.say(f"model {settings.model.name}: {note}")
        return model

    def spread(self, dtype: torch.dtype, labels: dict[str, Any]) -> nn.Module:
        """The base with the task's head, in pieces over the processes; a new head that trains
        beside adapters is whole on all of them."""
        kept.MODEL.clear()
        return spread(
            lambda: self.base.load(
                dtype=dtype, head_seed=self.settings.seed, full=self.full, **labels
            ),
            lambda model: [] if self.full else models.head(model),
            self.device,
        )

    def start(self, model: nn.Module, task: Any) -> Adapters:
        """Where training starts: the initializer's factors in their layers, or those of the
        interrupted run."""
        if self.full:
            return train_everything(model)
        settings, record = self.settings, self.record
        scaling = scaling_factor(settings.adapter.scaling, settings.alpha, settings.rank)
        stored = self.checkpoint.load_factors()
        # nobody writes factors before everybody has looked whether there were any
        self.processes.wait()
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
            device=self.device,
            processes=self.processes,
        )
        adapters = attach(model, made.factors, scaling, self.head, dropout=settings.adapter.dropout)
        ledger = made.finish()
        record.update(cost=made.cost)
        if self.processes.main:
            self.observer.initialised(ledger)
            self.save(adapters, model, record.folder / "init")
            write_json(record.folder / "init" / "ledger.json", ledger)
            self.checkpoint.save_factors(made.factors, {"cost": made.cost})
        self.processes.wait()
        return adapters

    def training(self, model: nn.Module, task: Any, adapters: Adapters) -> Loop:
        """The model as the loop calls it, and its optimizer."""
        settings = self.settings
        # an initializer that trains nothing, on a model without a new head, is evaluated as it is
        optimizer = None
        self.processes.share([p for p in adapters.trainable() if not shared_out(p)])
        if adapters.trainable():
            rule = make(settings.optimizer)
            # `_target_: torch.optim.SGD`
            plain = inspect.isclass(rule.func) and issubclass(rule.func, torch.optim.Optimizer)
            steps = adapters.trainable() if plain else adapters
            optimizer = rule(steps, lr=settings.lr, weight_decay=settings.train.weight_decay)
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # what the schedule multiplies
        return Loop(
            model=model,
            task=task,
            adapters=adapters,
            optimizer=optimizer,
            settings=settings,
            record=self.record,
            checkpoint=self.checkpoint,
            phase=self.phase,
            device=self.device,
            processes=self.processes,
            keep=lambda step: self.save(adapters, model, self.record.folder / "adapter", step=step),
            say=self.say,
            unpadded=Unpadded(model) if settings.train.unpadded else None,
        )

    def save(
        self, adapters: Adapters, model: nn.Module, folder: Path, step: int | None = None
    ) -> None:
        """The adapter in PEFT's format and in ours, or with `init=full` the whole model; on the
        main process.

        `step`: of the weights that are the run's result, which the record then names, with a digest
        of each file.
        """
        settings, main = self.settings, self.processes.main
        with folder_written(folder) if main else nullcontext() as place:
            if not adapters.layers:
                write_model(model, place, self.processes)
            elif place is not None:
                save_raw(adapters, place / FACTORS)
                save_peft(
                    adapters,
                    place,
                    base=self.base.reference,
                    revision=self.base.commit,
                    task_type=models.PEFT_TASK[settings.model.kind],
                    head=self.head,
                )
        if step is None or not main:
            return
        files = sorted(path for path in folder.iterdir() if path.is_file())
        weights = [path for path in files if path.suffix == ".safetensors" and path.name != FACTORS]
        self.record.update(
            adapter={"step": step},
            files={f"{folder.name}/{path.name}": sha256(path) for path in files},
            cost={"adapter_bytes": sum(path.stat().st_size for path in weights)},
        )


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
        asked = initializer.partial.func.request(settings.rank, **initializer.keywords)  # type: ignore[attr-defined]
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


def job_of_scheduler() -> str | None:
    """The Slurm job that this process is a part of, a task of an array as `12_3`."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def tokenise(settings: Settings, base: Base) -> Any:
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


def make_task(settings: Settings, tokenizer: Any, progress: Any = None) -> Any:
    """The task, tokenised; it is told the model's kind and how it is evaluated, where it takes
    that."""
    made = make(settings.task)
    told = {"kind": settings.model.kind} | vars(settings.evaluate)
    taken = inspect.signature(made.func).parameters
    return made(
        tokenizer=tokenizer,
        cache_root=Path(settings.cache_root),
        progress=progress,
        **{key: value for key, value in told.items() if key in taken},
    )


def make(node: Mapping[str, Any]) -> partial[Any]:
    """`functools.partial` of the function behind `_target_` with the keys of its node."""
    return config.Component.of(node, "config").partial


def labels(task: Any) -> dict[str, Any]:
    """What the model's head must know of the task."""
    if task.num_labels is None:
        return {}
    named = dict(enumerate(task.label_names)) if task.label_names else {}
    return {"num_labels": task.num_labels, "problem_type": task.problem} | (
        {"id2label": named} if named else {}
    )
