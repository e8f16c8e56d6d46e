"""A device that pretends to be an accelerator, on a CPU build: mixing it with the CPU raises, and
every wait of the host for it is counted.

Its tensors wrap CPU tensors and say that they are elsewhere. With `pretend_device()` on,
`tensor.to(DEVICE)`, `torch.zeros(..., device=DEVICE)` and `torch.tensor(..., device=DEVICE)` make
such tensors, and whatever the host then reads of their values (`item`, `bool`, `tolist`, `cpu`,
`nonzero`, an index by a boolean mask, a copy that blocks) is a wait, kept with the lines of ours
that asked for it.
"""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loraexp.config import placement
from loraexp.machine import measure
from loraexp.optimizers import elementwise
from tests.support import autocast
from tests.support.helpers import REPOSITORY
from tests.support.leaves import leaves, mapped

# a name that torch knows and that nothing is built for; backward passes run on the host's thread
DEVICE = torch.device("lazy", 0)
STEPS = 6
# a training of so many steps, with two lines in its log and nothing else that waits
TRAINING = (
    f"device={DEVICE.type}",
    f"train.max_steps={STEPS}",
    "train.log_every=3",
    "train.eval_every=0",
    "train.checkpoint_every=1h",
    "train.micro_batches=2",
    "train.batch_size=8",
)
# a word that a configuration takes, of which a real one knows nothing
placement.WORD = re.compile(f"{placement.WORD.pattern}|{DEVICE.type}")
HIDDEN = re.compile(r"tests.support|torch._dynamo|torch._compile|torch._ops")
READS = {
    "_local_scalar_dense": "a value",
    "nonzero": "nonzero",
    "masked_select": "a mask",
    "is_nonzero": "a value",
    "equal": "a comparison",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "bincount": "bincount",
    "repeat_interleave": "repeat_interleave",
    # libraries look on the host whether these came to an end
    "_linalg_eigh": "an outcome",
    "_linalg_svd": "an outcome",
}


class Pretend(torch.Tensor):
    """A tensor of the pretended device; `held` is where its numbers really are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretend:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            _extra_dispatch_keys=autocast.KEYS,
        )
        made.held = held
        return made

    @property
    def data(self) -> Pretend:  # type: ignore[override]
        return Pretend(self.held)

    @data.setter
    def data(self, value: Pretend) -> None:
        assert isinstance(value, Pretend) and value.shape == self.shape
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: Any = Pretend(self.held.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, how: str) -> str:
        return format(self.item(), how) if self.dim() == 0 else super().__format__(how)

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first"
        )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretend({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        return computed(function, arguments, keywords or {})


class Waits(list[tuple[str, str]]):
    """Every wait of the host, in order: what it read, and the line of ours that asked for it."""

    def lines(self) -> Counter[str]:
        """How often each line waited."""
        return Counter(f"{what}: {line}" for what, line in self)


class Mark:
    """An event of the device: it has come to it once the host has waited for anything since."""

    def __init__(self, waits: Waits) -> None:
        self.waits, self.reached, self.at = waits, False, 0
        self.when = 0.0

    def record(self) -> None:
        self.at, self.when = len(self.waits), time.perf_counter()

    def query(self) -> bool:
        return self.reached or len(self.waits) > self.at

    def synchronize(self) -> None:
        if not self.query():
            self.waits.append(("an event", line_of_ours()))
        self.reached = True

    def elapsed_time(self, end: Mark) -> float:
        if not end.query():
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return 1000 * (end.when - self.when)


class Mode(TorchDispatchMode):
    """What makes tensors of the device, and calls on them, go through `computed`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Waits()
        self.calls: Counter[str] = Counter()
        self.products: Counter[torch.dtype] = Counter()  # of matrices, by what they compute in

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        return computed(function, arguments, keywords or {}, self)


def computed(
    function: Any, arguments: Any, keywords: dict[str, Any], mode: Mode | None = None
) -> Any:
    """Run a call on what the tensors hold."""
    tensors = [x for x in leaves((arguments, keywords)) if isinstance(x, Tensor)]
    ours = [x for x in tensors if isinstance(x, Pretend)]
    wanted = keywords.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    there = bool(ours) if wanted is None else wanted.type == DEVICE.type
    name = function.overloadpacket.__name__
    if mode is not None and ours:
        mode.calls[name] += 1
        mode.products[ours[0].dtype] += name in ("mm", "addmm", "bmm")
    if ours:
        refuse_mix(name, tensors, keywords)
    if mode is not None:
        count(mode, name, arguments, keywords, ours, there)
    if name == "copy_":
        there = isinstance(arguments[0], Pretend)
    if name == "_pin_memory":
        return arguments[0]

    def under(x: Any) -> Any:
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return x.held if isinstance(x, Pretend) else x

    kept = {id(x.held): x for x in ours}
    result = function(*mapped(under, arguments), **mapped(under, keywords))

    def over(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, Pretend) or not there:
            return x
        return kept[id(x)] if id(x) in kept else Pretend(x)

    if name == "_to_copy" and there and not ours:
        result = result.clone()  # the host's copy is another
    return mapped(over, result)


def refuse_mix(name: str, tensors: list[Tensor], keywords: dict[str, Any]) -> None:
    """As CUDA does: single numbers of the host may be mixed in, and index tensors, and copies."""
    if name in ("copy_", "_to_copy", "index", "index_put_", "index_put"):
        return
    others = [x for x in tensors if not isinstance(x, Pretend) and x.dim() > 0]
    if others:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices,"
            f" {DEVICE} and cpu! (in aten.{name})"
        )


def count(
    mode: Mode, name: str, arguments: Any, keywords: dict[str, Any], ours: Any, there: bool
) -> None:
    """Note a wait of the host."""
    what = READS.get(name) if ours else None
    if name in ("_to_copy", "copy_"):
        source = arguments[1] if name == "copy_" else arguments[0]
        into = isinstance(arguments[0], Pretend) if name == "copy_" else there
        free = keywords.get("non_blocking") or (name == "copy_" and arguments[2:] == (True,))
        single = not isinstance(source, Pretend) and source.dim() == 0 and name == "copy_"
        if isinstance(source, Pretend) != into and not free and not single:
            what = "a copy to the device" if into else "a copy to the host"
    if name in ("index", "index_put_", "index_put") and ours:
        if any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in arguments[1]):
            what = "an index by a mask"
        elif any(x is not None and not isinstance(x, Pretend) for x in arguments[1]):
            what = "an index of the host"
    if what is not None:
        mode.waits.append((what, line_of_ours()))


def line_of_ours() -> str:
    """The innermost line of the package in the stack, or whatever asked."""
    package = str(REPOSITORY / "loraexp")
    stack = [f for f in traceback.extract_stack() if not HIDDEN.search(f.filename)]
    asked = [f for f in stack if f.filename.startswith(package)] or stack
    innermost = stack[-1]
    inner = f" < {Path(innermost.filename).name}:{innermost.lineno}"
    where = f"{Path(asked[-1].filename).name}:{asked[-1].lineno} {asked[-1].line}"
    return where + ("" if innermost is asked[-1] else inner)


def counted(mode: Mode, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The waits within every call of a function, in order."""
    original, found = getattr(owner, name), list[int]()

    def watched(*arguments: Any, **keywords: Any) -> Any:
        before = len(mode.waits)
        result = original(*arguments, **keywords)
        found.append(len(mode.waits) - before)
        return result

    monkeypatch.setattr(owner, name, watched)
    return found


@contextlib.contextmanager
def pretend_device() -> Iterator[Mode]:
    """Within: the device is there; what is counted is in `.waits` and `.calls`."""
    mode = Mode()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        marks = mock.patch.object(measure, "event", lambda device: Mark(mode.waits))
        with mode, without_inference_mode(), marks, autocast.autocast_of(DEVICE.type):
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@contextlib.contextmanager
def training_device() -> Iterator[Mode]:
    """Within: the device, with the kernel of AdamW that CUDA has."""
    kernel = elementwise.adamw

    def fused(*given: Any, **how: Any) -> None:
        kernel(*given, **how | {"fused": True, "foreach": False})

    with pretend_device() as mode, mock.patch.object(elementwise, "adamw", fused):
        yield mode


@contextlib.contextmanager
def without_inference_mode() -> Iterator[None]:
    """Within: no gradients where inference mode is asked for, in which torch cannot slice a tensor
    that wraps another."""

    def enter(self: Any) -> None:
        self.instead = torch.no_grad()
        self.instead.__enter__()

    def leave(self: Any, *error: Any) -> None:
        self.instead.__exit__(*error)

    kind = torch.inference_mode
    with mock.patch.object(kind, "__enter__", enter), mock.patch.object(kind, "__exit__", leave):
        yield
