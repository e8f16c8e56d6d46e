"""Sweeps over the calibration batches: the only place with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist

from loraexp.adapter.adapted import shared_out
from loraexp.machine.processes import distributed, gathered
from loraexp.statistics.accumulators import Accumulator, Mask, Outer, Seen
from loraexp.statistics.calibration import (
    Batch,
    Calibration,
    mask_source,
    own_randomness,
    samples_in,
    token_mask,
    tokens_in,
)
from loraexp.statistics.probes import LOSS, Pass, probe_sum

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


class Once:
    """Stands in for the model within a batch: the k-th forward call after each `rewind` is run only
    the first time."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._results: list[Any] = []
        self._next = 0

    def rewind(self) -> Once:
        self._next = 0
        return self

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if self._next == len(self._results):
            self._results.append(self._model(*arguments, **keywords))
        self._next += 1
        return self._results[self._next - 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class BatchHooks:
    """The hooks of one batch: they hand every call of a target to its accumulators, in the pass
    that is under way."""

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
                with torch.autocast(h.device.type, enabled=False):
                    self._give(name, h, h)
                return None
            if not torch.is_grad_enabled():
                return None  # the first, discarded forward of a re-entrant checkpoint
            anchor = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            if not output.requires_grad:
                # differentiation begins here: nothing below the first target costs a backward
                output = output + anchor
            node = [Keep.apply(anchor, h).grad_fn]  # type: ignore[no-untyped-call]

            def seen_backward(mu: Tensor) -> None:
                kept = node.pop() if self.current == self.passes[-1] else node[0]
                self._give(name, kept.saved_tensors[0], mu)

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
        seen = Seen(h, mu, mask, samples_in(self.batch), self.first_sample, self.current)
        for accumulator in self.sums[name]:
            if self.current is None or self.current in accumulator.on:
                accumulator.add(seen)

    def _mask(self, name: str, h: Tensor) -> Mask | None:
        """The layer's token mask; layers with equal ones share it."""
        key = (mask_source(name, self.batch, self.encoder_decoder), h.shape[:-1])
        if key not in self._masks:
            self._masks[key] = None
            flags = token_mask(name, h.shape[:-1], self.batch, self.encoder_decoder)
            if flags is not None and not bool(flags.all()):
                positions = flags.flatten().nonzero().squeeze(1)
                self._masks[key] = Mask(flags.reshape(samples_in(self.batch), -1), positions)
        return self._masks[key]

    def end_of_pass(self) -> None:
        for accumulators in self.sums.values():
            for accumulator in accumulators:
                if self.current is None or self.current in accumulator.on:
                    accumulator.end_of_pass()


class Sweeper:
    """Runs sweeps: each fills accumulators over all batches of all processes, in passes that they
    ask for.

    With several processes each has a share of the batches, in the order of rank; sums and counts
    are reduced at the end of a sweep, so every process ends with the statistics of one that had all
    of them.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        calibration: Calibration,
        mode: Literal["eval", "train"],
        seed: int,
        loss: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.targets, self.calibration = model, dict(targets), calibration
        self.mode, self.seed, self.loss, self.progress = mode, seed, loss, progress
        self.device = next(model.parameters()).device
        self.encoder_decoder = bool(
            getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        )
        given = calibration.batches
        shares = gathered([sum(map(samples_in, given)), len(given), sum(map(tokens_in, given))])
        self.samples, _, self.tokens = (sum(column) for column in zip(*shares, strict=True))
        rank = dist.get_rank() if distributed() else 0
        self.first_sample, self.first_batch = (
            sum(share[k] for share in shares[:rank]) for k in (0, 1)
        )
        if calibration.weighting not in ("samples", "tokens"):
            raise ValueError(
                f"init.weighting={calibration.weighting!r}: expected samples or tokens"
            )
        self.by_sample = (
            calibration.weighting == "samples" and calibration.sample_losses is not None
        )
        self.losses = 0  # terms of the loss in the last sweep that ran it: samples, or label tokens
        self.forwards = self.backwards = 0.0  # passes over all samples so far
        self.expected_batches = 0  # of the whole plan, for the progress display
        self.done_batches = 0

    def run(self, make: Callable[[], Sums], first_samples: int | None = None) -> Sums:
        """Fill the accumulators that `make` makes, from all batches, or from the first samples of
        the first batch alone.

        Raises FloatingPointError naming batch and layer where a sum is not finite; ValueError for a
        layer that no batch runs through to the loss.
        """
        sums = make()
        batches = self.calibration.batches
        if first_samples is not None:
            batches = [
                {name: x[:first_samples] for name, x in batch.items()} for batch in batches[:1]
            ]
        losses, reached = self._accumulate(sums, batches)
        names = list(sums)
        counts = torch.tensor(
            [losses, *(name in reached for name in names)], dtype=torch.int64, device=self.device
        )
        tensors = [
            tensor for accumulators in sums.values() for a in accumulators for tensor in a.sums
        ]
        for tensor in [counts, *tensors]:
            if distributed():
                dist.all_reduce(tensor)
        self.losses = int(counts[0])
        if not all_finite(tensors):
            self._blame(make)
        for name, count in zip(names, counts[1:].tolist(), strict=True):
            if count == 0 and first_samples is None:
                raise ValueError(
                    f"layer {name}: no calibration batch passes through it to the loss, expected at"
                    " least one; drop it from model.targets (with re-entrant gradient"
                    " checkpointing: set use_reentrant=False)"
                )
        return sums

    def _accumulate(
        self, sums: Sums, batches: Sequence[Batch], first: int = 0
    ) -> tuple[int, set[str]]:
        """One pass over batches, which begin with batch `first` of this process; returns the number
        of terms of the loss, and the layers that were seen."""
        passes = sorted(
            {which for accumulators in sums.values() for a in accumulators for which in a.on}
        )
        share = sum(map(samples_in, batches)) / max(
            sum(map(samples_in, self.calibration.batches)), 1
        )
        self.forwards += share
        self.backwards += share * len(passes)
        losses = 0
        reached: set[str] = set()
        sample = self.first_sample + sum(map(samples_in, self.calibration.batches[:first]))
        missing, spare = self._to_keep_step(batches)
        with prepared(self.model, self.mode):
            for index, batch in enumerate(batches, first):
                losses += self._batch(sums, passes, batch, index, sample, reached)
                sample += samples_in(batch)
                self.done_batches += 1
                if self.progress is not None:
                    self.progress(self.done_batches, max(self.expected_batches, self.done_batches))
            for _ in range(missing):
                self._batch({name: [] for name in sums}, passes, spare, 0, 0, set())
        return losses, reached

    def _to_keep_step(self, batches: Sequence[Batch]) -> tuple[int, Batch]:
        """How many batches another process has more, and one to run as often, of which nothing
        counts: where they hold the weights in pieces all have to make as many passes."""
        if not in_pieces(self.model):
            return 0, {}
        shares = gathered((len(batches), batches[:1]))
        spare: Batch = next((held[0] for _, held in shares if held), {})
        return max(count for count, _ in shares) - len(batches), spare

    def _batch(
        self,
        sums: Sums,
        passes: Sequence[Pass],
        given: Batch,
        index: int,
        first_sample: int,
        reached: set[str],
    ) -> int:
        batch = {name: x.to(self.device, non_blocking=True) for name, x in given.items()}
        hooks = BatchHooks(sums, batch, first_sample, passes, self.encoder_decoder)
        once = Once(self.model)
        losses = 0
        randomness = own_randomness(self.device, self.seed, self.first_batch + index)
        # The hooks stay for the backward passes: gradient checkpointing runs the forward again
        # there.
        with randomness, hooks.attached(self.targets), torch.set_grad_enabled(bool(passes)):
            scalars = []
            if not passes:
                self.calibration.outputs(once, batch)
                hooks.end_of_pass()
            for which in passes:
                scalar, counted = self._scalar(once.rewind(), batch, which, first_sample)
                scalars.append(scalar)
                losses += counted
            del once
            for which, scalar in zip(passes, scalars, strict=True):
                hooks.current = which
                if not scalar.requires_grad:
                    raise ValueError(
                        f"batch {index}: its {which.kind} does not depend on any of the {len(sums)}"
                        " target layers; expected a differentiable loss (with re-entrant gradient"
                        " checkpointing: set use_reentrant=False)"
                    )
                scalar.backward(retain_graph=which != passes[-1])
                hooks.end_of_pass()
        reached |= hooks.reached
        return losses

    def _scalar(
        self, once: Once, batch: Batch, which: Pass, first_sample: int
    ) -> tuple[Tensor, int]:
        """What a pass differentiates, and the number of losses that are in it: samples, or label
        tokens."""
        if which == LOSS and self.by_sample:
            assert self.calibration.sample_losses is not None
            return self.calibration.sample_losses(once, batch).sum(), samples_in(batch)
        if which == LOSS:
            return self.calibration.loss_sum(once, batch)
        return (
            probe_sum(
                self.calibration.outputs(once, batch), which, self.loss, self.seed, first_sample
            ),
            0,
        )

    def _blame(self, make: Callable[[], Sums]) -> None:
        """Find the batch and the layer whose sums are not finite, by running the batches again one
        at a time."""
        where = (
            "the sum over batches"
            if not distributed()
            else "the sum over batches, or a batch of another process"
        )
        alone = not in_pieces(self.model)  # else no process can run a batch by itself
        for index in range(len(self.calibration.batches) if alone else 0):
            sums = make()
            self._accumulate(sums, [self.calibration.batches[index]], index)
            broken = [
                name
                for name, held in sums.items()
                if not all_finite([x for a in held for x in a.sums])
            ]
            if broken:
                where = f"batch {self.first_batch + index}, layer {broken[0]}"
                break
        raise FloatingPointError(
            f"{where}: a statistic is NaN or infinite, expected finite numbers; look at that"
            " batch's rows and labels, or run with precision=fp32"
        )


def in_pieces(model: nn.Module) -> bool:
    """Whether processes hold the weights in pieces, and need each other for a forward pass."""
    return any(shared_out(parameter) for parameter in model.parameters())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every number is finite; one transfer from the device."""
    flags = [tensor.isfinite().all() for tensor in tensors]
    return bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()) if flags else True
