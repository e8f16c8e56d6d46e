"""Attention of rows whose tokens lie one after another: rows again for its products alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from loraexp.machine.device import full_precision
from loraexp.models.dropout import multiplier


@dataclass(eq=False)
class Layout:
    """Where the T tokens of B rows are: in one line, and in an array (B, L) padded on the right.

    A place of the array that is padding is filled with the line's first token where that is cheaper
    than zeros: attention gives it no weight, and nobody reads what it becomes.
    """

    lengths: Tensor  # (B,) on the device
    width: int  # L of the batch as it was given
    slots: Tensor  # (T,) a token's place in the flat padded array
    source: Tensor  # (B, M) the token at a place of rows as wide as the longest, M
    places: Tensor  # (T,) a token's place in such rows
    full: bool  # whether no place of them is padding

    @classmethod
    def of(cls, lengths: Sequence[int], width: int, device: torch.device) -> Layout:
        sizes = np.asarray(lengths, dtype=np.int64)
        longest = int(sizes.max())
        ends = np.cumsum(sizes)
        starts, rows = ends - sizes, np.repeat(np.arange(len(sizes)), sizes)
        columns = np.arange(ends[-1]) - starts[rows]
        source = np.zeros((len(sizes), longest), dtype=np.int64)
        source[rows, columns] = np.arange(ends[-1])

        def here(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        return cls(
            here(sizes),
            width,
            here(rows * width + columns),
            here(source),
            here(rows * longest + columns),
            bool((sizes == longest).all()),
        )

    @cached_property
    def firsts(self) -> Tensor:
        """Each row's first token."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def columns(self) -> Tensor:
        """Each token's number in its row."""
        return self.slots % self.width

    @cached_property
    def bias(self) -> Tensor | None:
        """What is added to the scores (B, 1, 1, M): −∞ at padding; None where there is none."""
        if self.full:
            return None
        there = (
            torch.arange(self.source.shape[1], device=self.lengths.device) < self.lengths[:, None]
        )
        return torch.zeros(there.shape, device=there.device).masked_fill_(~there, -torch.inf)[
            :, None, None
        ]

    def heads(self, number: int, *, first: bool = False) -> tuple[Tensor, Tensor]:
        """Of tokens as `number` heads each, flat: the one at each place of the heads' rows (B, H,
        M), and the place of each (T, H). `first`: of each row's first token, rows of one."""
        key = number, first
        if key not in self._heads:
            source = torch.arange(len(self.lengths), device=self.lengths.device)[:, None]
            source, places, longest = (
                (source, source[:, 0], 1)
                if first
                else (self.source, self.places, self.source.shape[1])
            )
            each = torch.arange(number, device=source.device)
            row, column = places // longest, places % longest
            self._heads[key] = (
                (source[:, None] * number + each[:, None]).flatten(),
                ((row[:, None] * number + each) * longest + column[:, None]).flatten(),
            )
        return self._heads[key]

    @cached_property
    def _heads(self) -> dict[tuple[int, bool], tuple[Tensor, Tensor]]:
        return {}


class Moved(torch.autograd.Function):
    """Rows of `x` (n, d) at other places: `x[source]`, and its gradient from `places` back.

    Where a source stands at several places, all but the one in `places` are padding, whose gradient
    is zero or is not wanted.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class Back(torch.autograd.Function):
    """Rows of heads (B·H·M, d) as tokens again: `x[places]`; the gradient of padding is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,), (g,) = ctx.saved_tensors, gradients
        return g.new_zeros(ctx.size, g.shape[1]).index_copy_(0, places, g), None


class DroppedAttention(torch.autograd.Function):
    """`softmax(η Q Kᵀ + bias) ∘ D · V` for matrices (B·H, m, d), D the multiplier of dropout."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, p: float
    ) -> Tensor:
        scores = (
            torch.bmm(q, k.mT).mul_(scale)
            if bias is None
            else torch.baddbmm(bias, q, k.mT, alpha=scale)
        )
        share = scores.softmax(-1)
        D = multiplier(share.shape, p, share)
        thinned = share * D
        ctx.save_for_backward(q, k, v, share, D, thinned)
        ctx.scale = scale
        return torch.bmm(thinned, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (q, k, v, share, D, thinned) = gradients, ctx.saved_tensors
        of_q, of_k, of_v = ctx.needs_input_grad[:3]
        dq = dk = dv = None
        if of_v:
            dv = torch.bmm(thinned.mT, g)
        if of_q or of_k:
            scores = torch._softmax_backward_data(
                torch.bmm(g, v.mT).mul_(D), share, -1, share.dtype
            ).mul_(ctx.scale)
            dq = torch.bmm(scores, k) if of_q else None
            dk = torch.bmm(scores.mT, q) if of_k else None
        return dq, dk, dv, None, None, None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    causal: bool,
    p: float = 0.0,
) -> Tensor:
    """Attention within each row: tokens (T, H, d) → (T, H, d); `q` of each row's first token alone
    where it has B of them. Keys and values may have fewer heads, which several queries share."""
    first = len(q) != len(k)
    rows, heads, width = len(layout.lengths), q.shape[1], q.shape[2]

    def moved(x: Tensor, first: bool = False) -> Tensor:
        source, places = layout.heads(x.shape[1], first=first)
        flat: Tensor = Moved.apply(x.reshape(-1, width), source, places)  # type: ignore[no-untyped-call]
        return flat.view(rows, x.shape[1], -1, width)

    given = moved(q, first), moved(k), moved(v)
    if p and q.device.type == "cpu" and not causal:
        bias = layout.bias
        if bias is not None:
            bias = bias.to(q.dtype).expand(-1, heads, -1, -1).flatten(0, 1)
        with full_precision(q.device):  # its own backward pass is without, too
            out = DroppedAttention.apply(*(x.flatten(0, 1) for x in given), bias, scale, p)  # type: ignore[no-untyped-call]
    else:
        # padding stands behind every token, where none of a causal model looks
        bias = None if causal else layout.bias
        out = functional.scaled_dot_product_attention(
            *given,
            attn_mask=None if bias is None else bias == 0,
            dropout_p=p,
            is_causal=causal,
            scale=scale,
            enable_gqa=k.shape[1] != heads,
        )
    _, places = layout.heads(heads, first=first)
    tokens: Tensor = Back.apply(out.reshape(-1, width), places)  # type: ignore[no-untyped-call]
    return tokens.view(-1, heads, width)
