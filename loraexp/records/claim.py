"""Whose a run's folder is: one process at a time writes to it, and knows when it is no longer the
one."""

from __future__ import annotations

from pathlib import Path

from loraexp.config import RECORD
from loraexp.machine.files import on_disk
from loraexp.machine.locks import Lock


class Busy(RuntimeError):
    """Another process is running this very run."""


class Lost(RuntimeError):
    """The folder is no longer this process's: it was removed, or another process has taken it
    over."""


class Claim:
    """The lock of a run's folder: taken, looked at before its record is written, closed."""

    def __init__(self, folder: Path, *, waits: bool) -> None:
        """Raises: Busy, unless it `waits`; OSError where nobody can know."""
        self.folder = folder
        self.lock = Lock(folder / ".lock")
        self.written = False  # whether there is a record of this process's
        if not self.lock.take(wait=waits):
            raise Busy(f"{folder}: another process is running this run; wait for it, or stop it")

    def check(self) -> None:
        """Raises: Lost where the folder that this process began to write is not its own by now;
        DiskError where nobody can know."""
        if not self.written:
            self.written = True
            return
        with on_disk(self.folder / RECORD):
            there = (self.folder / RECORD).exists()
        if not there:
            raise Lost(
                f"{self.folder}: the folder was removed while its run went on; the same command"
                " begins it anew"
            )
        if not self.lock.kept():
            raise Lost(
                f"{self.folder}: another process has taken this run over while this one gave no"
                " sign of life; it goes on there"
            )

    def close(self) -> None:
        self.lock.close()
