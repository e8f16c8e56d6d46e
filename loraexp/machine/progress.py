"""One progress bar for everything that takes long; silent when standard error is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[..., None]  # advance(steps=1, **columns)


enabled = True  # false in the worker processes of a launcher, which share one terminal
_display: Any = None  # of the outermost bar: bars within it are lines of the same display


def whole(number: float) -> str:
    return f"{number:.0f}"


@contextmanager
def bar(description: str, total: int, done: int = 0, *, spell: Callable[[float], str] = whole) -> Iterator[Advance]:
    """`with bar("training", steps) as advance: advance(1, loss=0.3)`: percent, columns as text, time left.

    `left` in the columns is shown in place of the time left that the bar's own pace gives; `spell` writes its numbers.
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda steps=1, **columns: None
        return
    with display() as progress:
        task = progress.add_task(description, total=total, completed=done, note="", left="", spell=spell)

        def advance(steps: float = 1, total: float | None = None, left: str | None = None, **shown: float | str) -> None:
            if total is not None:
                progress.update(task, total=total)
            if left is not None:
                progress.update(task, left=left)
            if shown:
                note = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
                progress.update(task, advance=steps, note=note)
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
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Left(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["left"], style="progress.remaining") if task.fields["left"] else super().render(task)

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            spell = task.fields["spell"]
            return Text(f"{spell(task.completed)}/{spell(task.total or 0)}")

    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(bar_width=30),
        Count(),
        TextColumn("{task.fields[note]}"),
        Left(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        _display = progress
        try:
            yield progress
        finally:
            _display = None


@contextmanager
def alone() -> Iterator[None]:
    """Within, these bars are the only ones: tqdm draws none, whatever library calls it."""
    from tqdm import tqdm

    draws = tqdm.__init__

    def draws_nothing(self: Any, *arguments: Any, **options: Any) -> None:
        draws(self, *arguments, **options | {"disable": True})

    tqdm.__init__ = draws_nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        tqdm.__init__ = draws  # type: ignore[method-assign]


@contextmanager
def tally(description: str) -> Iterator[Callable[[int, int], None]]:
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
    print(line, file=sys.stderr, flush=True)
