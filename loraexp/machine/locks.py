"""A claim on a path that dies with its process: the kernel's lock, or a file with a heartbeat where
the disk has none."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from loraexp.machine import heartbeat
from loraexp.machine.files import DiskFull, on_disk, refused
from loraexp.machine.heartbeat import Sign

# Lustre without -o flock, some NFS
UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN)
# tries before a lock counts as taken: whoever only looks has it for a moment
TRIES, MOMENT = 5, 0.02


class Lock:
    """The claim on a path: `take` it, `close` it; a process that ends has closed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[str] | None = None
        self.sign: Sign | None = None

    def take(self, wait: bool = False) -> bool:
        """Whether the claim is ours now; `wait`: until it is. Raises: OSError in one line where
        that cannot be known: no such folder, none to write in, a disk that does not answer."""
        if self.file is not None or self.sign is not None:
            return True
        tries = 0
        while (taken := self._take(wait)) is False:
            tries += 1
            if tries == TRIES and not wait:
                return False
            time.sleep(MOMENT)
        return bool(taken)

    def _take(self, wait: bool) -> bool | None:
        """Whether it is ours; False: not at this moment, None: its holder lives."""
        file = opened(self.path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            file.close()
            if error.errno in BUSY:
                return False
            if error.errno not in UNSUPPORTED:
                raise refused(self.path, "locked", error) from error
            return self._take_sign(wait)
        if not same(file, self.path):  # the file was removed between the two
            file.close()
            return False
        self.file = file
        return True

    def _take_sign(self, wait: bool) -> bool | None:
        sign = Sign(self.path)
        try:
            if not sign.take(wait):
                return None
        except DiskFull:
            raise
        except OSError as error:
            raise refused(self.path, "locked", error) from error
        self.sign = sign
        return True

    def kept(self) -> bool:
        """Whether the claim is ours still: nobody has taken the file away or the claim over. One
        whose file is gone is taken anew, where nobody else has."""
        if self.sign is not None:
            return self.sign.ours()
        if self.file is None:
            return False
        if same(self.file, self.path):
            return True
        self.close()
        with suppress(OSError):
            return self.take()
        return False

    def close(self, *, remove: bool = False) -> None:
        """`remove`: leave no file behind either."""
        if remove and (self.sign is not None or self.file is not None):
            self.path.unlink(missing_ok=True)
        if self.file is not None:
            self.file.close()
            self.file = None
        if self.sign is not None:
            self.sign.close()
            self.sign = None


def opened(path: Path) -> IO[str]:
    """The file of a claim, made where there is none. Raises: DiskFull; OSError in one line."""
    for again in (True, False):
        try:
            with on_disk(path):
                return path.open("a")
        except DiskFull:
            raise
        except OSError as error:
            if error.errno == errno.ESTALE and again:  # looked up anew it may be known
                continue
            raise refused(path, "locked", error) from error
    raise AssertionError("the second try returns or raises")


def same(file: IO[str], path: Path) -> bool:
    """Whether a file that is open is the one that stands at a path; of a disk that does not answer
    it is not known, and counts as the same."""
    try:
        there, own = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def held(path: Path) -> bool:
    """Whether a living process has the claim on a path; the claim of a dead one is free, and of one
    that cannot be looked at nobody knows of a holder."""
    sign = Sign(path).path
    try:
        with path.open() as file:
            # shared: two who look do not take each other for a holder
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in BUSY:
            return True
        return error.errno in UNSUPPORTED and heartbeat.state(sign)[1] is not False
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
