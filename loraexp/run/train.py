"""The training loop: one page, no callbacks."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from loraexp.adapter.formats import save_raw
from loraexp.config.settings import checkpoint_seconds
from loraexp.machine.device import Runtime, autocast
from loraexp.machine.files import on_disk
from loraexp.machine.measure import Stopwatch, peak_bytes, reset_peak
from loraexp.machine.progress import bar
from loraexp.machine.signals import Agreement, Interrupted
from loraexp.models.unpadded import Unpadded
from loraexp.run.batches import Batches, Step, pass_price, schedule
from loraexp.run.checkpoint import Progress
from loraexp.run.loop import Ahead, Loop, Pace
from loraexp.run.position import begin, save

if TYPE_CHECKING:
    from loraexp.run.task import Task


class Diverged(FloatingPointError):
    """The loss or the gradient is no longer a number."""


def train(run: Loop) -> Generator[Ahead, None, Progress]:
    """Train until the last step, evaluating and checkpointing on the way; leaves the chosen weights
    in the model. Stands before each of its steps until it is asked to go on.

    Whatever is evaluated was saved before, so an evaluation that fails loses nothing. Raises:
    ValueError where steps are to be made and nothing trains; Interrupted, after a checkpoint.
    """
    settings, batches = run.settings.train, batches_of(run)
    state = begin(run, batches.total)
    clock, pace = Stopwatch(run.runtime.device, state.parts), Pace(state)
    every = checkpoint_seconds(settings.checkpoint_every)
    meeting = Agreement(run.phase.stop, run.runtime.processes, every)
    reset_peak(run.runtime.device)
    run.model.train()
    with bar("training", batches.total, state.step) as advance:
        while True:
            stop, due = meeting.look(state.step, always=ends_here(run, state, batches))
            if (stop or due or checkpoint_here(run, state, batches)) and state.saved < state.step:
                pace.tell(state)
                measure(run, state, clock)
                with clock("checkpoint"):
                    save(run, state)
                meeting.checkpointed()
            if stop:
                raise Interrupted(
                    meeting.name or "",
                    f"at step {state.step} of {batches.total}; the same command goes on there",
                )
            if evaluation_here(run, state, batches):
                if state.step == batches.total:
                    run.keep(state.step)
                with run.phase("evaluation"), clock("evaluation"), pace.paused():
                    judge(run, state, batches)
            if state.step >= batches.total or state.stopped_early:
                break
            made = batches.of(state.step)
            yield Ahead(run, state.step, made, clock, pace)
            if made.loss is None and meeting.told:
                continue  # told to stop while it stood here
            loss, norm = step(run, made, state.step, batches.total, clock)
            tokens = int(batches.examples.lengths[made.rows].sum())
            state.count(loss, rows=len(made.rows), tokens=tokens)
            batches.prepare(state.step)
            advance(1)
            if state.step % settings.log_every == 0 or state.step == batches.total:
                pace.tell(state)
                shown = log_step(run, state, batches.per_epoch, norm)
                clock.settle()
                advance(0, loss=shown, rate=f"{state.samples / state.seconds:.0f} samples/s")
            keep_factors(run, state)
    pace.tell(state)
    measure(run, state, clock)
    if settings.select == "best" and state.best is not None:
        run.adapters.load_state(run.checkpoint.best(state.best["step"]))
    run.record.update(best=state.best, cost=cost(state, run.unpadded is not None))
    return state


def batches_of(run: Loop) -> Batches:
    """The steps of a run; refused where there are some and nothing trains."""
    batches = Batches(
        run.task,
        run.settings.train,
        run.settings.seed,
        run.runtime,
        whole=run.unpadded is not None,
        price=pass_price(run.model, run.runtime.device),
    )
    if batches.total and run.optimizer is None:
        raise ValueError(
            f"train.max_steps: {batches.total} steps, and nothing trains; set it to 0, or choose"
            " another init"
        )
    return batches


# --------------------------------------------------------------------------------------------------
# what is due


def evaluation_here(run: Loop, state: Progress, batches: Batches) -> bool:
    """Whether the watched splits are evaluated now, and have not been at this step."""
    every = run.settings.train.eval_every or batches.per_epoch
    here = state.step % every == 0 or state.step == batches.total
    return here and state.step > state.judged and bool(run.watched)


def ends_here(run: Loop, state: Progress, batches: Batches) -> bool:
    """Whether all processes look after each other now, whatever the time: before an evaluation and
    at the end."""
    return state.step == batches.total or evaluation_here(run, state, batches)


def checkpoint_here(run: Loop, state: Progress, batches: Batches) -> bool:
    """Whether a checkpoint is due by the step: before every evaluation, at the end, and where the
    settings say so."""
    every = run.settings.train.checkpoint_every
    by_step = isinstance(every, int) and every > 0 and state.step % every == 0
    return by_step or ends_here(run, state, batches)


def keep_factors(run: Loop, state: Progress) -> None:
    """A copy of the factors of the way, where the settings ask for it."""
    every = run.settings.train.keep_factors_every
    if every and state.step % every == 0 and run.runtime.processes.main:
        path = run.record.folder / "factors" / f"{state.step:07d}.safetensors"
        with on_disk(path):
            save_raw(run.adapters, path)


# --------------------------------------------------------------------------------------------------
# a step


def step(run: Loop, made: Step, number: int, total: int, clock: Stopwatch) -> tuple[Tensor, Tensor]:
    """One step of the optimizer; the mean loss, and the gradient's norm before it is clipped."""
    settings, optimizer = run.settings.train, run.optimizer
    assert optimizer is not None
    factor = schedule(settings.scheduler, number, total, settings.warmup_ratio)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    loss = made.loss
    if loss is None:
        loss = accumulate_gradient(
            run.model,
            run.task,
            made.parts,
            labels=made.labels,
            runtime=run.runtime,
            clock=clock,
            unpadded=run.unpadded,
        )
    with clock("optimizer"):
        norm = run.runtime.processes.clip(
            run.adapters.trainable(), settings.max_grad_norm or math.inf
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def accumulate_gradient(
    model: nn.Module,
    task: Task,
    batches: Sequence[dict[str, Tensor]],
    *,
    labels: int,
    runtime: Runtime,
    clock: Stopwatch,
    unpadded: Unpadded | None = None,
) -> Tensor:
    """Leave in `.grad` the gradient of the mean loss over ALL label tokens of the step; returns
    that mean loss.

    The sum of each micro-batch's losses is divided by `labels`, those of the whole step, over
    processes too, so the result does not depend on how the step was cut. Gradients are averaged
    over processes: hence the factor `world`. Nothing is read from the device.
    """
    device = batches[0]["labels"].device
    loss_sum = torch.zeros((), device=device)
    for batch in batches:
        weight = batch.pop("weight", 1)
        with nullcontext() if unpadded is None else unpadded.of(batch):
            with clock("forward"), autocast(device, runtime.precision):
                loss, _ = task.loss_sum(model, batch)
            with clock("backward"):
                (loss * (weight * runtime.processes.world / labels)).backward()
        loss_sum += loss.detach() * weight
    with clock("backward"):
        runtime.processes.average()
    return loss_sum / labels * runtime.processes.world


def log_step(run: Loop, state: Progress, per_epoch: int, norm: Tensor) -> float:
    """Log the mean loss since the last line; a loss, gradient or step that is not finite ends the
    run. The device is read once."""
    assert run.optimizer is not None
    mean = run.runtime.processes.sum(torch.as_tensor(state.loss / state.steps, device=norm.device))
    trouble = getattr(run.optimizer, "trouble", None)
    told = [mean / run.runtime.processes.world, norm, *([] if trouble is None else [trouble])]
    dtype = torch.promote_types(mean.dtype, norm.dtype)
    loss: float
    loss, grad_norm, *broken = torch.stack([value.to(dtype) for value in told]).tolist()
    run.record.log(
        state.step,
        epoch=state.step / per_epoch,
        loss=loss,
        lr=run.optimizer.param_groups[0]["lr"],
        grad_norm=grad_norm,
        tokens=state.tokens,
        seconds=state.seconds,
    )
    state.loss, state.steps = 0.0, 0
    if any(broken):
        raise Diverged(
            f"step {state.step}: since the last line the preconditioned gradient is not finite, and"
            f" {run.optimizer.broken()} with it: raise optimizer.damping"  # type: ignore[attr-defined]
        )
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise Diverged(
            f"step {state.step}: loss {loss}, gradient norm {grad_norm}: the run diverged; lower"
            " lr, or set train.max_grad_norm"
        )
    return loss


# --------------------------------------------------------------------------------------------------
# evaluation


def judge(run: Loop, state: Progress, batches: Batches) -> None:
    """Evaluate on the watched splits, and keep the weights if they are the best so far on the one
    that selects."""
    task, patience = run.task, run.settings.train.patience
    results = run.metrics(run.watched)
    run.record.log(
        state.step,
        epoch=state.step / batches.per_epoch,
        **{
            f"{split}/{name}": value
            for split, metrics in results.items()
            for name, value in metrics.items()
        },
    )
    state.judged = state.step
    if task.selection is None:
        return
    metrics = results[task.selection]
    value = metrics[task.metric]
    if state.best is None or value > state.best["value"]:
        state.best = {
            "step": state.step,
            "split": task.selection,
            "metric": task.metric,
            "value": value,
            "metrics": metrics,
        }
        state.evaluations_without_better = 0
    else:
        state.evaluations_without_better += 1
        state.stopped_early = patience is not None and state.evaluations_without_better >= patience


def measure(run: Loop, state: Progress, clock: Stopwatch) -> None:
    """What the attempts so far took, to the last mark that the device was given."""
    clock.settle(wait=True)
    state.parts = dict(clock.seconds)
    state.peak = max(state.peak, peak_bytes(run.runtime.device))


def cost(state: Progress, unpadded: bool) -> dict[str, object]:
    """Seconds of the clock and of the processor, tokens and samples a second of the clock, and the
    peak of memory, of all attempts; and whether the passes were without padding."""
    seconds = max(state.seconds, 1e-9)
    return {
        "train_seconds": state.seconds,
        "train_processor_seconds": state.processor_seconds,
        "tokens_per_second": state.tokens / seconds,
        "samples_per_second": state.samples / seconds,
        "loop_seconds": state.parts,
        "train_peak_bytes": state.peak,
        "train_unpadded": unpadded,
    }
