"""Bytes that an initializer needs for one layer, beside its weight and its statistics: counted on
layers without numbers, as a run counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from loraexp.machine.meta import META
from loraexp.run import workplace
from loraexp.run.components import make
from loraexp.run.initialise import settled
from loraexp.statistics import Size

# what follows an initialisation does not change how much it needs
ANY = Training(lr=1e-3, factor=1.0, warmup_ratio=0.1, steps=10, epochs=1.0, rows=100)


def work_of(
    parts: Mapping[str, Any],
    sizes: Mapping[str, Size],
    dtype: torch.dtype,
    room: int | None = None,
    *,
    host: bool = False,
) -> int:
    """Of the layer that needs most; a tensor that the initializer leaves to the ledger is among it.

    `room`: bytes that are free beside weights, sums and factors on a card; a layer that needs more
    is decomposed on the host. `host`: its whole matrices were summed there, and come from there.
    """
    most = 0
    for size in set(sizes.values()):
        layer = without_numbers(parts, size, dtype)
        need = work(parts, size, dtype)
        need += workplace.held(layer) if host else 0
        if room is None or workplace.fits(need, room):
            most = max(most, need)
    return most


def work(parts: Mapping[str, Any], size: Size, dtype: torch.dtype) -> int:
    """Of a layer of one size."""
    initializer = settled(make(dict(parts["init"])), ANY)
    layer = without_numbers(parts, size, dtype)
    return workplace.work(layer, initializer, parts["rank"], parts["precision"])


def without_numbers(parts: Mapping[str, Any], size: Size, dtype: torch.dtype) -> Layer:
    """A layer of one size with what the initializer is given of it."""
    initializer = settled(make(dict(parts["init"])), ANY)
    made = as_initializer(initializer.func)
    asked = made.request(parts["rank"], **initializer.keywords)
    W = torch.empty(size.d_out, size.d_in, dtype=dtype, device=META)
    given = statistics_of(made, asked, size, int(parts["calibration"][0]))
    return Layer(name="layer", W=W, **given)


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
