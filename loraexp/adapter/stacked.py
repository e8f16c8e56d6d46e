"""The adapters of several runs on one frozen base: their rows are blocks of one batch.

Block i of the rows is run i's. The base multiplies all rows at once, the factors of all runs are
one batched product beside it, the new heads are each run's own. No run's rows enter another's
outputs, so the gradient of the sum of the runs' losses is for each of them exactly its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from loraexp.adapter.adapted import AdaptedLinear, Adapters


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

    def thinned(self, x: Tensor, p: float = 0.5, *_: Any, **__: Any) -> Tensor:
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
        **_: Any,
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
        self, run: int, function: Callable[..., Any], arguments: Any, keywords: Mapping[str, Any]
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


def blocks(value: Any, runs: int, rows: int) -> list[Any]:
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


# --------------------------------------------------------------------------------------------------
# layers


class Stack(NamedTuple):
    """The factors of all runs, as they are multiplied: `A` (k, r, d_in), and `B` (k, d_out, r)
    with each run's scaling; zero where a run has a lower rank."""

    A: Tensor
    B: Tensor


class StackedLinear(nn.Module):
    """A frozen linear layer with the low-rank update of each run beside its rows."""

    def __init__(self, layers: Sequence[AdaptedLinear], draws: Draws) -> None:
        super().__init__()
        self.base = layers[0].base
        self.layers = tuple(layers)  # modules of the runs' own models, not of this one
        self.draws = draws
        self._stack: tuple[Any, Any, Stack] | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight: models look at its dtype."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """`x` (k n, ..., d_in) → (k n, ..., d_out)."""
        y: Tensor = self.base(x).contiguous()
        if self.training and any(layer.dropout for layer in self.layers):
            x = self.dropped(x)
        given = self.parameters_of_runs()
        product: Any = StackedProduct.apply
        added: Tensor = product(y, x.to(y.dtype), self.stack(y.dtype), self.layers, *given)
        return added

    def dropped(self, x: Tensor) -> Tensor:
        parts = []
        for i, (layer, part) in enumerate(zip(self.layers, x.chunk(len(self.layers)), strict=True)):
            with self.draws.of(i):
                parts.append(functional.dropout(part, layer.dropout))
        return torch.cat(parts)

    def parameters_of_runs(self) -> list[nn.Parameter | None]:
        """A, B and R of every run."""
        return [p for x in self.layers for p in (x.lora_A, x.lora_B, x.lora_R)]

    def stack(self, dtype: torch.dtype) -> Stack:
        """The factors as they are multiplied in `dtype`, put together once until one of them
        changes."""
        held = self.parameters_of_runs()
        key = (dtype, *((id(p), p._version) for p in held if p is not None))
        if self._stack is None or self._stack[0] != key:
            self._stack = key, held, self._stacked(dtype)
        return self._stack[2]

    @torch.no_grad()
    def _stacked(self, dtype: torch.dtype) -> Stack:
        pairs = [layer.factors.pair(dtype) for layer in self.layers]
        rank = max(len(pair.A) for pair in pairs)
        A = pairs[0].A.new_zeros(len(pairs), rank, pairs[0].A.shape[1])
        B = pairs[0].B.new_zeros(len(pairs), pairs[0].B.shape[0], rank)
        for i, (layer, pair) in enumerate(zip(self.layers, pairs, strict=True)):
            A[i, : len(pair.A)] = pair.A
            torch.mul(pair.B, layer.scaling, out=B[i, :, : len(pair.A)])
        return Stack(A, B)


class StackedProduct(torch.autograd.Function):
    """`y += η (x Aᵀ) Bᵀ` for each run's block, in y's own memory: one batched product for all of
    them. The gradients are those of the runs' parameters, in their dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        stack: Stack,
        layers: Sequence[AdaptedLinear],
        *parameters: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(len(layers), -1, x.shape[-1])
        # another tensor on y's memory: whoever kept y for a backward pass is told of the change
        result = y.detach()
        low = rows @ stack.A.mT
        result.view(len(layers), -1, y.shape[-1]).baddbmm_(low, stack.B.mT)
        ctx.stack, ctx.layers, ctx.shape = stack, layers, x.shape
        ctx.save_for_backward(rows, low)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), stack, (rows, low) = gradients, ctx.stack, ctx.saved_tensors
        of_y, of_x, _, _, *wanted = ctx.needs_input_grad
        blocks = g.reshape(len(ctx.layers), -1, g.shape[-1])
        dx = dA = dB = None
        if of_x or any(wanted[0::3]):
            down = blocks @ stack.B
            dx = (down @ stack.A).view(ctx.shape) if of_x else None
            dA = down.mT @ rows if any(wanted[0::3]) else None
        if any(wanted[1::3]) or any(wanted[2::3]):
            dB = blocks.mT @ low
        own: list[Tensor | None] = []
        for i, layer in enumerate(ctx.layers):
            own += of_run(layer, i, dA, dB, wanted[3 * i : 3 * i + 3])
        return g if of_y else None, dx, None, None, *own


def of_run(
    layer: AdaptedLinear, run: int, dA: Tensor | None, dB: Tensor | None, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """A run's gradients of A, B and R, from those of all runs' stacked A and of B R without
    scaling."""
    A, B, R, r = layer.lora_A, layer.lora_B, layer.lora_R, layer.rank
    of_A = dA[run, :r].to(A.dtype) if dA is not None and wanted[0] else None
    if dB is None or not any(wanted[1:]):
        return [of_A, None, None]
    product = (dB[run, :, :r] * layer.scaling).to(B.dtype)
    of_B = (product if R is None else product @ R.detach().mT) if wanted[1] else None
    of_R = B.detach().mT @ product if R is not None and wanted[2] else None
    return [of_A, of_B, of_R]


class StackedModule(nn.Module):
    """A trained module of each run, such as the new head, on its rows alone."""

    def __init__(self, modules: Sequence[nn.Module], draws: Draws) -> None:
        super().__init__()
        self.each = tuple(modules)
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for i, (module, part) in enumerate(zip(self.each, x.chunk(len(self.each)), strict=True)):
            with self.draws.of(i):
                parts.append(module(part))
        return torch.cat(parts)


# --------------------------------------------------------------------------------------------------
# the model


class StackedModel:
    """One model for several runs, each of which calls its `View` of it.

    The first to call it with a batch has the pass made for all, as many times as a loss calls it;
    each gets the outputs of its rows. The frozen weights are those that the runs share; what trains
    stays in their own models.
    """

    def __init__(self, runs: Sequence[Adapters], draws: Draws) -> None:
        self.draws, first = draws, runs[0]
        if any(other.layers.keys() != first.layers.keys() for other in runs):
            raise Indivisible("the runs adapt different layers")
        if any(frozen(other) != frozen(first) for other in runs):
            raise Indivisible("the runs do not share their frozen weights")
        held = (*first.model.parameters(), *first.model.buffers())
        memo: dict[int, Any] = {id(tensor): tensor for tensor in held}
        for name, layer in first.layers.items():
            memo[id(layer)] = StackedLinear([run.layers[name] for run in runs], draws)
        for name in dict.fromkeys(name.rpartition(".")[0] for name in first.others):
            own = [run.model.get_submodule(name) for run in runs]
            memo[id(own[0])] = StackedModule(own, draws)
        self.model: nn.Module = copy.deepcopy(first.model, memo).train()
        self.views = [View(self, run.model, i) for i, run in enumerate(runs)]
        self.passes: list[list[Any]] = []  # of the batch at hand: each run's outputs

    def begin(self) -> None:
        """Another batch."""
        self.passes = []
        for view in self.views:
            view.calls = 0

    def outputs(
        self, call: int, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> list[Any]:
        """What the model returns for the rows of each run."""
        if call == len(self.passes):
            tensors = [x for x in (*arguments, *keywords.values()) if isinstance(x, Tensor)]
            rows, runs = len(tensors[0]), len(self.views)

            def repeated(x: Any) -> Any:
                own = isinstance(x, Tensor) and x.dim() > 0 and len(x) == rows
                return x.repeat(runs, *[1] * (x.dim() - 1)) if own else x

            with self.draws.checked():
                made = self.model(
                    *map(repeated, arguments), **{k: repeated(x) for k, x in keywords.items()}
                )
            if getattr(made, "loss", None) is not None:
                raise Indivisible("the model makes the loss of all rows itself")
            self.passes.append(blocks(made, runs, rows * runs))
        return self.passes[call]


def frozen(run: Adapters) -> dict[str, int]:
    """Where in memory a run's frozen weights are."""
    own = {id(p) for layer in run for p in layer.factors.parameters()}
    own |= {id(p) for p in run.others.values()}
    named = run.model.named_parameters()
    return {name: p.data_ptr() for name, p in named if id(p) not in own}


class View:
    """The model of several runs as one of them calls it."""

    def __init__(self, stacked: StackedModel, own: nn.Module, run: int) -> None:
        self.stacked, self.own, self.run, self.calls = stacked, own, run, 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        made = self.stacked.outputs(self.calls, arguments, keywords)
        self.calls += 1
        return made[self.run]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)
