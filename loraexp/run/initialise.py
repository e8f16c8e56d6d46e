"""Initialising: calibration rows → statistics → factors, layer by layer, and the ledger of what was
seen and made."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from loraexp.adapter.adapted import in_pieces
from loraexp.adapter.layer import Factors, Layer, Training, as_initializer
from loraexp.machine.device import Runtime
from loraexp.machine.measure import peak_bytes, reset_peak
from loraexp.machine.processes import Processes, gathered
from loraexp.machine.progress import bar
from loraexp.run.batches import schedule, total_steps
from loraexp.run.ledger import describe
from loraexp.run.start_loss import StartLoss
from loraexp.run.workplace import Workplace
from loraexp.scoring.passes import in_batches
from loraexp.statistics import (
    Calibration,
    Collected,
    Report,
    Store,
    collect,
    fingerprint,
    layer_generator,
    weight,
)
from loraexp.statistics.calibration import Batch
from loraexp.statistics.room import width

if TYPE_CHECKING:
    from loraexp.config.settings import CalibrationSettings, Settings
    from loraexp.run.task import Task

# at most, and not more than the calibration takes: the loss is measured on them before and after
# initialising
PROBE_ROWS = 64


@dataclass
class Made:
    """The factors of every layer, what they cost, and what the ledger says of them."""

    factors: dict[str, Factors]
    cost: dict[str, Any]
    ledger: dict[str, Any]
    probe: StartLoss | Callable[[], float] = field(repr=False)  # () → mean loss on the probe rows

    def finish(self) -> dict[str, Any]:
        """The ledger, with the loss on the same rows now that the factors are in place."""
        probe = self.probe
        after = probe.after(self.factors) if isinstance(probe, StartLoss) else probe()
        self.ledger["loss"]["after"] = after
        shifted = any(f.start == "shifted" for f in self.factors.values())
        before = self.ledger["loss"]["before"]
        if shifted and after > before:
            self.ledger["warnings"].append(
                f"the loss rose from {before:.4f} to {after:.4f} at step 0: a smaller start (larger"
                " init.gamma or init.scale), or init.start=pretrained, keeps the pretrained"
                " function"
            )
        return self.ledger


def calibration_rows(rows: int, settings: CalibrationSettings, seed: int) -> np.ndarray:
    """Indices of the calibration rows: the first of the file, or a draw that depends on the seed
    alone."""
    count = min(settings.samples, rows)
    if settings.rows == "head":
        return np.arange(count)
    return np.random.default_rng([seed, 20]).permutation(rows)[:count]


def objective(task: Task, autocast: Callable[[], AbstractContextManager[None]]) -> Calibration:
    """The task's loss and outputs in the precision of the run; over no rows yet."""

    def precisely(function: Callable[..., Any]) -> Callable[..., Any]:
        def within(model: Any, batch: object) -> object:
            with autocast():
                return function(model, batch)

        return within

    return Calibration(
        batches=(),
        loss_sum=precisely(task.loss_sum),
        outputs=precisely(task.outputs),
        population=len(task.splits["train"]),
        sample_losses=precisely(task.sample_losses) if task.several_labels else None,
    )


def rows_of_a_pass(settings: Settings, processes: Processes) -> int:
    """As many as a process has in one of training: statistics are the same for every split, and
    initialising never needs the activations of more."""
    return -(-settings.micro_batch // processes.world)


def start_loss(model: nn.Module, task: Task, settings: Settings, runtime: Runtime) -> StartLoss:
    """The loss on the first rows of the training set, those of like length together."""
    rows_at_once = rows_of_a_pass(settings, runtime.processes)
    examples = task.splits["train"]
    count = min(PROBE_ROWS, settings.calibration.samples, len(examples))
    rows = np.argsort(examples.lengths[:count], kind="stable")
    batches = [
        task.collate(examples, part) for part in np.array_split(rows, -(-count // rows_at_once))
    ]
    return StartLoss(model, objective(task, runtime.autocast).loss_sum, batches, runtime)


def longest_first(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The rows in an order in which those of a batch have about one length, so that next to nothing
    is padded.

    Statistics are of all rows in any order: only probes and dropout are drawn for a sample's place.
    """
    return rows[np.argsort(-lengths[rows], kind="stable")]


def shares(batches: Sequence[Batch], world: int, equal: bool) -> list[int]:
    """Where each process's run of batches begins, and the end: as many tokens for each, padding
    among them, or as many batches where all have to make their passes together."""
    ends = np.cumsum([1.0 if equal else float(width(batch)) for batch in batches])
    middles = (ends + np.concatenate([[0.0], ends[:-1]])) / 2
    cuts = np.searchsorted(middles, ends[-1] * np.arange(1, world) / world)
    return [0, *cuts.tolist(), len(batches)]


def statistics_of(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    initializer: partial[Factors],
    task: Task,
    settings: Settings,
    runtime: Runtime,
) -> Collected:
    """Start collecting what the initializer needs from this process's share of the calibration
    batches."""
    function = as_initializer(initializer.func)
    own, examples = settings.calibration, task.splits["train"]
    drawn = calibration_rows(len(examples), own, settings.seed)
    rows = longest_first(drawn, np.asarray(examples.lengths))
    processes = runtime.processes
    size = rows_of_a_pass(settings, processes)
    batches = [task.collate(examples, part) for part in in_batches(rows, size)]
    first_of = shares(batches, processes.world, equal=in_pieces(model.parameters()))
    calibration = dataclasses.replace(
        objective(task, runtime.autocast),
        batches=batches[first_of[processes.rank] : first_of[processes.rank + 1]],
        weighting=own.weighting or function.weighting,
        mode=own.mode,
        seed=settings.seed,
    )
    cache = None
    if own.cache:
        depends = f"{fingerprint(model)}-{settings.precision}-{task.name}-{task.version}"
        cache = Store(Path(settings.cache_root) / "statistics", depends)
    return collect(
        model,
        targets,
        calibration,
        function.needs,
        function.request(settings.rank, **initializer.keywords),
        # one plan for all: every process sweeps with the others
        budget=(
            own.memory_budget
            if own.memory_budget != "auto"
            else lambda free: min(gathered(own.budget(free)))
        ),
        rank=settings.rank,
        cache=cache,
    )


def training_of(settings: Settings, rows: int) -> Training:
    """The training that follows; one of no steps counts as that of its epochs, which it stands
    for."""
    chosen = settings.train
    total, per_epoch = total_steps(chosen, rows)
    total = total or max(1, math.ceil(chosen.epochs * per_epoch))
    factor = schedule(chosen.scheduler, 0, total, chosen.warmup_ratio)
    epochs = total / per_epoch
    return Training(
        lr=settings.lr,
        factor=factor,
        warmup_ratio=chosen.warmup_ratio,
        steps=total,
        epochs=epochs,
        rows=rows,
    )


def settled(initializer: partial[Factors], training: Training) -> partial[Factors]:
    """The initializer with the hyper-parameters filled in that follow from the training."""
    function = as_initializer(initializer.func)
    return partial(function, **function.settle(initializer.keywords, training))


def rows_by_class(task: Task, settings: Settings) -> dict[str, int]:
    """How many of the calibration rows have each class, by its name."""
    return task.label_counts(
        "train", calibration_rows(len(task.splits["train"]), settings.calibration, settings.seed)
    )


def initialize(
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    task: Task,
    initializer: partial[Factors],
    *,
    scaling: float,
    settings: Settings,
    runtime: Runtime,
) -> Made:
    """Run the initializer on every target layer, on exactly the statistics that it declares to
    need.

    One layer after another: what a layer's factors were made from is dropped before the next group
    is collected.
    """
    began, worked = time.perf_counter(), time.process_time()
    reset_peak(runtime.device)
    initializer = settled(initializer, training_of(settings, len(task.splits["train"])))
    probe = start_loss(model, task, settings, runtime)
    before = probe.start()
    asks = bool(as_initializer(initializer.func).needs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if asks:
            collected = statistics_of(model, targets, initializer, task, settings, runtime)
        else:
            plain = (
                Layer(name=name, W=weight(module, runtime.device))
                for name, module in targets.items()
            )
            collected = Collected(plain, Report(way="weights only"))
        factors, lines = every_layer(collected, len(targets), initializer, scaling, settings)
    cost = {
        "init_seconds": time.perf_counter() - began,
        "init_processor_seconds": time.process_time() - worked,
        "init_peak_bytes": peak_bytes(runtime.device),
        "init_forward_sweeps": collected.report.forward_sweeps,
    }
    ledger = {
        "initializer": settings.init["name"],
        "hyper_parameters": initializer.keywords,
        "cost": cost,
        "statistics": dataclasses.asdict(collected.report),
        "rows": rows_by_class(task, settings) if asks else {},
        "loss": {"before": before},
        "warnings": said(caught),
        "layers": lines,
    }
    return Made(factors, cost, ledger, probe)


def every_layer(
    collected: Collected,
    count: int,
    initializer: partial[Factors],
    scaling: float,
    settings: Settings,
) -> tuple[dict[str, Factors], dict[str, Any]]:
    """The factors of each layer, and its line in the ledger."""
    factors, lines = {}, {}
    workplace: Workplace | None = None
    with bar("initialising", count) as advance:
        for layer in collected.layers:
            # how sums were made is known by then
            workplace = workplace or Workplace(
                initializer, settings.rank, settings.precision, collected.report.host
            )
            generator = layer_generator(settings.seed, layer.name)
            with workplace.of(layer) as (own, why):
                made = initializer(own, rank=settings.rank, scaling=scaling, generator=generator)
                made = checked(own, made, settings)
                line = describe(own, made, scaling, settings)
            if why is not None:
                made = made.copied(layer.W.device)
                line["notes"] = [*line.get("notes", []), why]
            factors[layer.name], lines[layer.name] = made, line
            del own
            advance()
    return factors, lines


def said(caught: list[warnings.WarningMessage]) -> list[str]:
    """What initializer and statistics warn of, each once."""
    return list(
        dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))
    )


def checked(layer: Layer, made: object, settings: Settings) -> Factors:
    """What the initializer returned, refused where it is not a pair of factors of the layer's
    shape."""
    name = settings.init["name"]
    if not isinstance(made, Factors):
        raise TypeError(
            f"init={name}: returned {type(made).__name__} for layer {layer.name}; expected Factors"
        )
    if made.A.shape[1] != layer.d_in or made.B.shape[0] != layer.d_out:
        shapes = f"A {tuple(made.A.shape)}, B {tuple(made.B.shape)}"
        raise ValueError(
            f"init={name}: {shapes} for layer {layer.name} of shape ({layer.d_out}, {layer.d_in})"
        )
    return made
