"""Time and memory of the parts of a run, and what it means to run out of it."""

from __future__ import annotations

import re
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from loraexp.machine.device import is_accelerator
from loraexp.machine.words import MIB

# What torch, oneDNN, the C++ library and the system say where memory is refused; a MemoryError
# needs no words.
REFUSED = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|could not create a"
    r" (primitive|memory)|malloc of size"
    r"|bad_alloc|not enough memory|DefaultCPUAllocator",
    re.IGNORECASE,
)
ASKED = re.compile(
    r"[Tt]ried to allocate ([\d.]+ ?[KMGT]?i?B|\d+ bytes)|(?:malloc of size|allocate) (\d+)(?:"
    r" bytes)?"
)


def event(device: torch.device) -> Any:
    """A mark in the work of an accelerator, which knows later when the device came to it."""
    if device.type == "mps":
        return torch.mps.event.Event(enable_timing=True)
    return torch.get_device_module(device).Event(enable_timing=True)


class Stopwatch:
    """Seconds spent in named parts: `with stopwatch("forward"):`. On an accelerator those of the
    device, between two marks in its work, added up once it has come to them: nobody waits."""

    def __init__(
        self, device: torch.device | None = None, before: Mapping[str, float] | None = None
    ) -> None:
        """`before`: seconds to go on from."""
        self.seconds: dict[str, float] = dict(before or {})
        self.part, self.since = "", 0.0
        self.device = device if device is not None and is_accelerator(device) else None
        self.begun: Any = None
        self.ahead: deque[tuple[str, Any, Any]] = deque()  # marks that the device may not have met

    def __call__(self, part: str) -> Stopwatch:
        self.part = part
        return self

    def __enter__(self) -> None:
        if self.device is None:
            self.since = time.perf_counter()
        else:
            self.begun = event(self.device)
            self.begun.record()

    def __exit__(self, *_: object) -> None:
        if self.device is None:
            self.add(self.part, time.perf_counter() - self.since)
            return
        end = event(self.device)
        end.record()
        self.ahead.append((self.part, self.begun, end))

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def settle(self, *, wait: bool = False) -> None:
        """Add up what the device has done by now; with `wait`, all that it was given."""
        if wait and self.ahead:
            self.ahead[-1][2].synchronize()
        while self.ahead and self.ahead[0][2].query():
            part, begun, end = self.ahead.popleft()
            self.add(part, begun.elapsed_time(end) / 1000)


def reset_peak(device: torch.device) -> None:
    """Begin a new peak. Where the system does not permit it on a CPU, the peak stays that of the
    whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, with those that PyTorch keeps there for itself; None elsewhere:
    a host's are everybody's."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def bytes_beside(device: torch.device, work: Callable[[], None]) -> int | None:
    """Bytes that stay free on a GPU while `work` is done; None elsewhere, where it is not done."""
    free = free_bytes(device)
    if free is None:
        return None
    reset_peak(device)
    before = peak_bytes(device)
    work()
    return free - (peak_bytes(device) - before)


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak since `reset_peak`: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        line = next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory was refused, in the words of whichever library asked for
    it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and REFUSED.search(str(error)) is not None


def asked_for(error: BaseException) -> str | None:
    """How much was asked for when memory was refused, where the error tells."""
    found = ASKED.search(str(error))
    if found is None:
        return None
    size = found[1] or found[2]
    number = re.fullmatch(r"(\d+)(?: bytes)?", size)
    return f"{int(number[1]) / MIB:.1f} MiB" if number else size


class Available(NamedTuple):
    """Memory that is free where a run would compute; None where nobody tells."""

    bytes: int | None
    of_host: bool


def available_bytes(device: str) -> Available:
    """What is free on the device of this name (`auto`: a GPU where there is one)."""
    if device != "cpu" and torch.cuda.is_available():
        named = torch.device("cuda" if device == "auto" else device)
        return Available(free_bytes(named), of_host=False)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return Available(None, of_host=True)
    return Available(int(line.split()[1]) * 1024, of_host=True)
