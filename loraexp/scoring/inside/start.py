"""The first process in a sandbox: it takes rights away, then runs one of the programs beside it in
a child.

`python -c THIS REPORT CHANNEL`: the numbers of a pipe to the supervisor and of a socket to the
other sandbox (or -1). It says `ready`, and reads its job, one line of JSON, from standard input. It
needs the standard library alone, because nothing else is there.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import resource
import select
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
JOIN_SESSION_KEYRING = 1


def lower(job: dict[str, Any]) -> None:
    """The limits of each process, for this one and all that it starts."""
    for name, value in job["rlimits"].items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:  # another system has others
            continue
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(
            kind, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2
        )


def call(function: Callable[..., int], *words: int | bytes | None) -> None:
    if function(*(ctypes.c_ulong(word) if isinstance(word, int) else word for word in words)) < 0:
        raise OSError(
            ctypes.get_errno(),
            f"{os.strerror(ctypes.get_errno())}: {function.__name__}{words!r}"[:200],
        )


def enclose(job: dict[str, Any]) -> None:
    """A user and a session keyring of its own, and the filter of system calls. None of it can be
    taken back."""
    libc = ctypes.CDLL(None, use_errno=True)
    if job["user"] is not None:
        os.setgroups([])
        os.setresgid(*[job["user"]] * 3)
        os.setresuid(*[job["user"]] * 3)
    joined = libc.syscall(ctypes.c_long(job["keyctl"]), ctypes.c_long(JOIN_SESSION_KEYRING), None)
    # no keyrings, or forbidden to all
    if joined < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: a session keyring")
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = base64.b64decode(job["filter"])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = (len(code) // 8).to_bytes(8, sys.byteorder) + ctypes.addressof(buffer).to_bytes(
        8, sys.byteorder
    )
    call(libc.prctl, PR_SET_SECCOMP, 2, program, 0, 0)


def dumpable(yes: bool) -> None:
    """May others of this user trace it, and read its memory and environment?"""
    call(ctypes.CDLL(None, use_errno=True).prctl, PR_SET_DUMPABLE, int(yes), 0, 0, 0)


def perform(job: dict[str, Any], report: int, channel: int) -> None:
    """Run the last of the job's sources; none returns."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.argv = [""]
    for name, text in job["sources"].items():
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(text, f"<{name}>", "exec"), module.__dict__)
    module.main(job["task"], report, channel)


def wait(child: int, bell: int) -> int:
    """The status of the child, as a shell gives it; orphans that come to process 1 are buried on
    the way.

    The job's pipe is the lifeline: it closes when the supervisor has gone, and then everything here
    ends.
    """
    while True:
        number, status = os.waitpid(-1, os.WNOHANG)
        if number == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if number == 0:
            rung = select.select([0, bell], [], [])[0]
            if 0 in rung:
                return 1
            os.read(bell, 4096)


def main() -> None:
    report, channel = (int(word) for word in sys.argv[1:])
    os.write(report, b"ready\n")
    job = json.loads(sys.stdin.buffer.readline())
    lower(job)
    if not job["walls"]:
        perform(job, report, channel)
    enclose(job)
    lock, key = os.pipe()
    bell, ring = os.pipe()
    os.set_blocking(ring, False)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (key, bell, ring):
            os.close(number)
        os.read(lock, 1)  # until process 1 can no longer be traced
        os.close(lock)
        dumpable(True)
        perform(job, report, channel)
    dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (report, channel, 1, lock):
        if number >= 0:
            os.close(number)
    os.write(key, b"x")
    os.close(key)
    os._exit(wait(child, bell))


main()
