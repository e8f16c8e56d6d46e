"""Processes that begin with everything imported: they are forked from one that has done so, once
for all tests of a worker. A start is a tenth of a second, where one of Python, torch and
transformers takes six."""

from __future__ import annotations

import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

IMPORTED = [
    "loraexp.run.experiment",
    "loraexp.run.model_files",
    "loraexp.scoring.metrics",
    "loraexp.cli.main",
    "loraexp.cli.show",
    "transformers.modeling_utils",
    "transformers.models.bert.modeling_bert",
    "torch.distributed.launcher.api",
    "tests.support.runs",
    "tests.support.small_sweep",
]


def context() -> ForkServerContext:
    """For processes of the functions of a test; the first that asks starts the server."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(IMPORTED)
    return made


def begun(environment: dict[str, str], log: Path) -> None:
    """This process as if it were started with an environment, whoever forked it; what it writes
    goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)


def rank(function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    """One of torchrun's processes, which ends with the status that its function returns."""
    status = function(*arguments)
    sys.stdout.flush()
    if status:
        sys.exit(status)


def agent(
    function: Callable[..., int],
    arguments: tuple[Any, ...],
    world: int,
    environment: dict[str, str],
    log: Path,
) -> None:
    """What `torchrun --standalone --nproc-per-node=WORLD` does, but for starting Python anew."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    begun(environment, log)
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(how, rank)(function, arguments)


def said_by(
    function: Callable[..., int],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    log: Path,
) -> None:
    begun(environment, log)
    rank(function, arguments)


def session(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In a session of its own, as a shell gives it to what it begins in the background."""
    os.setsid()
    target(*arguments)


class Forked:
    """A function that goes on beside its test: in one process, or in `world` of them under
    torchrun's own agent, each with the rank, the local rank and the meeting place that torchrun
    gives."""

    def __init__(
        self,
        function: Callable[..., int],
        *arguments: Any,
        log: Path,
        world: int = 0,
        **environment: str,
    ) -> None:
        given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        target, told = (agent, (world,)) if world else (said_by, ())
        whole = (target, (function, arguments, *told, given, log))
        self.log = log
        self.process = context().Process(target=session, args=whole)
        self.process.start()
        self.pid = self.process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def ended(self, seconds: float) -> str:
        """What it said, once it is over."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"not over after {seconds} s: {self.said()[-2000:]}")
        return self.said()


def commanded(*words: str) -> int:
    """`loraexp WORDS`, from the console script's own function."""
    from loraexp.cli.main import entry

    sys.argv = ["loraexp", *words]
    entry()
    return 0


class Command(Forked):
    """`loraexp WORDS`."""

    def __init__(self, *words: str, log: Path, world: int = 0) -> None:
        super().__init__(commanded, *words, log=log, world=world)


def alone(
    function: Callable[..., int], *arguments: Any, log: Path, seconds: float = 400
) -> tuple[int | None, str]:
    """(status, what it said) of a function in a process of its own."""
    forked = Forked(function, *arguments, log=log)
    said = forked.ended(seconds)
    return forked.returncode, said


def torchrun(
    function: Callable[..., int],
    *arguments: Any,
    world: int,
    log: Path,
    seconds: float = 400,
    **environment: str,
) -> tuple[int | None, str]:
    """(status, what they said) of a function in so many processes under torchrun's agent."""
    forked = Forked(function, *arguments, log=log, world=world, **environment)
    said = forked.ended(seconds)
    return forked.returncode, said
