"""Run Python that a model wrote, inside bubblewrap: nothing of this machine to read, write, reach or exhaust.

Inside: no network, a read-only system of the interpreter and its libraries alone, an empty read-only home, a private
/tmp of limited size, other process numbers, an empty environment. The runner sets limits of CPU time, memory, processes
and file size on itself before it executes the program; the supervisor outside watches wall time, output and the memory
of all processes together, and ends the sandbox with everything that is in it.

Started by root, the program runs under a user number of its own, because the kernel limits no processes of root.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

Status = Literal["passed", "failed", "timeout", "memory", "output"]
MEBIBYTE = 1024 * 1024
LOOK_EVERY = 0.1  # seconds between two looks at memory
REMEDY = (
    "install bubblewrap (apt-get install bubblewrap) on a system that allows user namespaces, "
    "or set evaluate.unsafe_code=true to run what the model wrote without protection"
)


class SandboxError(RuntimeError):
    """There is no sandbox to be had: one line with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    seconds: float = 10.0  # of wall time, and of CPU time for each process
    memory: int = 1024 * MEBIBYTE  # bytes of address space for each process, and resident in all of them together
    processes: int = 32  # threads count
    file_bytes: int = 16 * MEBIBYTE  # of one file
    tmp_bytes: int = 64 * MEBIBYTE  # of /tmp, which is memory
    output: int = MEBIBYTE  # bytes of standard output and error


@dataclass(frozen=True)
class Outcome:
    """`passed`: the program ran to its end. `detail`: the last line that it wrote, or which limit it met."""

    status: Status
    detail: str
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status == "passed"


# The process that becomes the program. It reads one JSON line (limits, identity, token, program) from standard input,
# and writes the token when the program has come to its end: leaving early, with whatever status, is not passing.
RUNNER = r"""
import json, os, resource, sys
job = json.loads(sys.stdin.buffer.readline())
def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == -1 else min(value, hard),) * 2)
limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_CPU, job["cpu"])
limit(resource.RLIMIT_FSIZE, job["file_bytes"])
limit(resource.RLIMIT_NOFILE, 256)
limit(resource.RLIMIT_AS, job["memory"])
if job["user"] is not None:
    os.setgroups([])
    os.setresgid(*[job["user"]] * 3)
    os.setresuid(*[job["user"]] * 3)
if job["processes"] is not None:
    limit(resource.RLIMIT_NPROC, job["processes"])
done, token, program = os.fdopen(os.dup(1), "wb", 0), job["token"], job["program"]
null = os.open(os.devnull, os.O_RDONLY)
os.dup2(null, 0)
space = {"__name__": "__main__"}
try:
    exec(compile(program, "<program>", "exec"), space)
except SystemExit as leaving:
    print("SystemExit:", leaving.code, file=sys.stderr)
    sys.exit(1)
sys.stdout.flush()
done.write(("\n" + token + "\n").encode())
os._exit(0)
"""


# ---------------------------------------------------------------------------------------------------- is there one?


@cache
def problem() -> str | None:
    """Why there is no sandbox here, or None where it works."""
    if shutil.which("bwrap") is None:
        return f"running generated code needs a sandbox, and bwrap is not on the PATH: {REMEDY}"
    try:
        tried = subprocess.run(_command(Limits()) + [sys.executable, "-I", "-c", "pass"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"running generated code needs a sandbox, and bwrap does not start ({error}): {REMEDY}"
    if tried.returncode != 0:
        reason = (tried.stderr.strip().splitlines() or [f"status {tried.returncode}"])[-1]
        return f"running generated code needs a sandbox, and bwrap fails here ({reason[:160]}): {REMEDY}"
    return None


def require(unsafe_code: bool = False) -> None:
    """Raises: SandboxError, saying how to get one, where there is no sandbox and `unsafe_code` is false."""
    reason = None if unsafe_code else problem()
    if reason is not None:
        raise SandboxError(reason)


def _command(limits: Limits) -> list[str]:
    """bwrap with an empty root, in which only the interpreter and its libraries are, read-only."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    if os.getuid() == 0:
        # Not a user namespace: in one, the program would still be root's, whose processes are not limited.
        command = [word for word in command if word != "--unshare-all"]
        command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--disable-userns"]
    size = ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs"]
    command += ["--proc", "/proc", "--dev", "/dev", *size, "/dev/shm", "--remount-ro", "/dev", *size, "/tmp"]
    for folder in _system():
        for above in reversed(Path(folder).parents[:-1]):  # made by hand, or only their owner may enter them
            command += ["--perms", "0755", "--dir", str(above)]
        command += ["--symlink", os.readlink(folder), folder] if os.path.islink(folder) else ["--ro-bind", folder, folder]
    for file in ("/etc/ld.so.cache", "/etc/localtime"):
        command += ["--ro-bind-try", file, file]
    command += ["--perms", "0755", "--dir", "/home", "--perms", "0755", "--dir", "/home/sandbox"]
    command += ["--remount-ro", "/", "--hostname", "sandbox", "--chdir", "/tmp"]
    for name, value in _environment("/home/sandbox").items():
        command += ["--setenv", name, value]
    return command


def _environment(home: str) -> dict[str, str]:
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {"PATH": "/usr/bin:/bin", "HOME": home, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"} | one


def _system() -> list[str]:
    """The folders of the system's programs and libraries, and of the interpreter where it is not among them."""
    folders = [folder for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64") if os.path.lexists(folder)]
    for prefix in (sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)):
        if not any(Path(prefix).is_relative_to(folder) for folder in folders):
            folders.append(prefix)
    return folders


# ---------------------------------------------------------------------------------------------------- running

_numbers = itertools.count()


def _own_user() -> int:
    """A user number that no account has, another one for each sandbox that this process has at a time."""
    return 0x70000000 + (os.getpid() * 1000 + next(_numbers)) % 0x0F000000


def run(program: str, *, limits: Limits | None = None, unsafe_code: bool = False) -> Outcome:
    """Execute a Python program in a sandbox of its own; `passed` if it comes to its end without an exception.

    `unsafe_code` runs it as an ordinary process of this user instead, with the same limits but no walls.

    Raises: SandboxError where there is no sandbox and `unsafe_code` is false.
    """
    require(unsafe_code)
    limits = limits or Limits()
    if unsafe_code:
        with tempfile.TemporaryDirectory() as folder:
            return _supervise([], program, limits, user=None, folder=folder)
    return _supervise(_command(limits), program, limits, user=_own_user() if os.getuid() == 0 else None, folder=None)


def run_all(
    programs: Sequence[str],
    *,
    limits: Limits | None = None,
    unsafe_code: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Each program in a sandbox of its own, `workers` at a time (default: one for each CPU); in the order given."""
    require(unsafe_code)
    outcomes = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for outcome in pool.map(lambda program: run(program, limits=limits, unsafe_code=unsafe_code), programs):
            outcomes.append(outcome)
            if progress is not None:
                progress(len(outcomes), len(programs))
    return outcomes


def _supervise(prefix: list[str], program: str, limits: Limits, *, user: int | None, folder: str | None) -> Outcome:
    token = secrets.token_hex(16)
    job = {
        "cpu": max(1, round(limits.seconds + 1)),
        "memory": limits.memory,
        "file_bytes": limits.file_bytes,
        # Outside a sandbox the kernel counts every process of the user, so a limit would forbid any.
        "processes": limits.processes if prefix else None,
        "user": user,
        "token": token,
        "program": program,
    }
    started = time.monotonic()
    process = subprocess.Popen(
        [*prefix, sys.executable, "-I", "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=folder,
        env=None if prefix else _environment(folder or "/"),
    )
    try:
        status, output = _watch(process, json.dumps(job).encode() + b"\n", limits, started, token.encode())
    finally:
        _end(process)
    text = output.decode(errors="replace").replace(token, "").strip()
    detail = {
        "timeout": f"more than {limits.seconds:g} seconds",
        "memory": f"more than {limits.memory // MEBIBYTE} MiB in all processes together",
        "output": f"more than {limits.output} bytes of output",
        "passed": "",
        "failed": text.splitlines()[-1][:300] if text else f"ended early with status {process.returncode}",
    }[status]
    return Outcome(status, detail, text, time.monotonic() - started)


def _watch(process: subprocess.Popen[bytes], job: bytes, limits: Limits, started: float, token: bytes) -> tuple[Status, bytes]:
    """Feed the job, and read output until the program has ended or met a limit."""
    assert process.stdin is not None and process.stdout is not None
    output, look = b"", started + LOOK_EVERY
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if now - started > limits.seconds:
                return "timeout", output
            if now >= look:
                if resident(process.pid) > limits.memory:
                    return "memory", output
                look = time.monotonic() + LOOK_EVERY
            for _, events in selector.select(timeout=max(0.0, min(look, started + limits.seconds + 0.001) - now)):
                if events & selectors.EVENT_WRITE:
                    job = _feed(process.stdin, job, selector)
                    continue
                piece = os.read(process.stdout.fileno(), 65536)
                output += piece
                if token in output[-len(piece) - 64 :]:
                    return "passed", output
                if len(output) > limits.output:
                    return "output", output[: limits.output]
                if not piece:
                    return "failed", output
            # A grandchild may hold the pipe open after the program itself has gone.
            if process.poll() is not None and not selector.select(timeout=0):
                return "failed", output


def _feed(pipe: IO[bytes], job: bytes, selector: selectors.BaseSelector) -> bytes:
    """Write what the pipe takes; close it after the last byte, or when nobody reads any more."""
    try:
        job = job[os.write(pipe.fileno(), job) :]
    except BrokenPipeError:
        job = b""
    if not job:
        selector.unregister(pipe)
        pipe.close()
    return job


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process with all its children: a sandbox dies with bwrap; an unprotected one with its descendants."""
    below = family(process.pid)
    for number in (process.pid, *below):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def family(root: int) -> list[int]:
    """The numbers of all processes below one, from /proc; empty on a system without it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, waiting = [], [root]
    while waiting:
        mine = children.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found


def resident(root: int) -> int:
    """Bytes in memory of a process and all below it; shared pages are counted for each."""
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for number in (root, *family(root)):
        try:
            total += int(Path(f"/proc/{number}/statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            continue
    return total
