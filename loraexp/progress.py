"""One progress bar for everything that takes long; silent when standard error is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]  # advance(steps=1, **columns)


@contextmanager
def bar(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """`with bar("training", steps) as advance: advance(1, loss=0.3)`: percent, columns as text, time left."""
    if not sys.stderr.isatty():
        yield lambda steps=1, **columns: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")

        def advance(steps: float = 1, total: float | None = None, **shown: float | str) -> None:
            if total is not None:
                progress.update(task, total=total)
            if shown:
                note = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
                progress.update(task, advance=steps, note=note)
            else:
                progress.update(task, advance=steps)

        yield advance


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
