"""Whole matrices of a group of layers, and the leading triplets of gradients, held whole or never
formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from loraexp.adapter.layer import LeadingRequest
from loraexp.adapter.linalg import SVD, Product, randomized_svd, randomized_svd_steps
from loraexp.statistics.accumulators import Accumulator, Diagonal, InputMoment, Outer
from loraexp.statistics.calibration import layer_generator
from loraexp.statistics.checks import Request
from loraexp.statistics.plan import Plan
from loraexp.statistics.probes import LOSS
from loraexp.statistics.sweeps import Sweeper

MATRICES = frozenset({"gradient", "summed_gradient", "input_moment", "output_moment"})


def whole_matrices(
    sweeper: Sweeper,
    likes: Mapping[str, Tensor],
    needs: frozenset[str],
    request: Request,
    chosen: Plan,
    small: dict[str, dict[str, Any]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One sweep for the whole matrices of a group of layers; each is let go of before the next
    layer is asked for."""
    wanted = (needs & MATRICES) | ({"gradient"} if chosen.leading == "whole" else set())
    make: dict[str, Callable[[Tensor], Accumulator]] = {
        "gradient": lambda x: Outer(LOSS, x, host=chosen.host),
        "summed_gradient": lambda x: Outer(LOSS, x, host=chosen.host),
        "input_moment": lambda x: InputMoment(
            None if wanted == {"input_moment"} else LOSS, x, host=chosen.host
        ),
        "output_moment": lambda x: Diagonal(LOSS, x),
    }
    order = [statistic for statistic in make if statistic in wanted]
    sums = (
        sweeper.run(lambda: {n: [make[s](x) for s in order] for n, x in likes.items()})
        if order
        else {}
    )
    for name in likes:
        values = small.pop(name)
        for statistic, accumulator in zip(order, sums.pop(name, []), strict=True):
            values[statistic] = scaled(statistic, accumulator, sweeper)
        if chosen.leading == "whole":
            asked = request["leading_gradient"]
            assert isinstance(asked, LeadingRequest)
            generator = layer_generator(sweeper.seed, name)
            leading = randomized_svd(
                values["gradient"], asked.k, asked.oversample, asked.iterations, generator
            )
            values["leading_gradient"] = compact(leading)
            values["gradient_norm"] = torch.linalg.matrix_norm(values["gradient"])
            if "gradient" not in needs:
                del values["gradient"]
        yield name, values
        del values


def scaled(statistic: str, accumulator: Accumulator, sweeper: Sweeper) -> Tensor:
    """A sum over the terms of the loss as the statistic that it stands for, in its own memory.

    The terms are label tokens where they are not samples: the sample's own loss `L_i` is then their
    sum times n/ΣT.
    """
    total, *count = accumulator.sums
    share = sweeper.samples / max(sweeper.losses, 1)  # n/ΣT; 1 where the terms are the samples
    if statistic == "gradient":
        return total.div_(sweeper.losses)
    if statistic == "summed_gradient":
        return total.mul_(share)
    total /= count[0].to(total)
    return total.mul_(share**2) if statistic == "output_moment" else total


def sketched_leading(
    sweeper: Sweeper, likes: Mapping[str, Tensor], request: Request
) -> dict[str, SVD]:
    """The leading singular triplets of every gradient without a whole one: products of all layers,
    a sweep for each."""
    asked = request["leading_gradient"]
    assert isinstance(asked, LeadingRequest)
    steps = {
        name: randomized_svd_steps(
            x.shape[0],
            x.shape[1],
            asked.k,
            asked.oversample,
            asked.iterations,
            layer_generator(sweeper.seed, name),
            x,
        )
        for name, x in likes.items()
    }
    products = {name: next(step) for name, step in steps.items()}
    found: dict[str, SVD] = {}
    while not found:
        current = products

        def sketch(name: str, product: Product) -> Accumulator:
            left, right = (
                product.block if product.side == side else None for side in ("left", "right")
            )
            return Outer(LOSS, likes[name], left, right)

        def make(current: Mapping[str, Product] = current) -> dict[str, list[Accumulator]]:
            return {name: [sketch(name, product)] for name, product in current.items()}

        sums = sweeper.run(make)
        products = {}
        for name, product in current.items():
            answer = sums.pop(name)[0].sums[0] / sweeper.losses
            try:
                products[name] = steps[name].send(answer if product.side == "right" else answer.mT)
            except StopIteration as stop:
                found[name] = compact(stop.value)
    return found


def compact(factors: SVD) -> SVD:
    """A copy that keeps nothing else of the decomposition in memory."""
    return SVD(*(x.clone(memory_format=torch.contiguous_format) for x in factors))
