"""What a hostile program may try on the machine that runs it: the table in attacks.txt.

Each program says `tried`, and `REACHED` if it got there. One that says neither was no attack, so a
slip of the pen in one of them is found too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loraexp.scoring import seccomp

# Before each: `attempt(f)` is held where f raises, or returns None; `call(n, …)` is a system call
# of that number.
PRELUDE = """
import ctypes, errno, mmap, os, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(function):
    print("tried", flush=True)
    try:
        found = function()
    except (OSError, MemoryError, ValueError, RuntimeError, AssertionError) as error:
        print("held:", type(error).__name__, error, flush=True)
        return
    if found is not None:
        print("REACHED", repr(found)[:200], flush=True)
def read(path):
    with open(path, "rb") as file:
        return file.read(100000)
def succeeds(*words):
    return True if subprocess.run(words, capture_output=True).returncode == 0 else None
def found(path, secret=b"do-not-tell"):
    return True if secret in read(path) else None
"""
# Run by either user: a line of JSON with how each attack of a group ended.
CAMPAIGN = """
import json, sys
from loraexp.scoring import sandbox
from loraexp.scoring.sandbox import Limits
from tests.support.attacks import attacks
chosen = [one for one in attacks() if one.group == sys.argv[1]]
def attempt(one):
    return sandbox.run(one.program, limits=Limits(**({"seconds": 6.0} | one.limits)))
outcomes = sandbox.each(attempt, chosen, 2, None)
print(json.dumps([[one.name, o.status, o.output] for one, o in zip(chosen, outcomes)]))
"""


@dataclass(frozen=True)
class Attack:
    group: str
    name: str
    program: str  # whole, its prelude included
    limits: dict[str, float]
    ends: frozenset[str]  # how it may end


SMALL = {"memory": 192 * 2**20, "tmp_bytes": 32 * 2**20, "seconds": 8.0}


@cache
def attacks() -> tuple[Attack, ...]:
    """All of them, with this processor's numbers of system calls in their programs."""
    column = seccomp.machine().column
    calls = seccomp.REFUSED | {"clone": seccomp.CLONE, "clone3": seccomp.CLONE3}
    text = (Path(__file__).parent / "attacks.txt").read_text()
    for name, numbers in calls.items():
        text = text.replace(f"{{{name}}}", str(numbers[column]))
    table = []
    for part in text.split("\n### ")[1:]:
        head, _, program = part.partition("\n")
        group, _, name = head.partition(": ")
        said = dict(
            re.findall(
                r"(ends|limits): ([^;]+)",
                program.split("\n")[0] if program.startswith("# ") else "",
            )
        )
        words = said.get("limits", "").split()
        limits = (
            SMALL
            if words == ["small"]
            else {k: float(v) if "." in v else int(v) for k, v in (w.split("=") for w in words)}
        )
        ends = frozenset(said.get("ends", "passed").split())
        table.append(Attack(group, name, PRELUDE + program, limits, ends))
    return tuple(table)


GROUPS = ("looking", "writing", "leaving", "filling", "staying")


def held(attack: Attack, status: str, output: str) -> bool:
    """Was it tried, did it end as it may, and did it get nowhere?"""
    return (
        status in attack.ends
        and "tried" in output
        and not {"REACHED", "do-not-tell"} & set(re.findall(r"[\w-]+", output))
    )
