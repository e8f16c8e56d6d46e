"""A claim on a folder that dies with its process: the kernel's lock, or a file with a heartbeat
where the disk has none."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# Lustre without -o flock, some NFS
UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
# seconds between two signs of life, and without one until a holder on another host counts as dead
BEAT, STALE = 20.0, 120.0
POLL = 0.5


class Lock:
    """The claim on a path: `take` it, `close` it; a process that ends has closed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.soft = path.with_name(f"{path.name}.held")
        self.file: IO[str] | None = None
        self.ended: threading.Event | None = None

    def take(self, wait: bool = False) -> bool:
        """Whether the claim is ours now; `wait`: until it is. Raises: OSError for a disk that takes
        neither kind of lock."""
        if self.file is not None or self.ended is not None:
            return True
        file = self.path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            file.close()
            if error.errno in BUSY:
                return False
            if error.errno not in UNSUPPORTED:
                raise OSError(
                    error.errno, f"{self.path}: cannot be locked: {error.strerror}"
                ) from error
            return self._take_soft(wait)
        self.file = file
        return True

    def _take_soft(self, wait: bool) -> bool:
        while not self._create():
            if not alive(self.soft):
                self._clear()
            elif wait:
                time.sleep(POLL)
            else:
                return False
        self.ended = threading.Event()
        threading.Thread(target=self._beat, args=(self.ended,), daemon=True).start()
        return True

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.soft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}\n")
        return True

    def _clear(self) -> None:
        """Take a dead holder's file away: one of those who see it does, by a name that only it
        has."""
        aside = self.soft.with_name(f"{self.soft.name}.{socket.gethostname()}.{os.getpid()}")
        with suppress(FileNotFoundError):
            os.rename(self.soft, aside)
            if alive(aside):  # a living one had taken its place in between
                with suppress(OSError):
                    os.link(aside, self.soft)
            aside.unlink()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(self.soft)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
        if self.ended is not None:
            self.ended.set()
            self.ended = None
            self.soft.unlink(missing_ok=True)


def alive(path: Path) -> bool:
    """Whether the holder that a file names lives: by its process on this host, by its heartbeat on
    another."""
    try:
        host, _, pid = path.read_text().strip().partition(" ")
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if host == socket.gethostname() and pid.isdecimal():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return age < STALE


def held(path: Path) -> bool:
    """Whether a living process has the claim on a path; the claim of a dead one is free."""
    if not path.exists():
        return False
    lock = Lock(path)
    if not lock.take():
        return True
    lock.close()
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within: the claim on a path is ours; waits for it."""
    lock = Lock(path)
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.close()
