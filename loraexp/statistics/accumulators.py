"""Sums over calibration tokens: each is handed a layer's input `h` and output gradient `μ` as the
pass brings them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from loraexp.adapter.linalg import double
from loraexp.machine import device as devices
from loraexp.statistics.probes import Pass

COPIED = 2**22  # numbers of a narrower activation that are copied at once


@dataclass
class Mask:
    """The unpadded tokens of a batch: `flags` (samples, tokens) and the positions of its True
    entries, flattened."""

    flags: Tensor
    positions: Tensor


class Side:
    """What one call of a layer read, or the gradient at what it gave: (…, d), and which rows of it
    count. What accumulators make of it is made once, also for layers that read the same."""

    def __init__(self, x: Tensor, mask: Mask | None, samples: int) -> None:
        self.x, self.mask, self.samples = x, mask, samples
        self._tokens: dict[torch.dtype, Tensor] = {}
        self._pooled: dict[torch.dtype, Tensor] = {}

    def tokens(self, dtype: torch.dtype) -> Tensor:
        """The unpadded rows (tokens, d)."""
        if dtype not in self._tokens:
            x = self.x.flatten(0, -2)
            rows = x if self.mask is None else x.index_select(0, self.mask.positions)
            self._tokens[dtype] = rows.to(dtype)
        return self._tokens[dtype]

    def part(self, rows: slice) -> Tensor:
        """Some of the unpadded rows, in their own dtype."""
        x = self.x.flatten(0, -2)
        return x[rows] if self.mask is None else x.index_select(0, self.mask.positions[rows])

    def pooled(self, dtype: torch.dtype) -> Tensor:
        """The sums over each sample's unpadded tokens (samples, d)."""
        if dtype not in self._pooled:
            x = self.x.reshape(self.samples, -1, self.x.shape[-1])
            self._pooled[dtype] = (
                x.sum(1, dtype=dtype)
                if self.mask is None
                else torch.bmm(self.mask.flags.unsqueeze(1).to(dtype), x.to(dtype)).squeeze(1)
            )
        return self._pooled[dtype]

    def rest(self) -> None:
        """Hold the rows no longer, and remember where they are: layers that read the same may
        follow."""
        self.storage = weakref.ref(self.x.untyped_storage())
        self.place = place(self.x)
        if self.mask is None:
            self._tokens.clear()  # views of them
        self.x = self.x.new_empty(0)

    def goes_on(self, x: Tensor, mask: Mask | None) -> bool:
        """Whether these were the rows of `x`, and the same of them count; they are held again."""
        same = self.storage() is x.untyped_storage() and self.place == place(x)
        if same and self.mask is mask:
            self.x = x
            return True
        return False


def parts(dtype: torch.dtype, *sides: Side) -> Iterator[tuple[Tensor, ...]]:
    """The unpadded rows of sides that have the same in one dtype; of narrower ones some at a time,
    so that the copies are never as large as what they are of."""
    if all(side.x.dtype == dtype for side in sides):
        yield tuple(side.tokens(dtype) for side in sides)
        return
    made: list[Tensor] = []  # the copies, each in the place of the one before
    for rows in spans(rows_of(sides[0]), max(side.x.shape[-1] for side in sides)):
        narrow = [side.part(rows) for side in sides]
        made = made or [torch.empty(x.shape, dtype=dtype, device=x.device) for x in narrow]
        yield tuple(m[: len(x)].copy_(x) for m, x in zip(made, narrow, strict=True))


def rows_of(side: Side) -> int:
    """How many of its rows count."""
    return side.x.shape[:-1].numel() if side.mask is None else len(side.mask.positions)


def spans(rows: int, columns: int) -> Iterator[slice]:
    """Rows that are copied together."""
    step = max(1, COPIED // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def place(x: Tensor) -> tuple[Any, ...]:
    """Where in its storage a tensor's numbers are."""
    return x.storage_offset(), x.shape, x.stride()


@dataclass
class Seen:
    """One call of a layer: input `h` (…, d_in) and, in a backward pass, `mu` (…, d_out), the
    gradient at its output."""

    h: Side
    mu: Side
    first_sample: int  # place of the batch's first sample in the whole calibration set
    which: Pass | None  # None in a sweep that only runs forward

    def side(self, vector: Vector) -> Side:
        return self.h if vector == "input" else self.mu


Vector = Literal["input", "output"]


class Accumulator:
    """A sum over calls. `on` names the passes that feed it (empty: a sweep that only runs forward);
    `sums` are its tensors, which processes add up; `end_of_pass` follows each pass of each
    batch."""

    on: tuple[Pass, ...]
    sums: tuple[Tensor, ...]

    def add(self, seen: Seen) -> None:
        raise NotImplementedError

    def end_of_pass(self) -> None:
        """Fold in what had to wait for every call of the layer."""


class Whole:
    """`Σ x yᵀ` over tokens, (d_x, d_y), on a device, or on its host, where some columns at a time
    come from there."""

    def __init__(self, rows: int, columns: int, like: Tensor, *, host: bool = False) -> None:
        self.host = host
        with devices.on_host() if host else nullcontext(like.device) as place:
            self.sum = torch.zeros(rows, columns, dtype=like.dtype, device=place)

    def add(self, x: Side, y: Side) -> None:
        """The tokens of a call."""
        dtype = self.sum.dtype
        if not self.host:
            for pair in parts(dtype, x, *([] if y is x else [y])):
                self.sum.addmm_(pair[0].mT, pair[-1])
            return
        rows, columns = self.sum.shape
        for some in spans(columns, rows):
            part = self.sum[:, some]
            block = torch.zeros(part.shape, dtype=dtype, device=x.x.device)
            for pair in parts(dtype, x, *([] if y is x else [y])):
                block.addmm_(pair[0].mT, pair[-1][:, some])
            with devices.on_host() as place:
                part += block.to(place)


class Outer(Accumulator):
    """`Lᵀ (Σ μ hᵀ) R`: the gradient, or with blocks L (d_out, a), R (d_in, b) a sketch of it that
    never forms it."""

    def __init__(
        self,
        on: Pass,
        like: Tensor,
        left: Tensor | None = None,
        right: Tensor | None = None,
        *,
        host: bool = False,
    ) -> None:
        self.on, self.left, self.right = (on,), left, right
        rows = like.shape[0] if left is None else left.shape[1]
        columns = like.shape[1] if right is None else right.shape[1]
        self.whole = Whole(rows, columns, like, host=host)
        self.sum = self.whole.sum
        self.sums = (self.sum,)

    def add(self, seen: Seen) -> None:
        dtype = self.sum.dtype
        if self.left is None and self.right is None:
            self.whole.add(seen.mu, seen.h)
            return
        mu, h = (side.x.flatten(0, -2) for side in (seen.mu, seen.h))
        keep = None if seen.h.mask is None else seen.h.mask.flags.reshape(-1, 1)
        copied = mu.dtype != dtype or h.dtype != dtype
        wide = max(mu.shape[1], h.shape[1])
        for rows in spans(len(mu), wide) if copied else (slice(None),):
            self._sketch(
                mu[rows].to(dtype), h[rows].to(dtype), None if keep is None else keep[rows]
            )

    def _sketch(self, mu: Tensor, h: Tensor, keep: Tensor | None) -> None:
        if self.left is not None:
            mu = mu @ self.left
        if self.right is not None:
            h = h @ self.right
        # on the thinner of the two, which is no copy of a whole activation
        if keep is not None:
            mu, h = (mu * keep, h) if mu.shape[1] < h.shape[1] else (mu, h * keep)
        self.sum.addmm_(mu.mT, h)


class Diagonal(Accumulator):
    """`Σ μ²` (d_out,) over unpadded tokens, and their number."""

    def __init__(self, on: Pass, like: Tensor) -> None:
        self.on = (on,)
        self.sum = torch.zeros(like.shape[0], dtype=like.dtype, device=like.device)
        self.count = double(torch.zeros((), device=like.device))
        self.sums = (self.sum, self.count)

    def add(self, seen: Seen) -> None:
        for (mu,) in parts(self.sum.dtype, seen.mu):
            self.sum += mu.square().sum(0)
            self.count += len(mu)


class InputMoment(Accumulator):
    """`Σ h hᵀ` (d_in, d_in) over unpadded tokens, and their number."""

    def __init__(self, on: Pass | None, like: Tensor, *, host: bool = False) -> None:
        self.on = () if on is None else (on,)
        self.whole = Whole(like.shape[1], like.shape[1], like, host=host)
        self.sum = self.whole.sum
        self.count = double(torch.zeros((), device=like.device))
        self.sums = (self.sum, self.count)

    def add(self, seen: Seen) -> None:
        self.whole.add(seen.h, seen.h)
        self.count += rows_of(seen.h)


class Pooled(Accumulator):
    """Holds the pooled rows of a pass until every call of the layer was seen: one called twice is
    pooled over both."""

    def __init__(self, on: Sequence[Pass], vector: Vector, like: Tensor) -> None:
        self.on, self.vector, self.dtype = tuple(on), vector, like.dtype
        self.waiting: Tensor | None = None
        self.place = (0, 0)

    def add(self, seen: Seen) -> None:
        rows = seen.side(self.vector).pooled(self.dtype)
        self.waiting = rows if self.waiting is None else self.waiting + rows
        self.place = (0 if seen.which is None else seen.which.number, seen.first_sample)

    def end_of_pass(self) -> None:
        if self.waiting is not None:
            self.fold(self.waiting)
            self.waiting = None

    def fold(self, rows: Tensor) -> None:
        raise NotImplementedError


class Rows(Pooled):
    """The pooled rows themselves (probes, n, d), each at its sample's place."""

    def __init__(self, on: Sequence[Pass], vector: Vector, like: Tensor, samples: int) -> None:
        super().__init__(on, vector, like)
        width = like.shape[1] if vector == "input" else like.shape[0]
        self.rows = torch.zeros(len(self.on), samples, width, dtype=like.dtype, device=like.device)
        self.sums = (self.rows,)

    def fold(self, rows: Tensor) -> None:
        probe, first = self.place
        self.rows[probe, first : first + len(rows)] = rows


class PooledMoment(Pooled):
    """`Lᵀ M R` and `tr M` of `M = Σ_i v_i v_iᵀ`, `v_i` a sample's pooled row, in float64."""

    def __init__(
        self,
        on: Sequence[Pass],
        vector: Vector,
        like: Tensor,
        left: Tensor | None = None,
        right: Tensor | None = None,
    ) -> None:
        super().__init__(on, vector, like)
        self.left, self.right = left, right
        width = like.shape[1] if vector == "input" else like.shape[0]
        rows = width if left is None else left.shape[1]
        columns = width if right is None else right.shape[1]
        self.sum = double(torch.zeros(rows, columns, device=like.device))
        self.trace = double(torch.zeros((), device=like.device))
        self.sums = (self.sum, self.trace)

    def fold(self, rows: Tensor) -> None:
        rows = double(rows)
        left = rows if self.left is None else rows @ self.left
        right = rows if self.right is None else rows @ self.right
        self.sum.addmm_(left.mT, right)
        self.trace += rows.square().sum()


class TokenMoment(PooledMoment):
    """The same of `M = Σ_i Σ_ω v_iω v_iωᵀ`, over unpadded tokens, for a layer whose pooled rows
    cancel."""

    def add(self, seen: Seen) -> None:
        self.fold(seen.side(self.vector).tokens(self.dtype))


class Cancellation(Pooled):
    """`Σ_i ‖Σ_ω δ_iω‖²` and `Σ_i (Σ_ω ‖δ_iω‖)²`: does pooling over tokens leave anything but
    rounding?"""

    def __init__(self, on: Pass, like: Tensor) -> None:
        super().__init__((on,), "output", like)
        self.sum = double(torch.zeros(2, device=like.device))
        self.sums = (self.sum,)
        self.lengths: Tensor | None = None
        self.resolution = 0.0

    def add(self, seen: Seen) -> None:
        super().add(seen)
        mu = seen.mu.x
        self.resolution = max(self.resolution, torch.finfo(mu.dtype).eps)
        norms = torch.linalg.vector_norm(mu, dim=-1, dtype=self.dtype).unsqueeze(-1)
        own = Side(norms, seen.mu.mask, seen.mu.samples).pooled(self.dtype)
        self.lengths = own if self.lengths is None else self.lengths + own

    def fold(self, rows: Tensor) -> None:
        assert self.lengths is not None
        self.sum += double(torch.stack([rows.square().sum(), self.lengths.square().sum()]))
        self.lengths = None

    def cancels(self, pooled: float, lengths: float) -> bool:
        """Whether `‖Σ_ω δ‖ ≤ max(1e-4, 4 ε) Σ_ω ‖δ‖` in root mean square, ε the resolution of μ's
        dtype, of what `sum` holds."""
        threshold = max(1e-4, 4 * self.resolution)
        return bool(pooled <= threshold**2 * lengths and lengths > 0)
