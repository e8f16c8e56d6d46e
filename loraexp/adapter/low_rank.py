"""The factors beside a layer, and their product: two kernels a pass, a cast and join a step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loraexp.adapter.layer import Factors
from loraexp.adapter.linalg import at_least_float32


class Pair(NamedTuple):
    """What a forward pass multiplies with: `A` (k, d_in) and `B` (d_out, k), with `[A; A0]` and
    `[B R, −B0]` where there is an offset, in the dtype of the products. `B` and `R` apart are kept
    for their gradients."""

    A: Tensor
    B: Tensor
    plain_B: Tensor | None = None
    R: Tensor | None = None


class LowRank(nn.Module):
    """The factors beside one layer: a module of their own, so that what shards the base can leave
    them whole.

    `lora_A` (r, d_in), `lora_B` (d_out, r) and the optional `lora_R` (r, r) are parameters whether
    they train or not; `offset_A`, `offset_B` are buffers. All are at least float32.
    """

    lora_R: nn.Parameter | None
    offset_A: Tensor | None
    offset_B: Tensor | None

    def __init__(self, factors: Factors, device: torch.device) -> None:
        super().__init__()

        def own(factor: Tensor) -> Tensor:
            return at_least_float32(factor).to(device, copy=True).contiguous()

        self.lora_A = nn.Parameter(own(factors.A), requires_grad="A" in factors.train)
        self.lora_B = nn.Parameter(own(factors.B), requires_grad="B" in factors.train)
        R = (
            None
            if factors.R is None
            else nn.Parameter(own(factors.R), requires_grad="R" in factors.train)
        )
        self.register_parameter("lora_R", R)
        has_offset = factors.start == "pretrained" and factors.has_product()
        folded = factors.B if factors.R is None else factors.B @ factors.R
        self.register_buffer("offset_A", own(factors.A) if has_offset else None)
        self.register_buffer("offset_B", own(folded) if has_offset else None)
        self._cast: tuple[Any, Any, Pair] | None = None

    def pair(self, dtype: torch.dtype) -> Pair:
        """The factors as they are multiplied in `dtype`: cast and joined once for all passes until
        one of them changes, the parameters themselves where there is nothing to do."""
        A, B, R = self.lora_A, self.lora_B, self.lora_R
        if R is None and self.offset_A is None and A.dtype == dtype:
            return Pair(A, B)
        if A.is_inference():  # keeps no count of its changes
            return self._joined(dtype)
        held = (A, B) if R is None else (A, B, R)  # so that their ids are nobody else's
        key = (dtype, *((id(p), p._version) for p in held))
        if self._cast is None or self._cast[0] != key:
            self._cast = key, held, self._joined(dtype)
        return self._cast[2]

    @torch.no_grad()
    def _joined(self, dtype: torch.dtype) -> Pair:
        A, B, R = self.lora_A.detach(), self.lora_B.detach(), self.lora_R
        folded = B if R is None else B @ R
        if self.offset_A is not None and self.offset_B is not None:
            A, folded = torch.cat([A, self.offset_A]), torch.cat([folded, -self.offset_B], dim=1)
        apart = () if R is None else (B.to(dtype), R.detach().to(dtype))
        return Pair(A.to(dtype), folded.to(dtype), *apart)

    def _apply(self, *arguments: object, **keywords: object) -> object:
        """Moved or cast: what was joined before is of another place."""
        self._cast = None
        return super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]


class LowRankProduct(torch.autograd.Function):
    """`y += η (x Aᵀ) Bᵀ` in y's own memory, two products whether there is an offset or not.

    The products run on the factors' cast, which is made once a step; the gradients are those of the
    parameters, in their dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        R: Tensor | None,
        pair: Pair,
        scaling: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # another tensor on y's memory: whoever kept y for a backward pass is told of the change
        result = y.detach()
        low = add_product(result, rows, pair, scaling)
        ctx.pair, ctx.scaling = pair, scaling
        ctx.dtypes = A.dtype, B.dtype, None if R is None else R.dtype
        ctx.save_for_backward(rows, low)
        ctx.rank, ctx.shape = A.shape[0], x.shape
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), pair, (rows, low) = gradients, ctx.pair, ctx.saved_tensors
        of_y, of_x, of_A, of_B, of_R = ctx.needs_input_grad[:5]
        flat, r = g.reshape(-1, g.shape[-1]), ctx.rank
        dx = dA = dB = dR = None
        if of_x or of_A:
            down = (flat @ pair.B).mul_(ctx.scaling)
            dx = (down @ pair.A).view(ctx.shape) if of_x else None
            dA = (down[:, :r].mT @ rows).to(ctx.dtypes[0]) if of_A else None
        if of_B or of_R:
            low = low[:, :r] * ctx.scaling
            if of_R:
                dR = ((flat @ pair.plain_B).mT @ low).to(ctx.dtypes[2])
            if of_B:
                dB = (flat.mT @ (low if pair.R is None else low @ pair.R.mT)).to(ctx.dtypes[1])
        return g if of_y else None, dx, dA, dB, dR, None, None


def add_product(y: Tensor, rows: Tensor, pair: Pair, scaling: float) -> Tensor:
    """`y += η (x Aᵀ) Bᵀ` in place; returns `x Aᵀ` (n, k)."""
    low = (rows @ pair.A.mT).to(y.dtype)
    y.view(-1, y.shape[-1]).addmm_(low, pair.B.mT, alpha=scaling)
    return low
