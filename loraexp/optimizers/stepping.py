"""The optimizer shell that every training rule shares: equal shapes stacked, one kernel per stack.

The factors of layers of equal shape live in one contiguous tensor `(n, …)`, of which the model's
parameters are views: a step costs one kernel per shape and factor instead of one per layer, and r ×
r systems are solved in one batch. Weights narrower than float32 keep a float32 master and float32
moments, and are rounded once per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import AdaptedLinear, Adapters, local
from loraexp.adapter.linalg import at_least_float32
from loraexp.machine.device import is_accelerator

# the name of AdamW stands here too: rules of `loraexp new` have imported it from here
from loraexp.optimizers.elementwise import AdamW as AdamW
from loraexp.optimizers.elementwise import Base, State
from loraexp.optimizers.grams import SingularSystem


class Block:
    """Parameters of one shape as one tensor `values` (n, …) in float32 or better.

    `factor` is "A", "B" or "R" where they are that factor of the adapted `layers`, None for any
    other weight.
    """

    def __init__(
        self,
        names: list[str],
        parameters: list[nn.Parameter],
        factor: str | None = None,
        layers: Sequence[AdaptedLinear] = (),
    ) -> None:
        self.names, self.parameters, self.factor, self.layers = names, parameters, factor, layers
        # of weights that processes hold in pieces, this one's: a rule for them is elementwise
        held = [local(p.detach()) for p in parameters]
        self.values = at_least_float32(held[0][None] if len(held) == 1 else torch.stack(held))
        self._stacked: Tensor | None = None
        self.has_master = self.values.dtype != parameters[0].dtype
        if not self.has_master and len(parameters) > 1:  # one is its own view
            for parameter, value in zip(parameters, self.values, strict=True):
                parameter.data = value

    @property
    def key(self) -> nn.Parameter:
        """The parameter under which the state of the whole block is kept."""
        return self.parameters[0]

    def gradient(self) -> Tensor | None:
        """The gradients (n, …) in the dtype of `values`; None where there is none at all, zero
        where only some are missing."""
        gradients = [None if p.grad is None else local(p.grad) for p in self.parameters]
        if all(g is None for g in gradients):
            return None
        if not self.has_master and local(self.key).data_ptr() != self.values.data_ptr():
            raise RuntimeError(
                f"{self.names[0]} was moved after its optimizer was built: build the optimizer"
                " after moving the model"
            )
        known = [
            torch.zeros_like(local(p)) if g is None else g
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        if len(known) == 1:
            return known[0][None].to(self.values.dtype)
        if any(g.dtype != self.values.dtype for g in known):
            return torch.stack(known).to(self.values.dtype)
        # kept, because fresh memory of this size costs more than the copy into it
        if self._stacked is None:
            self._stacked = torch.empty_like(self.values)
        return torch.stack(known, out=self._stacked)

    def write_back(self) -> None:
        """Round the master into the parameters; where they are the values, only say that they
        changed: autograd cannot see it, and whoever keeps something made of them looks there."""
        if self.has_master:
            torch._foreach_copy_([local(p) for p in self.parameters], list(self.values))
        elif self.factor:
            torch.autograd.graph.increment_version(self.parameters)


def factor_blocks(adapters: Adapters, factors: Sequence[str]) -> list[Block]:
    """The trained ones among `factors`, layers of equal shape and scaling together: A then B then R
    of each such set."""
    alike: dict[Any, list[tuple[str, AdaptedLinear]]] = {}
    for name, layer in adapters.layers.items():
        described = [
            (p.shape, p.dtype, p.device, p.requires_grad)
            for p in (layer.lora_A, layer.lora_B, layer.lora_R)
            if p is not None
        ]
        alike.setdefault((tuple(described), layer.scaling), []).append((name, layer))
    blocks = []
    for named_layers in alike.values():
        names, layers = [name for name, _ in named_layers], [layer for _, layer in named_layers]
        for factor in factors:
            parameters = [
                p
                for layer in layers
                if (p := getattr(layer, f"lora_{factor}")) is not None and p.requires_grad
            ]
            if parameters:
                blocks.append(
                    Block([f"{name}.lora_{factor}" for name in names], parameters, factor, layers)
                )
    return blocks


def head_section(adapters: Adapters, lr: float, head_lr: float | None) -> tuple[list[Block], float]:
    """The new head, or every weight under `init=full`, with its rate: each parameter by itself,
    nothing is copied."""
    blocks = [Block([name], [parameter]) for name, parameter in adapters.others.items()]
    return blocks, lr if head_lr is None else head_lr


class AdapterOptimizer(torch.optim.Optimizer):
    """Steps blocks of parameters by a base rule; a training rule changes `directions`, the gradient
    that the base sees.

    A section is `(blocks, learning rate)` and becomes one parameter group with `lr`, `initial_lr`
    and `weight_decay`. `param.grad` is read and never written, so clipping happens outside. A
    missing gradient of an adapted layer counts as zero; any other weight without a gradient is left
    alone.
    """

    def __init__(
        self, sections: Sequence[tuple[list[Block], float]], *, weight_decay: float, base: Base
    ) -> None:
        sections = [(blocks, lr) for blocks, lr in sections if blocks]
        if not sections:
            raise ValueError(
                "nothing trains: no factor of any adapted layer and no other weight requires a"
                " gradient"
            )
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay={weight_decay}: expected a number ≥ 0")
        groups = []
        for blocks, lr in sections:
            if not (math.isfinite(lr) and lr >= 0):
                raise ValueError(f"lr={lr}: expected a number ≥ 0")
            named = [
                pair for block in blocks for pair in zip(block.names, block.parameters, strict=True)
            ]
            groups.append(
                {"params": named, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay}
            )
        super().__init__(groups, {})
        self.base = base
        # on an accelerator: how many steps a rule has broken, which whoever reads the log asks
        self.trouble: Tensor | None = None
        self.blocks = [blocks for blocks, _ in sections]
        for blocks in self.blocks:
            for block, state in zip(blocks, self.new_states(blocks), strict=True):
                self.state[block.key] = state | (
                    {"master": block.values} if block.has_master else {}
                )

    def new_states(self, blocks: list[Block]) -> list[State]:
        """The state of each block before the first step."""
        return [self.base.state(block.values) for block in blocks]

    def directions(self, blocks: list[Block], gradients: list[Tensor]) -> list[Tensor]:
        """What the base rule is given in place of the gradients; touches no state."""
        return gradients

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, blocks in zip(self.param_groups, self.blocks, strict=True):
            self._step_group(group, blocks)
        return loss

    def _step_group(self, group: dict[str, Any], blocks: list[Block]) -> None:
        found = [(block, block.gradient()) for block in blocks]
        if all(gradient is None for _, gradient in found):
            return
        # A and B are stepped as pairs, so a factor without a gradient stays in its place with a
        # gradient of zero.
        known = [
            (b, torch.zeros_like(b.values) if g is None else g)
            for b, g in found
            if g is not None or b.factor
        ]
        blocks, gradients = [b for b, _ in known], [g for _, g in known]
        try:
            directions = self.directions(blocks, gradients)
            self.screen(blocks, directions, gradients)
            self.apply(group, blocks, directions)
        except SingularSystem as problem:
            layers = next(b.layers for b in blocks[problem.block :] if b.factor)
            # the batch holds A Aᵀ of all layers, then BᵀB of all
            where = layers[problem.index % len(layers)].name
            raise FloatingPointError(
                f"step {self._step_of(blocks)}, layer {where}: {problem}"
            ) from None
        for block in blocks:
            block.write_back()

    def apply(self, group: dict[str, Any], blocks: list[Block], directions: list[Tensor]) -> None:
        """Move the blocks' values along the directions."""
        states = [self.state[block.key] for block in blocks]
        self.base.update(
            [b.values for b in blocks], directions, states, group["lr"], group["weight_decay"]
        )

    def _step_of(self, blocks: list[Block]) -> int:
        return int(self.state[blocks[0].key]["step"]) + 1

    def _require_finite(self, blocks: list[Block], directions: list[Tensor]) -> None:
        """Raise `FloatingPointError`, naming step and parameter, before anything not finite enters
        the state.

        NaN and Inf survive matrix products and sums, so one sum per group, one synchronisation,
        screens all of it.
        """
        if math.isfinite(torch.stack([d.sum() for d in directions]).sum().item()):
            return
        for block, direction in zip(blocks, directions, strict=True):
            for name, parameter, row in zip(block.names, block.parameters, direction, strict=True):
                if parameter.grad is not None and not parameter.grad.isfinite().all():
                    what, fix = "the gradient", "lower lr, warm up longer, or look at this batch"
                elif not row.isfinite().all():
                    what, fix = "the preconditioned gradient", "raise optimizer.damping"
                else:
                    continue
                raise FloatingPointError(
                    f"step {self._step_of(blocks)}: {what} of {name} is not finite: {fix}"
                )

    def screen(
        self, blocks: list[Block], directions: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Raise where a direction is not finite. An accelerator is not made to wait: there the
        gradient's norm tells of gradients, at the log, and `trouble` of what a rule made of them.
        """
        if not is_accelerator(blocks[0].values.device):
            return self._require_finite(blocks, directions)
        changed = [(d, g) for d, g in zip(directions, gradients, strict=True) if d is not g]
        self.watch([d for d, _ in changed], [g for _, g in changed])

    def watch(self, steps: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """On an accelerator: count on the device a step that is not finite though its gradients
        are."""
        if not steps or not is_accelerator(steps[0].device):
            return
        ours, theirs = (
            torch.stack([x.sum() for x in some]).sum().isfinite() for some in (steps, gradients)
        )
        bad = (theirs & ~ours).float()
        self.trouble = bad if self.trouble is None else self.trouble + bad

    def broken(self) -> str:
        """The first parameter that is not finite, of an optimizer in trouble: it is read, and may
        wait."""
        for blocks in self.blocks:
            for block in blocks:
                rows = block.values.flatten(1).isfinite().all(1).tolist()
                if not all(rows):
                    return block.names[rows.index(False)]
        return "a step"

    def state_bytes(self) -> int:
        """Bytes of moments, masters and counters."""
        return sum(tensor.nbytes for state in self.state.values() for tensor in state.values())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore bit by bit, a block at a time: PyTorch's own loader would round the float32 state
        of narrower weights, and hold all of it twice."""
        own = dict(self.state)
        super().load_state_dict({**state_dict, "state": {}})
        self.state.clear()
        self.state.update(own)
        parameters = [p for group in self.param_groups for p in group["params"]]
        saved = {parameters[index]: state for index, state in state_dict["state"].items()}
        for blocks in self.blocks:
            for block in blocks:
                mine, theirs = self.state[block.key], dict(saved.get(block.key, {}))
                if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
                    raise ValueError(
                        f"the saved state of {block.names[0]} holds {sorted(theirs)}, expected"
                        f" {sorted(mine)} in the shapes of this run: resume with the optimizer and"
                        " the layers that wrote it"
                    )
                for key, tensor in mine.items():
                    tensor.copy_(theirs[key])
