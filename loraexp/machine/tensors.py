"""Tensors written one at a time: a safetensors file of any size from what is on a device, or in
pieces over processes, with one tensor in host memory at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from loraexp.machine.files import Hashing, written

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file before it is read: `read` gives it wherever it is, when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def entry(value: Tensor) -> Entry:
    """Of a tensor that is there already, which is not copied."""
    return Entry(tuple(value.shape), value.dtype, lambda: value)


def in_order(entries: Mapping[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """As they are written: the widest types first, so that all are aligned. Reading in this order
    is what every process does where they read together."""
    yield from sorted(entries.items(), key=lambda named: -named[1].dtype.itemsize)


def read_along(entries: Mapping[str, Entry]) -> None:
    """Take part where another process writes the entries, and keep nothing."""
    for _, one in in_order(entries):
        one.read()


def write_tensors(
    path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file at once and whole; returns its digest.

    Raises: DiskFull; TypeError for a type of numbers that the format has no name for.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, one in in_order(entries):
        if one.dtype not in NAMES:
            raise TypeError(f"{name}: {one.dtype} has no place in a safetensors file")
        offsets = [end, end + one.bytes]
        header[name] = {"dtype": NAMES[one.dtype], "shape": one.shape, "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written(path) as file:
        hashing = Hashing(file)
        hashing.write(len(text).to_bytes(8, "little") + text)
        for name, one in in_order(entries):
            hashing.write(numbers(name, one))
    return hashing.digest.hexdigest()


def numbers(name: str, one: Entry) -> Any:
    """The bytes of an entry; on a CPU those of the tensor itself."""
    value = one.read().detach()
    if tuple(value.shape) != one.shape or value.dtype != one.dtype:
        raise ValueError(
            f"{name}: {tuple(value.shape)} in {value.dtype}, expected {one.shape} in {one.dtype}"
        )
    flat = value.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, as they lie on the disk: a number is read when it is used, and no
    memory of the process holds it. They are to be copied from, not written to."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
