"""The adapters of several runs on one frozen base: their rows are blocks of one batch.

Block i of the rows is run i's. The base multiplies all rows at once, the factors of all runs are
one batched product beside it, the new heads are each run's own. No run's rows enter another's
outputs, so the gradient of the sum of the runs' losses is for each of them exactly its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from loraexp.adapter.adapted import AdaptedLinear, Adapters
from loraexp.adapter.draws import Draws, Indivisible, blocks

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
        parts = g.reshape(len(ctx.layers), -1, g.shape[-1])
        dx = dA = dB = None
        if of_x or any(wanted[0::3]):
            down = parts @ stack.B
            dx = (down @ stack.A).view(ctx.shape) if of_x else None
            dA = down.mT @ rows if any(wanted[0::3]) else None
        if any(wanted[1::3]) or any(wanted[2::3]):
            dB = parts.mT @ low
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
        self.passes: list[list[object]] = []  # of the batch at hand: each run's outputs

    def begin(self) -> None:
        """Another batch."""
        self.passes = []
        for view in self.views:
            view.calls = 0

    def outputs(
        self, call: int, arguments: tuple[Any, ...], keywords: Mapping[str, object]
    ) -> list[Any]:
        """What the model returns for the rows of each run."""
        if call == len(self.passes):
            tensors = [x for x in (*arguments, *keywords.values()) if isinstance(x, Tensor)]
            rows, runs = len(tensors[0]), len(self.views)

            def repeated(x: Any) -> object:
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

    def __call__(self, *arguments: object, **keywords: object) -> object:
        made = self.stacked.outputs(self.calls, arguments, keywords)
        self.calls += 1
        return made[self.run]

    def __getattr__(self, name: str) -> object:
        return getattr(self.own, name)
