"""Signals that ask a run to end, as Slurm, a closed terminal and Ctrl-C send them; and limits that
it meets."""

from __future__ import annotations

import json
import resource
import signal
import time
from pathlib import Path

from benchmarks import forks
from benchmarks.cases import Case, Reference, completes, folder_of, lines, polite, words
from benchmarks.forks import Command

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143, signal.SIGUSR1: 143}
WITHIN = 30.0  # seconds from the signal to the end


def preemption(of: Reference, small: bool) -> list[Case]:
    numbers = list(STATUS)
    signals = [
        signalled(of, numbers[n % len(numbers)], of.rng.randrange(0, 11))
        for n in range(1 if small else 20)
    ]
    return signals if small else [*signals, *limits(of)]


def signalled(of: Reference, number: signal.Signals, step: int) -> Case:
    """After a step, a signal: the step is finished, a checkpoint written, and the same command goes
    on from it."""

    def tried(place: Path) -> str:
        out = place / "out"
        command = Command(words(out))
        while command.poll() is None and not (
            lines(out) >= step and list(out.glob("*/*/record.json"))
        ):
            time.sleep(0.002)
        command.signal(number)
        sent = time.monotonic()
        ended = command.wait()
        if ended.status != 0:  # it was not quicker
            took = time.monotonic() - sent
            record = json.loads((folder_of(out) / "record.json").read_text())
            reason = polite(ended, STATUS[number])
            if not reason and record["status"] != "interrupted":
                reason = f"the record says {record['status']}"
            if not reason and took > WITHIN:
                reason = f"it took {took:.0f} s to end"
            if reason:
                return reason
        return completes(out, of.finished)

    return Case(f"{number.name} after step {step}", tried)


def limits(of: Reference) -> list[Case]:
    """A limit of the system is met politely; without it the same command finishes."""

    def met(name: str, kind: int, value: int, *hints: str) -> Case:
        def tried(place: Path) -> str:
            out = place / "out"
            ended = forks.run(*words(out), limits={kind: value})
            if ended.status != 0:
                last = (ended.err.strip().splitlines() or [""])[-1]
                reason = polite(ended, 1, 2)
                if not reason and hints and not any(hint in last.lower() for hint in hints):
                    reason = f"the last line does not say what is the matter: {last[:200]}"
                if reason:
                    return reason
            return completes(out, of.finished)

        return Case(name, tried)

    files = [
        met(f"{n} descriptors", resource.RLIMIT_NOFILE, n, "descriptor", "open files")
        for n in (12, 16, 24, 40)
    ]
    sizes = [
        met(f"files of {n} bytes", resource.RLIMIT_FSIZE, n, "too large", "space", "file")
        for n in (4096, 9000, 20_000)
    ]
    memory = [
        met(f"{extra} MiB more memory", resource.RLIMIT_AS, here() + extra * 2**20, "memory")
        for extra in (1, 16, 64, 200)
    ]
    return [*files, *sizes, *memory]


def here() -> int:
    """Bytes of address space that this process has, and its forks begin with."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
