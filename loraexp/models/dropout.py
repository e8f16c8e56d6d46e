"""Dropout from 16 random bits an element, on a CPU six times as fast as from PyTorch's 53."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LANES, BITS = 4, 16  # of a 64-bit draw


def kept_share(p: float) -> float:
    """Of dropout `p`, the probability that an element stays: of 2⁻¹⁶ the nearest multiple."""
    return round((1 - p) * 2**BITS) / 2**BITS


def multiplier(shape: torch.Size, p: float, like: Tensor) -> Tensor:
    """What dropout multiplies with: 0, or the inverse of the probability of being kept, so that the
    mean is exactly 1; drawn with the default generator of the CPU."""
    share = kept_share(p)
    if not share:
        return like.new_zeros(shape)
    count = shape.numel()
    draws = torch.empty(-(-count // LANES), dtype=torch.int64).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[:count].view(shape)  # −2¹⁵ … 2¹⁵ − 1
    mask = torch.lt(numbers, round(share * 2**BITS) - 2 ** (BITS - 1), out=like.new_empty(shape))
    return mask.mul_(1 / share)


def dropped(x: Tensor, p: float) -> Tensor:
    """Dropout of `x`, in training; on another device than the CPU PyTorch's own."""
    if p == 0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, p)
    return x * multiplier(x.shape, p, x)


def short_dropout(module: nn.Dropout) -> Callable[[Any], Tensor]:
    """The forward pass of a dropout module, with such draws."""

    def forward(x: Tensor) -> Tensor:
        return dropped(x, module.p) if module.training else x

    return forward
