"""What a process and all below it hold of this machine: memory, files in memory, sockets; and a
control group for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def family(root: int) -> list[int]:
    """The numbers of all processes below one, from /proc; empty on a system without it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    below, waiting = [], [root]
    while waiting:
        mine = children.get(waiting.pop(), [])
        below += mine
        waiting += mine
    return below


@dataclass(frozen=True)
class Held:
    """Of a sandbox: `memory` in bytes, `files` on its file systems in memory, `sockets` of its
    network."""

    memory: int
    files: int
    sockets: int


def held(root: int, enough: int, walled: bool) -> Held:
    """What a process and all below it hold; `walled`: those below it are in a sandbox, and it is
    not.

    Memory is exact where more than `enough` bytes seem to be held, and else an upper bound, which
    is cheaper: pages that several processes share count once (each has its part of them), and so do
    pages of files in memory that are mapped.
    """
    below = family(root)
    numbers = [root, *below]
    blocks, files = _in_memory(below) if walled else (0, 0)
    memory = blocks + sum(_resident(number) for number in numbers)
    if memory > enough:
        shares = [_share(number) for number in numbers]
        memory = sum(own for own, _ in shares) + max(blocks, sum(shared for _, shared in shares))
    return Held(memory, files, max(map(_sockets, below), default=0) if walled else 0)


def _resident(number: int) -> int:
    try:
        return int(Path(f"/proc/{number}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except (OSError, IndexError):
        return 0


def _share(number: int) -> tuple[int, int]:
    """Bytes of a process's own and of memory that is shared as files are, each page divided by
    those who have it."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended, or may not be looked at
        return _resident(number), 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    shared = sizes.get("Pss_Shmem", 0)
    return sizes.get("Pss", 0) - shared, shared


def _in_memory(numbers: Iterable[int]) -> tuple[int, int]:
    """Bytes and files on the file systems that a sandbox may write to, seen through any of its
    processes."""
    for number in reversed(list(numbers)):
        try:
            seen = [os.statvfs(f"/proc/{number}/root/{folder}") for folder in ("tmp", "dev/shm")]
        except OSError:
            continue
        used = sum((one.f_blocks - one.f_bfree) * one.f_frsize for one in seen)
        return used, sum(one.f_files - one.f_ffree for one in seen)
    return 0, 0


def _sockets(number: int) -> int:
    try:
        return int(Path(f"/proc/{number}/net/sockstat").read_text().split()[2])
    except (OSError, IndexError, ValueError):
        return 0


# --------------------------------------------------------------------------------------------------
# control groups


@dataclass(frozen=True)
class Group:
    """A control group of the kernel with a limit of memory, which no trick passes: version 2, or
    1."""

    folder: Path
    version: int

    def add(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            with suppress(OSError):  # it has ended
                (self.folder / "cgroup.procs").write_text(str(number))

    def exceeded(self) -> bool:
        """Has the kernel ended a process of the group for its memory?"""
        events = self.folder / ("memory.events" if self.version == 2 else "memory.oom_control")
        with suppress(OSError):
            counts = dict(line.split() for line in events.read_text().splitlines())
            return int(counts.get("oom_kill", 0)) > 0
        return False

    def remove(self) -> None:
        """The kernel takes a moment to clear the processes away."""
        deadline = time.monotonic() + 2
        while self.folder.exists() and time.monotonic() < deadline:
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.01)


def group(name: str, memory: int) -> Group | None:
    """A new control group with a limit of memory, or None where none may be made (an ordinary user
    without delegation)."""
    for above, version in _above():
        folder = above / f"loraexp-{os.getpid()}-{name}"
        limits = (
            {"memory.max": memory, "memory.swap.max": 0, "memory.oom.group": 1}
            if version == 2
            else {
                "memory.limit_in_bytes": memory,
                "memory.memsw.limit_in_bytes": memory,
            }
        )
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            for key, value in limits.items():
                if (folder / key).exists():
                    (folder / key).write_text(str(value))
            if (folder / next(iter(limits))).exists():
                return Group(folder, version)
        except OSError:
            pass
        with suppress(OSError):
            folder.rmdir()
    return None


def _above() -> list[tuple[Path, int]]:
    """The control groups in which this process may have made one, with the version; the leftovers
    of dead ones go."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    places = []
    for number, controllers, path in lines:
        if number == "0":
            mine = CGROUPS / path.lstrip("/")
            delegated = [mine, *([mine.parent] if mine != CGROUPS else [])]
            places += [
                (one, 2) for one in delegated if "memory" in _words(one / "cgroup.subtree_control")
            ]
        elif "memory" in controllers.split(","):
            mine = CGROUPS / "memory" / path.lstrip("/")
            places.append((mine if mine.exists() else CGROUPS / "memory", 1))
    usable = [(folder, version) for folder, version in places if os.access(folder, os.W_OK)]
    for folder, _ in usable:
        for old in folder.glob("loraexp-*-*"):
            if not Path(f"/proc/{old.name.split('-')[1]}").exists():
                with suppress(OSError):
                    old.rmdir()
    return usable


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
