"""Being told to stop: by a scheduler, a closed terminal or Ctrl-C; what runs ends at a place from
which it can go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraexp.machine.processes import Processes

# SIGUSR1 is what Slurm is asked to send before the time limit (--signal=B:USR1@60).
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# seconds: a second Ctrl-C later than this ends at once; sooner, a launcher has sent it on as well
TWICE = 1.0
AGREE_EVERY = 5.0  # seconds between two looks at what the other processes were told


class Interrupted(KeyboardInterrupt):
    """Told to stop. `status`: what the command exits with; `where`: how far it was, for the line
    that says so."""

    def __init__(self, name: str, where: str = "") -> None:
        super().__init__(name, where)
        self.name, self.where = name, where

    @property
    def status(self) -> int:
        return 130 if self.name == "SIGINT" else 143

    def __str__(self) -> str:
        return f"interrupted by {self.name}{f' {self.where}' if self.where else ''}"


class Stop:
    """Whether this process was told to stop: it is noted, and within `patiently(False)` it raises
    Interrupted."""

    def __init__(self, pass_on: Callable[[int], None] | None = None) -> None:
        self.name: str | None = None
        self.since = 0.0
        self.patient = True
        self.pass_on = pass_on

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.pass_on is not None:
            self.pass_on(number)
        name, now = signal.Signals(number).name, time.monotonic()
        again = self.name is not None and name == "SIGINT" and now - self.since > TWICE
        if self.name is None:
            self.name, self.since = name, now
        if not self.patient or again:
            raise Interrupted(self.name)

    @contextmanager
    def patiently(self, patient: bool = True) -> Iterator[None]:
        """Within: being told to stop is only noted (or with `False` raises, also what was noted
        before)."""
        before, self.patient = self.patient, patient
        try:
            if not patient and self.name is not None:
                raise Interrupted(self.name)
            yield
        finally:
            self.patient = before


@contextmanager
def watched(pass_on: Callable[[int], None] | None = None) -> Iterator[Stop]:
    """Within: the signals that ask a process to end reach the `Stop` that this gives; afterwards
    they do what they did.

    `pass_on` is called with the number of each. A signal that the process ignores (nohup) stays
    ignored, and outside of the main thread, where no handler can be set, nothing is watched.
    """
    stop = Stop(pass_on)
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = number_of(name)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is within, the signals that ask a process to end do afterwards what they did."""
    before = {number: signal.getsignal(number) for name in NAMES if (number := number_of(name))}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def number_of(name: str) -> int | None:
    """Of a signal, where the system has it."""
    return getattr(signal, name, None)


def to_children(number: int) -> None:
    """Pass a signal on to the processes that this one has started, such as the workers of a
    launcher."""
    for place in Path("/proc/self/task").glob("*/children"):
        try:
            children = place.read_text().split()
        except OSError:
            continue
        for child in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(child), number)


class Agreement:
    """What every process of a run answers alike at the same step: whether to stop, and whether a
    checkpoint is due.

    One process asks nobody. Several exchange two numbers every few seconds, at steps that all of
    them reckon alike.
    """

    def __init__(self, stop: Stop, processes: Processes, checkpoint_seconds: float | None) -> None:
        self.stop, self.processes = stop, processes
        self.every = checkpoint_seconds
        self.saved = self.asked = time.monotonic()
        self.asked_at, self.next = 0, 0
        self.name: str | None = None

    @property
    def told(self) -> bool:
        """Whether one process, which asks nobody, was told to stop since it last looked."""
        return self.processes.world == 1 and self.stop.name is not None

    def checkpointed(self) -> None:
        self.saved = time.monotonic()

    def look(self, step: int, *, always: bool = False) -> tuple[bool, bool]:
        """(stop now, a checkpoint is due) after a step; with `always`, whenever the processes last
        met."""
        due = step > 0 and self.every is not None and time.monotonic() - self.saved >= self.every
        if self.processes.world == 1:
            self.name = self.stop.name
            return self.name is not None, due
        if step < self.next and not always:
            return False, False
        now = time.monotonic()
        pace = (now - self.asked) / max(1, step - self.asked_at) if self.asked_at else AGREE_EVERY
        told = self.processes.gather((self.stop.name, due, pace))
        self.asked, self.asked_at = now, step
        self.next = step + max(
            1, int(AGREE_EVERY / max(1e-6, max(seconds for _, _, seconds in told)))
        )
        self.name = next((name for name, _, _ in told if name), None)
        return self.name is not None, any(wants for _, wants, _ in told)
