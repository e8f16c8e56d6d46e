"""Bytes that an initializer needs for one layer, beside its weight and its statistics: counted on
layers without numbers, by the initializer itself and the ledger."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from loraexp.adapter.layer import (
    Curvature,
    CurvatureRequest,
    Initializer,
    Layer,
    LeadingRequest,
    Training,
    as_initializer,
)
from loraexp.adapter.linalg import SVD
from loraexp.config.settings import Settings
from loraexp.machine.alive import Alive
from loraexp.run.components import make
from loraexp.run.initialise import settled
from loraexp.run.ledger import describe
from loraexp.statistics import Size
from loraexp.sweep.hollow import META, Answers, on_a_card

# what follows an initialisation does not change how much it needs
ANY = Training(lr=1e-3, factor=1.0, warmup_ratio=0.1, steps=10, epochs=1.0, rows=100)


def work_of(parts: Mapping[str, Any], sizes: Mapping[str, Size], dtype: torch.dtype) -> int:
    """Of the layer that needs most; a tensor that the initializer leaves to the ledger is among
    it."""
    return max((work(parts, size, dtype) for size in set(sizes.values())), default=0)


def work(parts: Mapping[str, Any], size: Size, dtype: torch.dtype) -> int:
    """Of a layer of one size. An initializer that cannot go on without numbers has needed by then
    what its numbers are made of."""
    initializer = settled(make(dict(parts["init"])), ANY)
    made = as_initializer(initializer.func)
    asked = made.request(parts["rank"], **initializer.keywords)
    W = torch.empty(size.d_out, size.d_in, dtype=dtype, device=META)
    statistics = statistics_of(made, asked, size, int(parts["calibration"][0]))
    layer = Layer(name="layer", W=W, **statistics)
    settings = SimpleNamespace(precision=parts["precision"], init={"name": "init"})
    alive = Alive()
    for value in (W, *tensors(statistics)):
        alive.note(value)
    before = alive.now
    alive.reset()
    # a rank that fits no layer is said by the configuration's own check, and what there are no
    # numbers of is nothing to be warned of
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.suppress(RuntimeError, ValueError),
        on_a_card(),
        Answers(),  # type: ignore[no-untyped-call]
        alive,
    ):
        factors = initializer(
            layer, rank=parts["rank"], scaling=1.0, generator=torch.Generator().manual_seed(0)
        )
        describe(layer, factors, 1.0, cast(Settings, settings))
    return alive.recent - before


def statistics_of(
    made: Initializer,
    asked: Mapping[str, LeadingRequest | CurvatureRequest],
    size: Size,
    samples: int,
) -> dict[str, Any]:
    """What the initializer is given of a layer, without numbers."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device=META)

    d_out, d_in = size.d_out, size.d_in
    found: dict[str, Any] = {}
    for name in made.needs:
        one = asked.get(name)
        if isinstance(one, LeadingRequest):
            k = min(one.k, d_out, d_in)
            found[name] = SVD(empty(d_out, k), empty(k), empty(k, d_in))
        elif isinstance(one, CurvatureRequest):
            S, T = (min(one.m or samples, samples, d) for d in (d_in, d_out))
            theta = empty(T, T) if one.loss == "cross_entropy" else None
            bases = empty(d_in, S), empty(S), empty(d_out, T), empty(T), empty(T, S)
            found[name] = Curvature(*bases, theta=theta, damping_S=1.0, damping_T=1.0)
        elif name == "population":
            found[name] = ANY.rows
        elif name == "output_moment":
            found[name] = empty(d_out)
        else:
            found[name] = empty(d_in, d_in) if name == "input_moment" else empty(d_out, d_in)
    return found


def tensors(statistics: Mapping[str, Any]) -> list[Tensor]:
    """All that statistics are made of."""
    parts: list[Any] = []
    for value in statistics.values():
        held = vars(value).values() if isinstance(value, Curvature) else value
        parts += held if not isinstance(value, (Tensor, int)) else [value]
    return [x for x in parts if isinstance(x, Tensor)]
