"""What listens to a pass: the only place with hooks, and the state of the model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loraexp.machine.device import full_precision, to_device
from loraexp.statistics.accumulators import Accumulator, Mask, Outer, Seen, Side
from loraexp.statistics.calibration import Batch, mask_source, samples_in, token_mask
from loraexp.statistics.probes import Pass

Sums = dict[str, list[Accumulator]]


@contextmanager
def prepared(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Within: no parameter requires a gradient, so backward passes compute those of activations
    only, and dropout is off ("eval") or on ("train"); layers whose activations training computes
    again instead of holding them do so here too. Every flag is as it was afterwards, also when a
    batch raises."""
    if mode not in ("eval", "train"):
        raise ValueError(f"init.mode={mode!r}: expected eval or train")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [(module, module.training) for module in model.modules()]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        model.train(mode == "train")
        with nullcontext() if mode == "train" else checkpointed(model):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, flag in training:
            module.training = flag


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Within: the layers that compute their activations again in training do so with dropout off.

    transformers checkpoints a layer in train mode alone, where dropout is on. Here its own function
    for it runs the forward of a layer that stays in eval mode, so every number is that of a pass
    that holds its activations. Only inside the layer's hooks, which run once.
    """
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    if layers:
        from transformers.modeling_layers import GradientCheckpointingLayer

        # the stacks around them carry the flag too
        layers = [m for m in layers if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = again(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def again(layer: Any) -> Callable[..., Any]:
    """The forward of a layer that is run again in the backward pass."""
    forward = layer.forward

    def computed(*arguments: Any, **keywords: Any) -> Any:
        return layer._gradient_checkpointing_func(partial(forward, **keywords), *arguments)

    return computed


class Keep(torch.autograd.Function):
    """Saves a tensor as autograd saves activations: gradient checkpointing recomputes it instead of
    holding it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class BatchHooks:
    """The hooks of one batch: they hand every call of a target to its accumulators, in the pass
    that is under way. `batch` is the host's: a mask is read there, and no device is waited for."""

    def __init__(
        self,
        sums: Sums,
        batch: Batch,
        first_sample: int,
        passes: Sequence[Pass],
        encoder_decoder: bool,
    ) -> None:
        self.sums, self.batch, self.first_sample = sums, batch, first_sample
        self.passes, self.encoder_decoder = passes, encoder_decoder
        self.current: Pass | None = None
        self.reached: set[str] = set()
        self._masks: dict[tuple[Any, ...], Mask | None] = {}
        self._input: Side | None = None  # of the last call: queries, keys and values read the same

    @contextmanager
    def attached(self, targets: Mapping[str, nn.Module]) -> Iterator[None]:
        hooks = {name: self._forward_hook(name) for name in self.sums}
        handles = [
            targets[name].register_forward_hook(hook, with_kwargs=True)
            for name, hook in hooks.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward_hook(self, name: str) -> Callable[..., Tensor | None]:
        def seen_forward(
            module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            h = (args[0] if args else keywords["input"]).detach()
            if not self.passes:
                with full_precision(h.device):
                    self._give(name, h, h)
                return None
            if not torch.is_grad_enabled():
                return None  # the first, discarded forward of a re-entrant checkpoint
            anchor = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            if not output.requires_grad:
                # differentiation begins here: nothing below the first target costs a backward
                output = output + anchor
            # the tensor, not its node: before torch 2.13 a node that Python alone holds has lost
            # what it saved
            made = [Keep.apply(anchor, h)]  # type: ignore[no-untyped-call]

            def seen_backward(mu: Tensor) -> None:
                kept = made.pop() if self.current == self.passes[-1] else made[0]
                self._give(name, kept.grad_fn.saved_tensors[0], mu)

            output.register_hook(seen_backward)
            return output

        return seen_forward

    def _give(self, name: str, h: Tensor, mu: Tensor) -> None:
        self.reached.add(name)
        try:
            mask = self._mask(name, h)
        # rows that are no tokens: a layer that also reads relative positions (DeBERTa's shared
        # keys)
        except ValueError:
            if not all(isinstance(accumulator, Outer) for accumulator in self.sums[name]):
                raise
            mask = None  # a gradient is a sum over whatever the layer read
        samples = samples_in(self.batch)
        if self._input is None or not self._input.goes_on(h, mask):
            self._input = None  # before the next one is there
            self._input = Side(h, mask, samples)
        seen = Seen(self._input, Side(mu, mask, samples), self.first_sample, self.current)
        for accumulator in self.sums[name]:
            if self.current is None or self.current in accumulator.on:
                accumulator.add(seen)
        self._input.rest()

    def _mask(self, name: str, h: Tensor) -> Mask | None:
        """The layer's token mask; layers with equal ones share it."""
        key = (mask_source(name, self.batch, self.encoder_decoder), h.shape[:-1])
        if key not in self._masks:
            self._masks[key] = None
            flags = token_mask(name, h.shape[:-1], self.batch, self.encoder_decoder)
            if flags is not None and not bool(flags.all()):
                read = {
                    "flags": flags.reshape(samples_in(self.batch), -1),
                    "positions": flags.flatten().nonzero().squeeze(1),
                }
                self._masks[key] = Mask(**to_device(read, h.device))
        return self._masks[key]

    def end_of_pass(self) -> None:
        self._input = None
        for accumulators in self.sums.values():
            for accumulator in accumulators:
                if self.current is None or self.current in accumulator.on:
                    accumulator.end_of_pass()
