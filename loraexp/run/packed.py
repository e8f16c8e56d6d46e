"""Several runs in one step: those that read the same rows in the same order on the same frozen base
go through it together, the rows of each a block of one batch.

Everything else stays each run's own: factors, head, loss, rule, schedule, clipping, evaluation,
checkpoint, record and lock. The runs go on in turn in one process, from step to step; those that
are behind (one went on from an older checkpoint) catch up first. A run that ends or fails leaves
the others to themselves. With the masks of dropout drawn from each run's own generator a run is,
to rounding, what it would be alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loraexp import config
from loraexp.adapter.draws import Draws
from loraexp.adapter.stacked import StackedModel
from loraexp.config.settings import Settings
from loraexp.machine import progress, repository
from loraexp.machine.device import autocast, choose_device, deterministic, unread_masks
from loraexp.machine.measure import ran_out
from loraexp.machine.progress import bar
from loraexp.machine.signals import Interrupted, Stop, watched
from loraexp.machine.words import reason_of
from loraexp.run.checkpoint import restore, states
from loraexp.run.experiment import story
from loraexp.run.loop import Ahead
from loraexp.run.observer import Outcome

# --------------------------------------------------------------------------------------------------
# the runs in turn


@dataclass(eq=False)
class Member:
    """One of several runs: its story, the step that it stands before, and what it has of the
    process while it is at work."""

    settings: Settings
    plain: dict[str, Any]
    stop: Stop
    ahead: Ahead | None = None
    pause: Any = None  # of its clocks, while it stands
    share: tuple[float, float] = (0.0, 0.0)  # of a shared pass, seconds by clock and processor
    outcome: Outcome | BaseException | None = None
    together: int = 1  # the most runs that shared a pass with it, itself among them
    generators: dict[str, Any] = field(default_factory=dict)
    log: Any = None
    story: Any = None

    def go_on(self) -> None:
        """To its next step, or to its end."""
        if self.story is None:
            self.story = story(self.settings, self.plain, stop=self.stop)
        self._do(lambda: next(self.story))

    def end(self, error: BaseException) -> None:
        """End it where it stands."""
        if self.outcome is None and self.story is not None:
            self._do(lambda: self.story.throw(error))
        self.outcome = self.outcome or error

    def _do(self, proceed: Any) -> None:
        try:
            with self.at_work():
                self.ahead = proceed()
        except StopIteration as done:
            self.ahead, self.outcome = None, done.value
        except BaseException as error:  # noqa: BLE001 - whatever ends one run is no matter of the others
            self.ahead, self.outcome = None, error.with_traceback(None)  # which holds its model

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within: the process's generators, its log and the clock are this run's."""
        if self.ahead is not None:
            self.pause.__exit__(None, None, None)
            self.ahead.pace.began -= self.share[0]
            self.ahead.pace.worked -= self.share[1]
        if self.generators:
            restore(self.generators)
        before = progress.into(self.log)
        try:
            yield
        finally:
            self.log = progress.into(before)
            self.generators = states()
            self.share = (0.0, 0.0)
            if self.ahead is not None:
                self.pause = self.ahead.pace.paused()
                self.pause.__enter__()


def run(cells: Sequence[tuple[Settings, dict[str, Any]]]) -> list[Outcome | BaseException]:
    """Runs of one base, its rows and their order, trained together; of each its outcome, or what
    ended it."""
    settings = cells[0][0]
    try:
        device = choose_device(settings.device)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    with ExitStack() as around:
        # what a run sets for the process while it goes on holds for all until the last has ended
        around.enter_context(deterministic(settings.train.deterministic))
        around.enter_context(unread_masks(device))
        around.enter_context(repository.pins(Path(settings.output_root)))
        stop = around.enter_context(watched())
        members = [Member(settings, plain, stop) for settings, plain in cells]
        advance = around.enter_context(bar("runs together", len(members)))
        try:
            in_turn(members, stop, advance)
        except BaseException as error:
            for member in members:
                member.end(error)
            raise
    outcomes = [member.outcome for member in members if member.outcome is not None]
    if stop.name is not None and not any(isinstance(o, Interrupted) for o in outcomes):
        raise Interrupted(stop.name, "after the runs had finished")
    return outcomes


def in_turn(members: Sequence[Member], stop: Stop, advance: Any) -> None:
    """Every run to its end, step by step."""
    passes = Passes()
    for member in members:
        if stop.name is not None:
            member.outcome = Interrupted(stop.name, "before it had begun")
        else:
            member.go_on()
    while waiting := [member for member in members if member.outcome is None]:
        # told to stop, they end where they stand: nobody makes a step by itself that it would share
        for member in passes.next(waiting) if stop.name is None else waiting:
            member.go_on()
            if member.outcome is not None:
                advance(1)


# --------------------------------------------------------------------------------------------------
# a pass


class Passes:
    """The passes that several runs share, in as many at a time as fit the memory."""

    def __init__(self) -> None:
        self.most: int | None = None  # None: as many as there are
        self.models: dict[tuple[Member, ...], StackedModel] = {}

    def next(self, waiting: Sequence[Member]) -> list[Member]:
        """The runs that go on now: those that are furthest behind and before the same rows, their
        gradients in place where they are several."""
        behind = min(ahead_of(member).number for member in waiting)
        first, *others = (member for member in waiting if ahead_of(member).number == behind)
        rows = ahead_of(first).step.rows
        alike = (o for o in others if np.array_equal(ahead_of(o).step.rows, rows))
        group = [first, *alike][: self.most]
        while len(group) > 1:
            try:
                self.share(group)
                break
            except Exception as error:  # noqa: BLE001 - alone, each run says by itself what is wrong with it
                clear(group)
                self.most = len(group) // 2 if ran_out(error) else 1
                said = f"{len(group)} runs do not fit one pass ({reason_of(error)}); going on with"
                self.say(group, f"{said} {self.most} at a time")
                group = group[: self.most]
        return group

    def share(self, group: list[Member]) -> None:
        """Leave in `.grad` of every run the gradient of its step, and in the step its loss."""
        stacked = self.model(group)
        draws = stacked.draws
        runs = [ahead_of(member) for member in group]
        step, device = runs[0].step, runs[0].run.runtime.device
        key = "cuda" if device.type == "cuda" else "torch"
        draws.states[:] = [member.generators[key] for member in group]
        sums = torch.zeros(len(runs), device=device)
        seconds, worked = {"forward": 0.0, "backward": 0.0}, time.process_time()
        for part in step.parts:
            began = time.perf_counter()
            stacked.begin()
            with autocast(device, runs[0].run.settings.precision):
                losses = torch.stack(
                    [
                        ahead.run.task.loss_sum(view, part)[0]  # type: ignore[arg-type]
                        for ahead, view in zip(runs, stacked.views, strict=True)
                    ]
                )
            middle = time.perf_counter()
            (losses.sum() / step.labels).backward()
            sums += losses.detach()
            seconds["forward"] += middle - began
            seconds["backward"] += time.perf_counter() - middle
        stacked.begin()
        whole = sum(seconds.values()), time.process_time() - worked
        for i, (member, ahead) in enumerate(zip(group, runs, strict=True)):
            ahead.step.loss = sums[i] / step.labels
            member.generators[key] = draws.states[i]
            for name, spent in seconds.items():
                ahead.clock.add(name, spent / len(runs))
            member.share = whole[0] / len(runs), whole[1] / len(runs)
            if len(group) > member.together:
                member.together = len(group)
                note(ahead, len(group))

    def model(self, group: Sequence[Member]) -> StackedModel:
        """The model of a group, made anew where it is another one."""
        runs = tuple(group)
        if runs not in self.models:
            ended = [known for known in self.models if any(m.ahead is None for m in known)]
            for known in ended:
                del self.models[known]
            device = ahead_of(group[0]).run.runtime.device
            generator = torch.default_generator
            if device.type == "cuda":
                generator = torch.cuda.default_generators[torch.cuda.current_device()]
            adapters = [ahead_of(member).run.adapters for member in group]
            self.models[runs] = StackedModel(adapters, Draws(generator, []))
            number = ahead_of(group[0]).number
            self.say(group, f"{len(group)} runs share their passes from step {number} on")
        return self.models[runs]

    def say(self, group: Sequence[Member], line: str) -> None:
        """Into the log of each."""
        for member in group:
            before = progress.into(member.log)
            progress.log(line)
            progress.into(before)


def clear(group: Sequence[Member]) -> None:
    """As before the pass: no gradient, no loss."""
    for member in group:
        ahead = ahead_of(member)
        ahead.step.loss = None
        for parameter in ahead.run.adapters.trainable():
            parameter.grad = None


def ahead_of(member: Member) -> Ahead:
    assert member.ahead is not None
    return member.ahead


def note(ahead: Ahead, count: int) -> None:
    """Into the record: how many runs shared a pass, the most of all attempts, and where this one
    went on from an earlier one, the most of this."""
    record = ahead.run.record
    own = record.content.get("resumed") or []
    if len(own) > len(record.before.get("resumed") or []):
        own[-1]["packed"] = count
    record.update(packed=max(count, record.content.get("packed") or 1))
