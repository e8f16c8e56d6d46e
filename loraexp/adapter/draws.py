"""Random numbers of several runs whose rows are blocks of one batch: each draws from its own
generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Indivisible(RuntimeError):
    """A pass that cannot be told apart by runs: what is returned or drawn is of all rows at
    once."""


class Draws(TorchFunctionMode):
    """Within: every run's rows draw from its own generator, whose `states` these are, in the order
    and in the shapes in which they would without the other runs.

    Dropout, alone and within attention, is made block by block; on a CPU, where it is known how a
    mask is drawn, the masks are, and what they thin out is one product for all runs. A draw of
    anything else moves the generator itself, which `checked` sees.
    """

    def __init__(self, generator: torch.Generator, states: list[Tensor]) -> None:
        super().__init__()
        self.generator, self.states = generator, states
        self.own: int | None = None  # whose rows alone are at work
        self.between = generator.get_state()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(keywords or {})
        if not draws(function, arguments, given):
            return function(*arguments, **given)
        if self.own is not None:
            return self.drawn(self.own, function, arguments, given)
        if plainly_drawn(arguments[0]):
            if function is functional.dropout:
                return self.thinned(*arguments, **given)
            if not given.get("enable_gqa"):
                return self.attended(*arguments, **given)
        rows, runs = len(arguments[0]), len(self.states)
        parts = zip(blocks(arguments, runs, rows), blocks(given, runs, rows), strict=True)
        return torch.cat([self.drawn(i, function, *part) for i, part in enumerate(parts)])

    def thinned(self, x: Tensor, p: float = 0.5, *_: object, **__: object) -> Tensor:
        """`functional.dropout` of the rows of all runs."""
        mask = torch.empty_like(x)
        if p == 1:
            return x * mask.zero_()
        for run, part in enumerate(mask.chunk(len(self.states))):
            self.drawn(run, part.bernoulli_, (1 - p,), {})
        return x * mask.div_(1 - p)

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        **_: object,
    ) -> Tensor:
        """`functional.scaled_dot_product_attention` of them."""
        scores = torch.matmul(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.mT)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril_()
        if attn_mask is None:
            shares = scores.softmax(-1)
        elif attn_mask.dtype == torch.bool:
            # a query that sees nothing has no shares, not those of nothing
            shares = torch._safe_softmax(scores.masked_fill(~attn_mask, -torch.inf), -1)
        else:
            shares = torch._safe_softmax(scores + attn_mask, -1)
        return self.thinned(shares, dropout_p) @ v

    def drawn(
        self, run: int, function: Callable[..., Any], arguments: Any, keywords: Mapping[str, object]
    ) -> Any:
        """What a function returns that draws from a run's generator."""
        self.generator.set_state(self.states[run])
        value = function(*arguments, **keywords)
        self.states[run] = self.generator.get_state()
        self.generator.set_state(self.between)
        return value

    @contextmanager
    def of(self, run: int) -> Iterator[None]:
        """Within: all rows are one run's."""
        self.own = run
        yield
        self.own = None

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Within: these draws. Raises: Indivisible where there were others; then, and after any
        other error, every generator is as it was."""
        before = self.generator.get_state(), list(self.states)
        self.between = before[0]
        try:
            with self:
                yield
            if not torch.equal(self.generator.get_state(), before[0]):
                raise Indivisible("the model draws random numbers that are no dropout")
        except BaseException:
            self.own = None
            self.generator.set_state(before[0])
            self.states[:] = before[1]
            raise


def draws(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> bool:
    """Whether a call of a function is a dropout of something."""
    if function is functional.dropout:
        named = {**dict(zip(("input", "p", "training"), arguments, strict=False)), **keywords}
        return bool(named.get("p", 0.5)) and named.get("training", True)
    if function is functional.scaled_dot_product_attention:
        return bool(keywords.get("dropout_p", arguments[4] if len(arguments) > 4 else 0.0))
    return False


def plainly_drawn(x: Tensor) -> bool:
    """Whether a dropout of `x` is one draw of `bernoulli_` in the shape of what it thins out."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def blocks(value: object, runs: int, rows: int) -> list[Any]:
    """Each run's of a value that has `rows` rows of all `runs`; what has other rows is everybody's.

    Cut once for all: cut one by one, each would have a gradient of all rows, zero beside its own.
    """
    if isinstance(value, Tensor):
        own = value.dim() > 1 and len(value) == rows
        return list(value.chunk(runs)) if own else [value] * runs
    if isinstance(value, Mapping):
        parts = {key: blocks(part, runs, rows) for key, part in value.items()}
        return [type(value)(**{key: part[i] for key, part in parts.items()}) for i in range(runs)]
    if isinstance(value, (tuple, list)):
        each = [blocks(part, runs, rows) for part in value]
        return [type(value)(part[i] for part in each) for i in range(runs)]
    return [value] * runs
