"""The training loop: one page, no callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import Adapters, save_raw
from loraexp.machine.measure import peak_bytes, reset_peak
from loraexp.machine.processes import Processes
from loraexp.machine.progress import bar
from loraexp.records.record import Record, Stopwatch
from loraexp.run.checkpoint import Checkpoint, generators, restore_generators
from loraexp.run.evaluate import autocast, evaluate, to_device

if TYPE_CHECKING:
    from loraexp.config.settings import TrainSettings
    from loraexp.run.task import Task

BLOCK = 50  # batches: examples are sorted by length within a shuffled block of this many batches


def schedule(kind: str, step: int, total: int, warmup_ratio: float) -> float:
    """Factor on the learning rate at step 0 ≤ step < total: linear warm-up, then linear, cosine or constant."""
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def epoch_batches(lengths: np.ndarray, size: int, *, seed: int, epoch: int, length_buckets: bool) -> list[np.ndarray]:
    """The rows of each batch of an epoch: a function of the seed and the epoch alone, whatever ran before.

    Plainly shuffled, or with `length_buckets` shuffled, sorted by length within blocks of 50 batches, and the batches
    shuffled again: padding falls to a few percent, and which examples meet in a batch depends on their length.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if not length_buckets:
        return [order[i : i + size] for i in range(0, len(order), size)]
    batches = []
    for start in range(0, len(order), size * BLOCK):
        block = order[start : start + size * BLOCK]
        block = block[np.argsort(lengths[block], kind="stable")]
        batches += [block[i : i + size] for i in range(0, len(block), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def micro_batches(rows: np.ndarray, lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """The rows of one step, sorted by length and cut into parts: each is padded only to its own longest."""
    if parts == 1:
        return [rows]
    return [part for part in np.array_split(rows[np.argsort(lengths[rows], kind="stable")], parts) if len(part)]


def count_labels(batch: dict[str, Tensor]) -> int:
    """Label tokens of a batch: those that enter the loss."""
    labels = batch["labels"]
    return labels.numel() if labels.is_floating_point() else int((labels != -100).sum())


def accumulate_gradient(
    model: nn.Module, task: Task, batches: Sequence[dict[str, Tensor]], *, precision: str, processes: Processes, clock: Stopwatch
) -> Tensor:
    """Leave in `.grad` the gradient of the mean loss over ALL label tokens of the step; returns that mean loss.

    The sum of each micro-batch's losses is divided by the step's total, over processes too, so the result does not
    depend on how the step was cut. Gradients are averaged over processes: hence the factor `world`.
    """
    device = batches[0]["labels"].device
    total = processes.sum(sum(int(batch.get("weight", 1)) * count_labels(batch) for batch in batches), device)
    loss_sum = torch.zeros((), device=device)
    for i, batch in enumerate(batches):
        weight = batch.pop("weight", 1)
        with processes.no_sync(model) if i + 1 < len(batches) else nullcontext():
            with clock("forward"), autocast(device, precision):
                loss, _ = task.loss_sum(model, batch)
            with clock("backward"):
                (loss * (weight * processes.world / total)).backward()
        loss_sum += loss.detach() * weight
    with clock("backward"):
        processes.average()
    return loss_sum / total * processes.world


@dataclass
class Progress:
    """Where training is: all of it goes into a checkpoint."""

    step: int = 0
    tokens: int = 0
    samples: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    best_state: dict[str, Tensor] | None = None
    evaluations_without_better: int = 0
    stopped_early: bool = False
    since_log: dict[str, Any] = field(default_factory=lambda: {"loss": 0.0, "steps": 0})


class Diverged(FloatingPointError):
    """The loss or the gradient is no longer a number."""


def total_steps(settings: TrainSettings, rows: int) -> tuple[int, int]:
    """(steps in all, steps in one epoch)."""
    per_epoch = math.ceil(math.ceil(rows / settings.batch_size) / settings.gradient_accumulation)
    total = settings.max_steps if settings.max_steps is not None else math.ceil(settings.epochs * per_epoch)
    return total, per_epoch


def train(
    model: nn.Module,
    task: Task,
    adapters: Adapters,
    optimizer: torch.optim.Optimizer | None,
    settings: TrainSettings,
    record: Record,
    checkpoint: Checkpoint,
    *,
    seed: int,
    device: torch.device,
    precision: str,
    processes: Processes,
) -> Progress:
    """Train until the last step, evaluating and checkpointing on the way; leaves the chosen weights in the model.

    Raises: ValueError where steps are to be made and there is no optimizer, because nothing trains.
    """
    examples = task.splits["train"]
    total, per_epoch = total_steps(settings, len(examples))
    if total and optimizer is None:
        raise ValueError(f"train.max_steps: {total} steps, and nothing trains; set it to 0, or choose another init")
    eval_every = settings.eval_every or per_epoch
    reported = task.reports if settings.report_during else ()
    watched = [split for split in dict.fromkeys((task.selection, *reported)) if split is not None]
    parameters = adapters.trainable()
    state = resume(checkpoint, adapters, optimizer, processes) or Progress()
    record.start_metrics(keep_to_step=state.step if state.step else None)
    how = {"batch_size": settings.eval_batch_size, "device": device, "precision": precision, "processes": processes}
    clock = Stopwatch()
    reset_peak(device)
    model.train()
    epoch, batches = -1, []
    before = time.perf_counter() - state.seconds
    with bar("training", total, state.step) as advance:
        while state.step < total and not state.stopped_early:
            if epoch != state.step // per_epoch:
                epoch = state.step // per_epoch
                batches = epoch_batches(
                    examples.lengths, settings.batch_size, seed=seed, epoch=epoch, length_buckets=settings.length_buckets
                )
            rows, micro = step_batches(task, batches, state.step % per_epoch, settings, device, processes)
            factor = schedule(settings.scheduler, state.step, total, settings.warmup_ratio)
            assert optimizer is not None
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            loss = accumulate_gradient(model, task, micro, precision=precision, processes=processes, clock=clock)
            with clock("optimizer"):
                grad_norm = processes.clip(parameters, settings.max_grad_norm or math.inf)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            state.step += 1
            state.samples += len(rows)
            state.tokens += int(examples.lengths[rows].sum())
            state.since_log["loss"] = state.since_log["loss"] + loss.detach()
            state.since_log["steps"] += 1
            if state.step % settings.log_every == 0 or state.step == total:
                state.seconds = time.perf_counter() - before
                shown = log_step(record, state, per_epoch, optimizer, grad_norm, processes)
                advance(0, loss=shown, rate=f"{state.samples / state.seconds:.0f} samples/s")
            advance(1)

            evaluate_now = state.step % eval_every == 0 or state.step == total
            if evaluate_now and watched:
                with clock("evaluation"):
                    before += judge(model, task, adapters, settings, record, state, per_epoch, watched, how)
            if settings.keep_factors_every and state.step % settings.keep_factors_every == 0 and processes.main:
                save_raw(adapters, record.folder / "factors" / f"{state.step:07d}.safetensors")
            every = settings.checkpoint_every
            if (state.step % every == 0) if every else evaluate_now:
                state.seconds = time.perf_counter() - before
                with clock("checkpoint"):
                    save(checkpoint, adapters, optimizer, state, processes)
    state.seconds = time.perf_counter() - before
    if settings.select == "best" and state.best_state is not None:
        adapters.load_state(state.best_state)
    record.update(best=state.best, cost=cost(state, clock) | {"train_peak_bytes": peak_bytes(device)})
    return state


def step_batches(
    task: Task, batches: list[np.ndarray], step: int, settings: TrainSettings, device: torch.device, processes: Processes
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The rows of a step of the epoch, and this process's share of them as micro-batches on the device."""
    examples = task.splits["train"]
    first = step * settings.gradient_accumulation
    rows = np.concatenate(batches[first : first + settings.gradient_accumulation])
    parts = micro_batches(rows, examples.lengths, settings.gradient_accumulation * settings.micro_batches)
    return rows, [to_device(collate_share(task, examples, part, processes), device) for part in parts]


def collate_share(task: Task, examples: Any, rows: np.ndarray, processes: Processes) -> dict[str, Any]:
    """This process's share of a micro-batch; one without rows runs the first with weight 0, so that all keep in step."""
    share = rows[processes.rank :: processes.world]
    if len(share):
        return task.collate(examples, share)
    return task.collate(examples, rows[:1]) | {"weight": 0}


def log_step(record: Record, state: Progress, per_epoch: int, optimizer: Any, grad_norm: Tensor, processes: Processes) -> float:
    """Log the mean loss since the last line; a loss or gradient that is not finite ends the run."""
    mean = state.since_log["loss"] / state.since_log["steps"]
    loss = processes.sum(float(mean), mean.device if isinstance(mean, Tensor) else torch.device("cpu")) / processes.world
    norm = float(grad_norm)
    record.log(
        state.step,
        epoch=state.step / per_epoch,
        loss=loss,
        lr=optimizer.param_groups[0]["lr"],
        grad_norm=norm,
        tokens=state.tokens,
        seconds=state.seconds,
    )
    state.since_log = {"loss": 0.0, "steps": 0}
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise Diverged(f"step {state.step}: loss {loss}, gradient norm {norm}: the run diverged; lower lr, or set train.max_grad_norm")
    return loss


def judge(
    model: nn.Module,
    task: Task,
    adapters: Adapters,
    settings: TrainSettings,
    record: Record,
    state: Progress,
    per_epoch: int,
    watched: Sequence[str],
    how: dict[str, Any],
) -> float:
    """Evaluate on the watched splits, keep the weights if they are the best so far on the one that selects; returns the seconds."""
    began = time.perf_counter()
    found = evaluate(model, task, watched, **how)
    record.log(
        state.step,
        epoch=state.step / per_epoch,
        **{f"{split}/{name}": value for split, metrics in found.items() for name, value in metrics.items()},
    )
    if task.selection is None:
        return time.perf_counter() - began
    metrics = found[task.selection]
    value = metrics[task.metric]
    if state.best is None or value > state.best["value"]:
        state.best = {"step": state.step, "split": task.selection, "metric": task.metric, "value": value, "metrics": metrics}
        state.best_state = adapters.state()
        state.evaluations_without_better = 0
    else:
        state.evaluations_without_better += 1
        state.stopped_early = settings.patience is not None and state.evaluations_without_better >= settings.patience
    return time.perf_counter() - began


def save(checkpoint: Checkpoint, adapters: Adapters, optimizer: Any, state: Progress, processes: Processes) -> None:
    """Write everything that the next step depends on, of all processes; the main one writes."""
    random_states = processes.gather(generators())
    weights = adapters.state()
    if processes.main:
        checkpoint.save(
            {
                "weights": weights,
                "optimizer": optimizer.state_dict(),
                "progress": vars(state),
                "generators": random_states,
            }
        )
    processes.wait()


def resume(checkpoint: Checkpoint, adapters: Adapters, optimizer: Any, processes: Processes) -> Progress | None:
    """The state of an interrupted run put back into weights, optimizer and generators; None where there is none."""
    stored = checkpoint.load()
    if stored is None:
        return None
    if len(stored["generators"]) != processes.world:
        raise ValueError(
            f"the checkpoint is of {len(stored['generators'])} processes, this run has {processes.world}: start as many, or use force=true"
        )
    adapters.load_state(stored["weights"])
    optimizer.load_state_dict(stored["optimizer"])
    restore_generators(stored["generators"][processes.rank])
    return Progress(**stored["progress"])


def cost(state: Progress, clock: Stopwatch) -> dict[str, Any]:
    seconds = max(state.seconds, 1e-9)
    return {
        "train_seconds": state.seconds,
        "tokens_per_second": state.tokens / seconds,
        "samples_per_second": state.samples / seconds,
        "loop_seconds": clock.seconds,
    }
