"""One run, from configuration to record: the whole story on one page."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from loraexp import config
from loraexp.adapter.adapted import Adapters, attach, save_peft, save_raw, scaling_factor, train_everything
from loraexp.config.settings import Settings
from loraexp.machine.processes import Processes
from loraexp.machine.progress import tally
from loraexp.models import load
from loraexp.records import record as records
from loraexp.records.record import Record
from loraexp.run import kept
from loraexp.run.checkpoint import Checkpoint
from loraexp.run.evaluate import evaluate
from loraexp.run.initialise import initialize, settled, training_of
from loraexp.run.train import train


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its folder, its record, and whether it was there already."""

    folder: Path
    record: dict[str, Any]
    already: bool = False


class Observer:
    """What is told of a run while it goes on; this one keeps it to itself, for runs that are reported together."""

    def begun(self, settings: Settings, folder: Path) -> None: ...

    def initialised(self, ledger: dict[str, Any]) -> None: ...


SILENT = Observer()


def run(settings: Settings, plain: dict[str, Any], observer: Observer = SILENT) -> Outcome:
    """Train, evaluate and record one run; a finished one is not run again, an interrupted one goes on."""
    folder = config.run_folder(plain)
    found = records.read(folder)
    if found is not None and found["status"] == "finished" and not settings.force:
        return Outcome(folder, found, already=True)
    check_model(settings)
    observer.begun(settings, folder)
    try:
        return Outcome(folder, recorded(settings, plain, folder, observer))
    except records.Finished as elsewhere:
        return Outcome(folder, elsewhere.record, already=True)


def recorded(settings: Settings, plain: dict[str, Any], folder: Path, observer: Observer) -> dict[str, Any]:
    """The run itself; returns its record, which is left behind also when it fails."""
    processes = Processes(settings.device)
    checkpoint = Checkpoint(folder / "checkpoint")
    with Record(folder, config.run_id(plain), plain, settings.wandb, main=processes.main) as record:
        if settings.force and processes.main:
            checkpoint.remove()
        processes.wait()
        seed_everything(settings.seed, processes.rank)
        device = load.choose_device(settings.device)
        task = kept.task(settings, lambda: tokenise(settings))
        record.update(data=task.describe(), labels=labels(task))

        full = "W" in getattr(config.target(settings.init, "init"), "trains", ())
        dtype = torch.bfloat16 if settings.precision == "bf16" and not full else torch.float32
        model = kept.model(settings, dtype=dtype, device=device, labels=labels(task), own=full or processes.world > 1)
        head = load.new_modules(model, settings.model.kind)
        adapters = start(model, task, head, full, settings, record, checkpoint, device, processes, observer)
        record.update(parameters=adapters.count())

        wrapped = processes.prepare(model, adapters)
        optimizer = None  # an initializer that trains nothing, on a model without a new head, is evaluated as it is
        if adapters.trainable():
            optimizer = make(settings.optimizer)(adapters, lr=settings.lr, weight_decay=settings.train.weight_decay)
        common: dict[str, Any] = {"device": device, "precision": settings.precision, "processes": processes}
        state = train(wrapped, task, adapters, optimizer, settings.train, record, checkpoint, seed=settings.seed, **common)

        began = time.perf_counter()
        metrics = evaluate(wrapped, task, task.reports, batch_size=settings.train.eval_batch_size, folder=folder, **common)
        if state.best is not None and settings.train.select == "best":
            metrics = {state.best["split"]: state.best["metrics"]} | metrics
        save(adapters, model, folder / "adapter", settings, head, record, processes)
        record.update(metrics=metrics, cost={"eval_seconds": time.perf_counter() - began})
        result = record.finish()
        if processes.main and not settings.train.keep_checkpoint:
            checkpoint.remove()
    return result


def check_model(settings: Settings) -> None:
    """The targets are in the model, the rank fits them, and the initializer's hyper-parameters the training: seen on
    the model's skeleton, before any weight is loaded."""
    try:
        skeleton = load.skeleton(settings.model)
    except load.SourceError:
        return  # the run itself fails on it, and leaves a record that says so
    except (ValueError, TypeError, KeyError) as error:
        raise config.ConfigError(f"model={settings.model.name}: {error}") from error
    try:
        head = load.new_modules(skeleton, settings.model.kind)
        targets = load.target_layers(skeleton, settings.model.targets, head)
        load.check_rank(targets, settings.rank)
        load.choose_device(settings.device)
        settled(make(settings.init), training_of(settings, rows=1))
    except ValueError as error:
        raise config.ConfigError(str(error)) from error


def tokenise(settings: Settings) -> Any:
    """The task in the tokens of the model's tokenizer, which makes none that the model does not have."""
    tokenizer = load.load_tokenizer(settings.model)
    load.check_vocabulary(settings.model, tokenizer)
    with tally("tokenising") as progress:
        return make_task(settings, tokenizer, progress)


def make_task(settings: Settings, tokenizer: Any, progress: Any = None) -> Any:
    """The task, tokenised; it is told the model's kind and how it is evaluated, where it takes that."""
    made = make(settings.task)
    told = {"kind": settings.model.kind} | vars(settings.evaluate)
    taken = inspect.signature(made.func).parameters
    return made(
        tokenizer=tokenizer,
        cache_root=Path(settings.cache_root),
        progress=progress,
        **{key: value for key, value in told.items() if key in taken},
    )


def make(node: Mapping[str, Any]) -> partial:
    """`functools.partial` of the function behind `_target_` with the keys of its node."""
    function = config.target(dict(node), "config")
    hidden = {"_target_", "_partial_"} | ({"name"} - inspect.signature(function).parameters.keys())
    return partial(function, **{k: v for k, v in node.items() if k not in hidden})


def seed_everything(seed: int, rank: int) -> None:
    """Seed every global generator; processes differ in dropout, not in data order or initial factors."""
    torch.manual_seed(seed + 1_000_003 * rank)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def labels(task: Any) -> dict[str, Any]:
    """What the model's head must know of the task."""
    if getattr(task, "num_labels", None) is None:
        return {}
    named = dict(enumerate(task.label_names)) if task.label_names else {}
    return {"num_labels": task.num_labels, "problem_type": task.problem} | ({"id2label": named} if named else {})


def start(
    model: nn.Module,
    task: Any,
    head: list[str],
    full: bool,
    settings: Settings,
    record: Record,
    checkpoint: Checkpoint,
    device: torch.device,
    processes: Processes,
    observer: Observer,
) -> Adapters:
    """Where training starts: the initializer's factors in their layers, or those of the interrupted run."""
    if full:
        return train_everything(model)
    scaling = scaling_factor(settings.adapter.scaling, settings.alpha, settings.rank)
    stored = checkpoint.load_factors()
    processes.wait()  # nobody writes factors before everybody has looked whether there were any
    if stored is not None:
        factors, said = stored
        record.update(cost=said["cost"])
        return attach(model, factors, scaling, head)
    targets = load.target_layers(model, settings.model.targets, head)
    made = initialize(model, targets, task, make(settings.init), scaling=scaling, settings=settings, device=device, processes=processes)
    adapters = attach(model, made.factors, scaling, head)
    ledger = made.finish()
    record.update(cost=made.cost)
    if processes.main:
        observer.initialised(ledger)
        save(adapters, model, record.folder / "init", settings, head, None, processes)
        records.write_json(record.folder / "init" / "ledger.json", ledger)
        checkpoint.save_factors(made.factors, {"cost": made.cost})
    processes.wait()
    return adapters


def save(
    adapters: Adapters, model: nn.Module, folder: Path, settings: Settings, head: list[str], record: Record | None, processes: Processes
) -> None:
    """The adapter in PEFT's format, or with `init=full` the whole model; on the main process."""
    if not processes.main:
        return
    if adapters.layers:
        folder.mkdir(parents=True, exist_ok=True)
        save_raw(adapters, folder / "factors.safetensors")
        size = save_peft(
            adapters,
            folder,
            base=str(load.locate(settings.model)) if settings.model.path else settings.model.name,
            revision=settings.model.revision,
            task_type=load.PEFT_TASK[settings.model.kind],
            head=head,
        )
    else:
        model.save_pretrained(folder)  # type: ignore[operator]
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if record is not None:
        record.update(cost={"adapter_bytes": size})
