"""The claim on a path where the disk knows no locks: a file beside it that names its holder and is
touched as long as that lives.

Two hosts' clocks are never compared: they may be hours apart. A file that is not touched while one
looks on is what tells a dead holder on another host.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from loraexp.machine.files import on_disk

# seconds between two signs of life; without one while somebody looks on, until a holder on another
# host counts as dead; and the age of a sign, by the disk's clock, that needs nobody to look on
BEAT, WATCH, FRESH = 20.0, 60.0, 120.0
POLL = 0.5

seen: dict[
    Path, tuple[tuple[int, int], float]
] = {}  # file and time of its last sign, when first seen


class Holder(NamedTuple):
    """Whose claim it is: a process by its number, when it began, and where such numbers mean it."""

    host: str
    pid: str
    space: str = ""  # the boot of the machine and its container, if known
    began: str = ""
    claim: str = ""  # told apart from every other of the same process

    @classmethod
    def of(cls, text: str) -> Holder:
        words = text.split()[:5]
        return cls(*words, *[""] * (2 - len(words)))


def here() -> Holder:
    """This process, with a new claim."""
    pid = os.getpid()
    began = begun(pid) or ""
    return Holder(socket.gethostname(), str(pid), space() or "-", began or "-", uuid.uuid4().hex)


@cache
def space() -> str:
    """What two processes share whose numbers can be compared: one start of one machine, and one
    container; empty where nobody says."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def begun(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is no such
    process, empty where nobody says when."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        # after the name, which may hold anything, the fields are numbers: the 22nd is the start
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


class Sign:
    """The file of a claim: `take` it, `close` it."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.held")
        self.mine = ""
        self.ended: threading.Event | None = None

    def take(self, wait: bool = False) -> bool:
        """Whether the claim is ours now; `wait`: until it is. Where it is not known whether the
        holder lives, it is watched until that is."""
        while not self._create():
            text, lives = state(self.path)
            if lives is False:
                self._clear(text)
            elif lives and not wait:
                return False
            else:
                time.sleep(POLL)
        self.ended = threading.Event()
        threading.Thread(target=self._beat, args=(self.ended,), daemon=True).start()
        return True

    def _create(self) -> bool:
        self.mine = " ".join(here()) + "\n"
        try:
            with on_disk(self.path):
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with on_disk(self.path), os.fdopen(descriptor, "w") as file:
                file.write(self.mine)
        except BaseException:  # a file that names nobody would be nobody's for good
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _clear(self, dead: str) -> None:
        """Take a dead holder's file away: one of those who see it does, by a name that only it
        has."""
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if aside.read_text() != dead:  # a living one had taken its place in between
                with suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                if self.ours():
                    os.utime(self.path)

    def ours(self) -> bool:
        """Whether nobody has taken the claim over; of a disk that does not answer it is not
        known, and counts as ours."""
        for _ in range(2):
            try:
                if self.path.read_text() == self.mine:
                    return True
            except FileNotFoundError:
                pass
            except OSError:
                return True
            time.sleep(min(POLL, BEAT))  # somebody may be putting it back
        return False

    def close(self) -> None:
        if self.ended is not None:
            self.ended.set()
            self.ended = None
            with suppress(OSError):
                if self.path.read_text() == self.mine:
                    self.path.unlink()


def state(path: Path) -> tuple[str, bool | None]:
    """What a claim's file says, and whether its holder lives: on this machine by its process, on
    another by its signs; None: that is not known yet."""
    try:
        text, info = path.read_text(), path.stat()
    except FileNotFoundError:
        return "", False
    except OSError:
        return "", None
    holder, own = Holder.of(text), here()
    local = holder.host == own.host and holder.space in ("", "-", own.space)
    if local and holder.pid.isdecimal():
        began = begun(int(holder.pid))
        if began is None:
            return text, False
        if began and holder.began not in ("", "-"):
            return text, began == holder.began  # else the number is another process's by now
    return text, signs(path, (info.st_ino, info.st_mtime_ns))


def signs(path: Path, last: tuple[int, int]) -> bool | None:
    """Whether a file is touched as time goes by; None: it has not been looked at for long
    enough."""
    now = time.monotonic()
    before = seen.get(path)
    if before is None or before[0] != last:
        seen[path] = (last, now)
        if before is not None:
            return True
    looked = now - seen[path][1]
    if abs(clock(path.parent) - last[1] / 1e9) < FRESH:
        return looked < FRESH
    return False if looked >= WATCH else None


def clock(folder: Path) -> float:
    """What time it is where the disk keeps it, or here where that is not told."""
    probe = folder / f".clock-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()
