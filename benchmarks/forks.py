"""Commands in processes that start at once: each is a fork of one that has everything imported, and
can be killed.

The parent imports and does nothing else, so a child is what a fresh process would be after its
imports.
"""

from __future__ import annotations

import importlib
import io
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import IO, Any


@dataclass
class Ended:
    """How a command ended: `status` as a shell gives it, or -N for a signal N; what it wrote."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err


class Command:
    """`loraexp WORDS` in a process of its own."""

    def __init__(
        self,
        words: list[str],
        *,
        env: Mapping[str, str] | None = None,
        limits: Mapping[int, int] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.words, self.started = words, time.monotonic()
        # read when the process has ended
        out, err = TemporaryFile(), TemporaryFile()  # noqa: SIM115
        self.files: tuple[IO[bytes], IO[bytes]] = (out, err)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(dict(env or {}), dict(limits or {}), before)
        self.status: int | None = None

    def _child(
        self, env: dict[str, str], limits: dict[int, int], before: Callable[[], None] | None
    ) -> None:
        status = 70
        try:
            os.setpgid(0, 0)
            for number, file in enumerate(self.files, start=1):
                os.dup2(file.fileno(), number)
            os.environ.update(env)
            if before is not None:
                before()
            for kind, value in limits.items():
                resource.setrlimit(kind, (value, value))
            from loraexp.cli.main import main

            sys.argv = ["loraexp", *self.words]
            status = main(self.words)
        except SystemExit as leaving:
            status = (
                leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            )
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float = 120.0) -> Ended:
        """Its end; one that does not come by itself is status -9 and says so."""
        deadline, late = self.started + seconds, ""
        while self.poll() is None:
            if time.monotonic() > deadline:
                late = f"\nended after {seconds:g} s by the campaign"
                os.killpg(self.pid, signal.SIGKILL)
                deadline += 10
            time.sleep(0.01)
        took = time.monotonic() - self.started
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        assert self.status is not None
        return Ended(self.status, texts[0], texts[1] + late, took)


def run(*words: str, seconds: float = 120.0, **how: Any) -> Ended:
    return Command(list(words), **how).wait(seconds)


def imported(*words: str) -> None:
    """Import here what a command of these words imports, which a first fork tells: later ones need
    not again.

    One thread only, or a fork would lack the others.
    """
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    importlib.import_module("torch").set_num_threads(1)
    with NamedTemporaryFile("r") as file:

        def tell() -> None:
            leave = os._exit

            def told(status: int) -> None:
                Path(file.name).write_text("\n".join(sys.modules))
                leave(status)

            os._exit = told  # type: ignore[assignment]

        first = run(*words, before=tell)
        if first.status != 0:
            raise RuntimeError(f"the campaign's own run fails: {first.err}")
        names = file.read().split()
    with warnings.catch_warnings(), redirect_stdout(None), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(Exception):
                importlib.import_module(name)
