"""Where a run computes and how precisely: the device, the precision of its products, the processes
that share it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from loraexp.machine.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a model is evaluated on: a device, the precision of its products, and the processes that
    share the work."""

    device: torch.device
    precision: str
    processes: Processes

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within: only algorithms that give the same bits every time; an operation that has none raises
    and names itself."""
    if not wanted:
        yield
        return
    # read when the first product on the device is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def name_of(device: torch.device) -> str:
    """A device as its maker calls it; the CPU by its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 products over float32 trained weights where `precision="bf16"`; nothing otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on `device`, copied while the host goes on where that is CUDA."""
    if device.type == "cpu":
        return batch
    pinned = device.type == "cuda"
    return {
        k: (v.pin_memory() if pinned else v).to(device, non_blocking=pinned)
        for k, v in batch.items()
    }


def choose_device(name: str) -> torch.device:
    """`auto` is the first accelerator there is, else the CPU; a device that is not there is
    refused."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"device={name}: not available here ({str(error).splitlines()[0][:100]}); expected auto"
            " or cpu"
        ) from error
    if device.type == "cuda":
        # libraries that load onto "the" device, and the generator of a checkpoint, go by it
        torch.cuda.set_device(device)
    return device
