"""Run Python that a model wrote, inside bubblewrap: nothing of this machine to read, write, reach
or exhaust.

`jail` has the walls and the limits of a process; here the supervisor outside watches wall time,
output and what all processes together hold, and ends the sandbox with everything that is in it. A
whole program `passes` here by coming to its end. Tests that a program must not reach are run by
`judge`.
"""

from __future__ import annotations

import os
import secrets
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from loraexp.machine.escapes import printable
from loraexp.scoring import jail
from loraexp.scoring.jail import MEBIBYTE, READY, Cell, Limits

Status = Literal["passed", "failed", "timeout", "memory", "output"]
LOOK_EVERY = 0.1  # seconds between two looks at what is held
REMEDY = (
    "install bubblewrap (apt-get install bubblewrap) on a system that allows user namespaces, "
    "or set evaluate.unsafe_code=true to run what the model wrote without protection"
)
Work = TypeVar("Work")


class SandboxError(RuntimeError):
    """There is no sandbox to be had: one line with the remedy."""


@dataclass(frozen=True)
class Outcome:
    """`passed`: all went well to the end. `detail`: the last line that it wrote, or which limit it
    met.

    `inside`: the tests ran in the program's own process, which could therefore have read them.
    """

    status: Status
    detail: str
    output: str
    seconds: float
    inside: bool = True

    @property
    def passed(self) -> bool:
        return self.status == "passed"


# --------------------------------------------------------------------------------------------------
# is there one?


@cache
def problem() -> str | None:
    """Why there is no sandbox here, or None where it works."""
    reason = jail.missing()
    if reason is not None:
        return f"running generated code needs a sandbox, and {reason}: {REMEDY}"
    try:
        tried = _whole("pass", Limits(seconds=30.0), walled=True)
    except OSError as error:
        return (
            f"running generated code needs a sandbox, and bwrap does not start ({error}): {REMEDY}"
        )
    if not tried.passed:
        reason = tried.detail[:160]
        return f"running generated code needs a sandbox, and bwrap fails here ({reason}): {REMEDY}"
    return None


def require(unsafe_code: bool = False) -> None:
    """Raises: SandboxError, saying how to get one, where there is no sandbox and `unsafe_code` is
    false."""
    reason = None if unsafe_code else problem()
    if reason is not None:
        raise SandboxError(reason)


# --------------------------------------------------------------------------------------------------
# running


def run(program: str, *, limits: Limits | None = None, unsafe_code: bool = False) -> Outcome:
    """Execute a Python program in a sandbox of its own; `passed` if it comes to its end without an
    exception.

    `unsafe_code` runs it as an ordinary process of this user instead, with the same limits but no
    walls.

    Raises: SandboxError where there is no sandbox and `unsafe_code` is false.
    """
    require(unsafe_code)
    return _whole(program, limits or Limits(), walled=not unsafe_code)


def each(
    work: Callable[[Work], Outcome],
    items: Sequence[Work],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[Outcome]:
    """The outcomes of all items in their order, `workers` at a time (default: one for each CPU)."""
    outcomes = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for outcome in pool.map(work, items):
            outcomes.append(outcome)
            if progress is not None:
                progress(len(outcomes), len(items))
    return outcomes


def _whole(program: str, limits: Limits, *, walled: bool) -> Outcome:
    secret, started = secrets.token_hex(16), time.monotonic()
    with Cell("program", {"secret": secret, "program": program}, limits, walled=walled) as cell:
        status, detail = watch([cell], limits, started)
        if status == "failed":
            settle(cell)
    if status == "failed" and cell.report.strip() == secret.encode():
        status = "passed"
    text = text_of(cell).replace(secret, "")
    return Outcome(
        status,
        detail or ("" if status == "passed" else last_line(cell)),
        text,
        time.monotonic() - started,
    )


def settle(cell: Cell) -> None:
    """Give a process that is ending the moment that its status takes."""
    with suppress(subprocess.TimeoutExpired):
        cell.process.wait(1.0)


def text_of(cell: Cell) -> str:
    """What it wrote, without what would steer a terminal."""
    return printable(cell.output[: cell.limits.output].decode(errors="replace").strip())


def last_line(cell: Cell) -> str:
    text = text_of(cell)
    return (
        text.splitlines()[-1][:300]
        if text
        else f"ended early with status {cell.process.returncode}"
    )


def watch(cells: Sequence[Cell], limits: Limits, started: float) -> tuple[Status, str]:
    """Feed the jobs and read output until the last cell has reported or ended ("failed"), or any
    has met a limit."""
    look = started + LOOK_EVERY
    with selectors.DefaultSelector() as selector:
        for cell in cells:
            _listen(selector, cell)
        while True:
            now = time.monotonic()
            if now - started > limits.seconds:
                return "timeout", f"more than {limits.seconds:g} seconds"
            if now >= look:
                for cell in cells:
                    if reason := cell.excess():
                        return "memory", reason
                look = time.monotonic() + LOOK_EVERY
            due = min(look, started + limits.seconds + 0.001)
            for key, events in selector.select(timeout=max(0.0, due - now)):
                _serve(selector, key, events)
            for cell in cells:
                if max(len(cell.output), len(cell.report)) > limits.output:
                    return "output", f"more than {limits.output} bytes of output"
            last = cells[-1]
            # A grandchild may hold the pipes open after the program itself has gone.
            gone = last.process.poll() is not None and not selector.select(timeout=0)
            if gone or (last.is_ready and last.report.endswith(b"\n")):
                return _ending(cells)


def _ending(cells: Sequence[Cell]) -> tuple[Status, str]:
    """It has ended: of itself, or by the kernel's hand."""
    for cell in cells:
        if cell.group is not None and cell.group.exceeded():
            return (
                "memory",
                f"more than {cell.limits.memory // MEBIBYTE} MiB in all processes together",
            )
    return "failed", ""


def _listen(selector: selectors.BaseSelector, cell: Cell) -> None:
    assert cell.process.stdin is not None and cell.process.stdout is not None
    os.set_blocking(cell.process.stdin.fileno(), False)
    selector.register(cell.process.stdout, selectors.EVENT_READ, (cell, "output"))
    selector.register(cell.report_end, selectors.EVENT_READ, (cell, "report"))


def _serve(selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> None:
    """One pipe of one cell: take what it gives, or write what it takes of its job."""
    cell, name = key.data
    if name == "job":
        try:
            cell.job = cell.job[os.write(key.fd, cell.job) :]
        except BrokenPipeError:
            cell.job = b""
        if not cell.job:
            # and left open: its end would be the end of the sandbox
            selector.unregister(key.fileobj)
        return
    piece = os.read(key.fd, 65536)
    if not piece:
        selector.unregister(key.fileobj)
        return
    if name == "output":
        cell.output += piece
        return
    cell.report += piece
    if not cell.is_ready and cell.report.startswith(READY):
        cell.report = cell.report.removeprefix(READY)
        cell.ready()
        selector.register(cell.process.stdin, selectors.EVENT_WRITE, (cell, "job"))
