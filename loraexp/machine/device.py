"""Where a run computes and how precisely: the device, the precision of its products, the processes
that share it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch

from loraexp.machine.processes import Processes
from loraexp.machine.words import first_line

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a model runs on: a device, the precision of its products, and the processes that share
    the work."""

    device: torch.device
    precision: str
    processes: Processes

    def autocast(self) -> AbstractContextManager[None]:
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


def is_accelerator(device: torch.device) -> bool:
    """Whether the host works on while the device does, and waits whenever it reads a value of
    it."""
    return device.type != "cpu"


@contextmanager
def unread_masks(device: torch.device) -> Iterator[None]:
    """Within: on an accelerator transformers reads no value of an attention mask.

    It looks whether a mask masks anything, and whether positions are those of packed rows, in every
    forward pass, and each look waits for all that was launched before. Here a mask that is given is
    used, one that is not needed is not given, and no rows are packed.
    """
    if not is_accelerator(device):
        yield
        return
    import transformers

    masking_utils: Any = transformers.masking_utils
    found = masking_utils.find_packed_sequence_indices, masking_utils.is_tracing
    masking_utils.find_packed_sequence_indices = lambda *_: None
    masking_utils.is_tracing = lambda *_: True  # what is traced has no values
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, masking_utils.is_tracing = found


@contextmanager
def on_host() -> Iterator[torch.device]:
    """Within: what a device has no room for is made on the host."""
    yield torch.device("cpu")


def name_of(device: torch.device) -> str:
    """A device as its maker calls it; the CPU by its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bf16 products over float32 trained weights where `precision="bf16"`; nothing otherwise."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast within, on a device that has one."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class Batch(dict[str, Any]):
    """Tensors by name, and what the host knows of their values, so that it need not ask the device:
    `count`, the label tokens in all, `most` of one row, and `first`, the first column that has one;
    `lengths`, the tokens of each row that are no padding."""

    def __init__(
        self,
        tensors: Mapping[str, object] = MappingProxyType({}),
        *,
        count: int | None = None,
        most: int | None = None,
        first: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(tensors)
        self.count, self.most, self.first, self.lengths = count, most, first, lengths


def to_device(batch: Mapping[str, object], device: torch.device) -> dict[str, Any]:
    """A batch on `device`, copied while the host goes on where that is an accelerator; what is no
    tensor stays as it is."""
    if not is_accelerator(device):
        return cast(dict[str, Any], batch)
    there = {
        k: on_device(v, device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
    }
    if not isinstance(batch, Batch):
        return there
    return Batch(there, **vars(batch))


def on_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`; the host goes on while it is copied to an accelerator."""
    pinned = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x
    return pinned.to(device, non_blocking=is_accelerator(device))


def numbers(values: Sequence[torch.Tensor]) -> list[float]:
    """What single numbers of a device are, in one wait for it."""
    if not values:
        return []
    read: list[float] = torch.stack([value.to(values[0].device) for value in values]).tolist()
    return read


def choose_device(name: str) -> torch.device:
    """`auto` is the first accelerator there is, else the CPU, unless a card was named that is not
    there; a device that is not there is refused."""
    if name == "auto":
        check_named()
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
            f"device={name}: not available here ({first_line(error)[:100]}); {instead(name)}"
        ) from error
    if device.type == "cuda":
        if device.index is None:  # the one that tensors of "cuda" are on, by its number
            device = torch.device("cuda", torch.cuda.current_device())
        # libraries that load onto "the" device, and the generator of a checkpoint, go by it
        torch.cuda.set_device(device)
    return device


def check_named() -> None:
    """Raises: ValueError where CUDA_VISIBLE_DEVICES names a card and none is there: who named it
    wants no CPU in its place."""
    seen = os.environ.get(VISIBLE, "")
    named = re.match(r"\s*(\d|GPU-|MIG-)", seen) is not None
    if named and torch.version.cuda is not None and not torch.cuda.is_available():
        raise ValueError(
            f"device=auto: {VISIBLE}={seen!r} names a card, and there is none of that name; set it"
            " to one that nvidia-smi -L lists, or device=cpu"
        )


def instead(name: str) -> str:
    """What to do about a device that is not there: the ones that are, and what hides the others."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    seen = os.environ.get(VISIBLE)
    hidden = f"; {VISIBLE}={seen!r} hides all others" if seen is not None else ""
    if not count:
        return f"expected auto or cpu{hidden.replace('all others', 'every card')}"
    cards = "1 card, cuda:0" if count == 1 else f"{count} cards, cuda:0 to cuda:{count - 1}"
    if name == f"cuda:{os.environ.get('LOCAL_RANK')}":
        return f"here are {cards}: expected at most {count} processes{hidden}"
    return f"expected auto, cpu, cuda or one of the {cards}{hidden}"
