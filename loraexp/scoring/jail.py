"""One process behind walls: its limits, its walls (bubblewrap), its pipes, and its end.

Inside: no network, a read-only system of the interpreter and its libraries alone, an empty
read-only home, a private /tmp of limited size, other process numbers, an empty environment, a
session keyring and (where root starts it) a user number of its own, and no system call that
`seccomp` refuses. `inside/start.py` is its first process.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from loraexp.scoring import seccomp, usage

MEBIBYTE = 1024 * 1024
READY = b"ready\n"
INSIDE = Path(__file__).resolve().parent / "inside"
Role = Literal["program", "candidate", "examiner"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    seconds: float = 10.0  # of wall time, and of CPU time for each process
    # bytes of address space of each process, and held by all of them together
    memory: int = 1024 * MEBIBYTE
    processes: int = 32  # threads count
    file_bytes: int = 16 * MEBIBYTE  # of one file
    tmp_bytes: int = 64 * MEBIBYTE  # of /tmp, which is memory
    files: int = 10_000  # in /tmp; an empty one takes memory too
    sockets: int = 128
    output: int = MEBIBYTE  # bytes of standard output and error

    def of_process(self, walls: bool) -> dict[str, int]:
        """For setrlimit."""
        limits = {
            "CORE": 0,
            "CPU": max(1, round(self.seconds + 1)),
            "FSIZE": self.file_bytes,
            "NOFILE": 128,
            "AS": self.memory,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
            "SIGPENDING": 1024,
        }
        # Outside a sandbox the kernel counts every process of the user, so a limit would forbid
        # any.
        return limits | ({"NPROC": self.processes} if walls else {})


def walls(limits: Limits, root: bool) -> list[str]:
    """bwrap with an empty root, in which only the interpreter and its libraries are, read-only."""
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--as-pid-1"]
    command += [
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    if root:
        # Not a user namespace: in one, the program would still be root's, whose processes are not
        # limited.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--disable-userns"]
    size = ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs"]
    command += ["--proc", "/proc", "--dev", "/dev"]
    command += [*size, "/dev/shm", "--remount-ro", "/dev", *size, "/tmp"]
    for folder in _system():
        for above in reversed(Path(folder).parents[:-1]):  # or only their owner may enter them
            command += ["--perms", "0755", "--dir", str(above)]
        link = os.path.islink(folder)
        command += (
            ["--symlink", os.readlink(folder), folder] if link else ["--ro-bind", folder, folder]
        )
    for file in ("/etc/ld.so.cache", "/etc/localtime"):
        command += ["--ro-bind-try", file, file]
    command += ["--perms", "0755", "--dir", "/home", "--perms", "0755", "--dir", "/home/sandbox"]
    return [*command, "--remount-ro", "/", "--hostname", "sandbox", "--chdir", "/tmp"]


def environment(home: str) -> dict[str, str]:
    """Nothing of the caller's: bubblewrap has it from the start, so that no process inside ever
    held another."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    python = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return {"PATH": "/usr/bin:/bin", "HOME": home, "LANG": "C.UTF-8"} | python | threads


def _system() -> list[str]:
    """The folders of the system's programs and libraries, and of the interpreter where it is not
    among them."""
    usual = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
    folders = [folder for folder in usual if os.path.lexists(folder)]
    for prefix in (sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)):
        if not any(Path(prefix).is_relative_to(folder) for folder in folders):
            folders.append(prefix)
    return folders


# --------------------------------------------------------------------------------------------------
# one process

_numbers = itertools.count()


def _own_user(number: int) -> int:
    """A user number that no account has, another one for each sandbox that this process has at a
    time."""
    return 0x70000000 + (os.getpid() * 1000 + number) % 0x0F000000


@cache
def _source(name: str) -> str:
    return (INSIDE / f"{name}.py").read_text(encoding="utf-8")


class Cell:
    """A process in a sandbox of its own, or behind no walls; it waits for its job. A context: it
    ends with all below it.

    `output` is what it writes; `report`, a pipe that the program of a `candidate` does not have.
    """

    def __init__(
        self, role: Role, task: dict[str, Any], limits: Limits, *, walled: bool, channel: int = -1
    ) -> None:
        number, root = next(_numbers), walled and os.getuid() == 0
        user = _own_user(number) if root else None
        self.role, self.limits, self.walled = role, limits, walled
        self.job = _job(role, task, limits, walled, user)
        self.output = self.report = b""
        self.is_ready = False
        self.group = usage.group(str(number), limits.memory) if walled else None
        self._folder = None if walled else tempfile.TemporaryDirectory()
        self.report_end, theirs = os.pipe()
        python = [sys.executable, "-I", "-c", _source("start"), str(theirs), str(channel)]
        try:
            self.process = subprocess.Popen(
                [*walls(limits, root), *python] if walled else python,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._folder.name if self._folder else None,
                env=environment(
                    "/home/sandbox" if walled else self._folder.name if self._folder else "/"
                ),
                pass_fds=[number for number in (theirs, channel) if number >= 0],
            )
        except BaseException:
            os.close(self.report_end)
            self._clean()
            raise
        finally:
            os.close(theirs)

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ready(self) -> None:
        """It has said so: all that it does from now on is counted."""
        self.is_ready = True
        if self.group is not None:
            self.group.add([self.process.pid, *usage.family(self.process.pid)])

    def excess(self) -> str:
        """Which limit all its processes together are beyond, in words; empty for none."""
        limits = self.limits
        if self.group is not None and self.group.exceeded():
            return f"more than {limits.memory // MEBIBYTE} MiB in all processes together"
        if not self.is_ready:  # its root is still this machine's
            return ""
        held = usage.held(self.process.pid, limits.memory, self.walled)
        if held.memory > limits.memory:
            return f"more than {limits.memory // MEBIBYTE} MiB in all processes together"
        if held.files > limits.files:
            return f"more than {limits.files} files"
        if held.sockets > limits.sockets:
            return f"more than {limits.sockets} sockets"
        return ""

    def end(self) -> None:
        """End it with all below it, and read what is left of its output. No process stays, defunct
        ones neither.

        A sandbox ends with its first process, which bwrap then buries; killed first, bwrap would
        leave it to others.
        """
        deadline = time.monotonic() + 5
        while self.process.poll() is None:
            late = time.monotonic() > deadline
            below = usage.family(self.process.pid)
            for number in (
                below if self.walled and below and not late else (self.process.pid, *below)
            ):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(number, signal.SIGKILL)
            if not self.walled:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
        if not self.walled:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._rest()
        self._clean()

    def _rest(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        with suppress(OSError):
            while len(self.output) <= self.limits.output:
                piece = os.read(self.process.stdout.fileno(), 65536)
                if not piece:
                    break
                self.output += piece
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()
        if self.report_end >= 0:
            os.close(self.report_end)
            self.report_end = -1

    def _clean(self) -> None:
        if self.group is not None:
            self.group.remove()
        if self._folder is not None:
            self._folder.cleanup()


def _job(role: Role, task: dict[str, Any], limits: Limits, walled: bool, user: int | None) -> bytes:
    """The line that the first process reads."""
    names = ["plain", role] if role != "program" else [role]
    job = {
        "walls": walled,
        "rlimits": limits.of_process(walled),
        "user": user,
        "sources": {f"loraexp.scoring.inside.{name}": _source(name) for name in names},
        "task": task,
    }
    if walled:
        job |= {"filter": base64.b64encode(seccomp.program()).decode(), "keyctl": seccomp.keyctl()}
    return json.dumps(job).encode() + b"\n"


def missing() -> str | None:
    """What walls need and this system has not, before anything is tried."""
    if shutil.which("bwrap") is None:
        return "bwrap is not on the PATH"
    if platform.machine() not in seccomp.MACHINES:
        return (
            f"its list of system calls is for {' and '.join(seccomp.MACHINES)}, and this is"
            f" {platform.machine()}"
        )
    return None


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel between two cells. (A pipe could be opened again, at its other end,
    through /proc.)"""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
