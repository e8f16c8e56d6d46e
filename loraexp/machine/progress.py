"""One progress bar for everything that takes long; where standard error is no terminal, a line
every half minute."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from loraexp.machine.words import spoken

Advance = Callable[..., None]  # advance(steps=1, **columns)
Progress = Callable[[int, int], None]  # progress(done, total)


enabled = True  # false in the worker processes of a launcher, which share one terminal
verbose = False  # true with -v: what the log of a run holds is also said on standard error
every = 30.0  # seconds between two lines where there is no bar
_log: IO[str] | None = None  # run.log of the run that goes on
_display: Any = None  # of the outermost bar: bars within it are lines of the same display


@contextmanager
def unseen() -> Iterator[None]:
    """Within: no bar and no line of one on this terminal."""
    global enabled
    before, enabled = enabled, False
    try:
        yield
    finally:
        enabled = before


def whole(number: float) -> str:
    return f"{number:.0f}"


class Pulse:
    """What a bar shows, as a line now and then: into the log of the run, and where there is no
    terminal on standard error."""

    def __init__(
        self, description: str, total: float, done: float, spell: Callable[[float], str]
    ) -> None:
        self.description, self.total, self.done, self.spell = description, total, done, spell
        self.note, self.left = "", ""
        self.before, self.began = done, time.monotonic()
        self.last = self.began

    def advance(
        self,
        steps: float = 1,
        total: float | None = None,
        left: str | None = None,
        **shown: float | str,
    ) -> None:
        self.done += steps
        self.total = self.total if total is None else total
        self.left = self.left if left is None else left
        self.note = columns(shown) or self.note
        now = time.monotonic()
        if now - self.last >= every:
            self.last = now
            self.say(now)

    def say(self, now: float) -> None:
        pace = (self.done - self.before) / (now - self.began)
        left = self.left or (f"{spoken((self.total - self.done) / pace)} left" if pace > 0 else "")
        counted = f"{self.description} {self.spell(self.done)}/{self.spell(self.total)}"
        line = " · ".join(part for part in (counted, self.note.replace("  ", " · "), left) if part)
        speaks = enabled and not sys.stderr.isatty() and first()
        log(line, said=speaks)
        if speaks:
            print(line, file=sys.stderr, flush=True)


def first() -> bool:
    """Whether this is the process of a run that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def columns(shown: dict[str, float | str]) -> str:
    """Names and values beside a bar."""
    return "  ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Within: notices, phases and progress are also lines of a file, with the time of each; one run
    at a time has it."""
    global _log
    try:
        file: IO[str] | None = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError:
        file = None  # the record says what is wrong with the disk
    before, _log = _log, file
    try:
        yield
    finally:
        _log = before
        if file is not None:
            with suppress(OSError):
                file.close()


def into(file: IO[str] | None) -> IO[str] | None:
    """From here on the log is this file; returns what it was: for runs that go on in turn."""
    global _log
    before, _log = _log, file
    return before


def log(line: str, *, said: bool = False) -> None:
    """A line of the log of the run that goes on, if there is one; with -v also for the person who
    watches, unless it was `said` already."""
    if _log is not None:
        with suppress(OSError, ValueError):
            _log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
            _log.flush()
    if verbose and not said:
        print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


@contextmanager
def bar(
    description: str, total: int, done: int = 0, *, spell: Callable[[float], str] = whole
) -> Iterator[Advance]:
    """`with bar("training", steps) as advance: advance(1, loss=0.3)`: percent, columns as text,
    time left.

    `left` in the columns is shown in place of the time left that the bar's own pace gives; `spell`
    writes its numbers.
    """
    pulse = Pulse(description, total, done, spell)
    if not enabled or not sys.stderr.isatty():
        yield pulse.advance
        return
    with display() as progress:
        task = progress.add_task(
            description, total=total, completed=done, note="", left="", spell=spell
        )

        def advance(
            steps: float = 1,
            total: float | None = None,
            left: str | None = None,
            **shown: float | str,
        ) -> None:
            pulse.advance(steps, total, left, **shown)
            if total is not None:
                progress.update(task, total=total)
            if left is not None:
                progress.update(task, left=left)
            if shown:
                progress.update(task, advance=steps, note=columns(shown))
            else:
                progress.update(task, advance=steps)

        try:
            yield advance
        finally:
            progress.remove_task(task)


@contextmanager
def display() -> Iterator[Any]:
    """The open display of bars, or a new one; two at a time would write over one another."""
    global _display
    if _display is not None:
        yield _display
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Left(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return (
                Text(task.fields["left"], style="progress.remaining")
                if task.fields["left"]
                else super().render(task)
            )

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            spell = task.fields["spell"]
            return Text(f"{spell(task.completed)}/{spell(task.total or 0)}")

    parts = (
        TextColumn("{task.description:>12}"),
        BarColumn(bar_width=30),
        Count(),
        TextColumn("{task.fields[note]}"),
        Left(compact=True),
    )
    with Progress(*parts, console=Console(stderr=True), transient=True) as progress:
        _display = progress
        try:
            yield progress
        finally:
            _display = None


@contextmanager
def alone() -> Iterator[None]:
    """Within, these bars are the only ones: tqdm draws none, whatever library calls it."""
    from tqdm import tqdm

    draws, before = tqdm.__init__, vars(tqdm)["__init__"]  # which may be a partial: new when asked

    def draws_nothing(self: object, *arguments: object, **options: object) -> None:
        draws(self, *arguments, **options | {"disable": True})

    tqdm.__init__ = draws_nothing
    try:
        yield
    finally:
        tqdm.__init__ = before


@contextmanager
def silent(client: Any, level: int = logging.CRITICAL) -> Iterator[None]:
    """Within, a library prints neither bars nor what is below this level; `client` is its module
    that has `set_verbosity`."""
    before = client.get_verbosity()
    client.set_verbosity(level)
    try:
        with alone():
            yield
    finally:
        client.set_verbosity(before)


@contextmanager
def tally(description: str) -> Iterator[Progress]:
    """The same bar for work that reports `(done, total)`."""
    with bar(description, 0) as advance:
        before = 0

        def progress(done: int, total: int) -> None:
            nonlocal before
            advance(done - before if done >= before else done, total=total)
            before = done

        yield progress


def notice(line: str) -> None:
    """A line on standard error that is worth reading while something runs."""
    log(line, said=True)
    print(line, file=sys.stderr, flush=True)
