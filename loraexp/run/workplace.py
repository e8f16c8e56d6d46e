"""Where a layer is decomposed: on its device, or on the host where the device has no room for it.

So initialising never needs a larger card than training does. How much a layer needs is counted on
the layer without numbers, by the initializer itself and the ledger.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from loraexp.adapter.layer import Curvature, Factors, Layer
from loraexp.adapter.linalg import SVD
from loraexp.config.settings import Settings
from loraexp.machine import device as devices
from loraexp.machine import measure
from loraexp.machine.alive import Alive
from loraexp.machine.meta import META, Answers
from loraexp.machine.processes import gathered
from loraexp.run.ledger import describe

SPARE = 8  # of what is needed as much again stays: for the workspace of a device's own libraries
AWAY = (
    "layers are decomposed on the host, as the device has no room for it beside the weights: the"
    " notes of the ledger say which; a card with more memory is faster"
)


@dataclass
class Workplace:
    """Where the layers of a run are decomposed."""

    initializer: partial[Factors]
    rank: int
    precision: str
    host: bool  # their whole matrices were summed there
    needed: dict[tuple[object, ...], int] = field(default_factory=dict)  # bytes, by size

    @contextlib.contextmanager
    def of(self, layer: Layer) -> Iterator[tuple[Layer, str | None]]:
        """The layer with all of it in one place, and why that is the host; None: it is not."""
        device = layer.W.device
        free = measure.free_bytes(device)
        if free is None:
            yield layer, None
            return
        need = self.bytes(layer) + (held(layer) if self.host else 0)
        room = min(gathered(free))  # in one place on all processes: to the same bits
        if fits(need, room):
            yield mapped(layer, lambda x: x.to(device, copy=True)) if self.host else layer, None
            return
        warnings.warn(AWAY, stacklevel=2)
        with devices.on_host() as host:
            there = mapped(layer, lambda x: x.to(host))
            why = (
                f"decomposed on the host: needs {need / 2**20:.0f} MiB, and {room / 2**20:.0f} MiB"
                " are free"
            )
            yield replaced(there, layer.W.to(host)), why

    def bytes(self, layer: Layer) -> int:
        """What is needed beside the weight and the statistics."""
        key = (*layer.W.shape, layer.W.dtype)
        if key not in self.needed:
            with devices.on_host():
                self.needed[key] = work(layer, self.initializer, self.rank, self.precision)
        return self.needed[key]


def fits(need: int, room: int) -> bool:
    """Whether a device with so many free bytes takes a layer."""
    return need + need // SPARE <= room


def held(layer: Layer) -> int:
    """Bytes of a layer's statistics."""
    return sum(x.nbytes for x in tensors(layer.statistics))


def work(layer: Layer, initializer: partial[Factors], rank: int, precision: str) -> int:
    """Bytes that a layer is initialised with, beside its weight and its statistics.

    An initializer that cannot go on without numbers has needed by then what its numbers are made
    of.
    """
    empty = mapped(layer, hollow)
    empty = replaced(empty, hollow(layer.W))
    settings = SimpleNamespace(precision=precision, init={"name": "init"})
    alive = Alive()
    for value in (empty.W, *tensors(empty.statistics)):
        alive.note(value)
    before = alive.now
    alive.reset()
    # a rank that fits no layer is said by the configuration's own check, and what there are no
    # numbers of is nothing to be warned of
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.suppress(Exception),
        Answers(),  # type: ignore[no-untyped-call]
        alive,
    ):
        generator = torch.Generator().manual_seed(0)
        factors = initializer(empty, rank=rank, scaling=1.0, generator=generator)
        describe(empty, factors, 1.0, cast(Settings, settings))
    return alive.recent - before


def hollow(x: Tensor) -> Tensor:
    """The same without numbers."""
    return torch.empty(x.shape, dtype=x.dtype, device=META)


def mapped(layer: Layer, of: Callable[[Tensor], Tensor]) -> Layer:
    """The layer with `of` each tensor of its statistics in their place."""

    def each(value: object) -> object:
        if isinstance(value, Tensor):
            return of(value)
        if isinstance(value, SVD):
            return SVD(*map(of, value))
        if isinstance(value, Curvature):
            held: dict[str, Any] = {f.name: getattr(value, f.name) for f in fields(value)}
            moved: dict[str, Any] = {k: of(x) for k, x in held.items() if isinstance(x, Tensor)}
            return replace(value, **moved)
        return value

    return Layer(name=layer.name, W=layer.W, **{k: each(x) for k, x in layer.statistics.items()})


def replaced(layer: Layer, W: Tensor) -> Layer:
    return Layer(name=layer.name, W=W, **layer.statistics)


def tensors(statistics: Mapping[str, Any]) -> list[Tensor]:
    """All that statistics are made of."""
    parts: list[Any] = []
    for value in statistics.values():
        if isinstance(value, Curvature):
            parts += vars(value).values()
        else:
            parts += value if isinstance(value, SVD) else [value]
    return [x for x in parts if isinstance(x, Tensor)]
