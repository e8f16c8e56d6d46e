"""Sweeps over the calibration batches: the passes of each, what they add up, what is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from loraexp.adapter.adapted import in_pieces
from loraexp.machine.device import to_device
from loraexp.machine.processes import distributed, gathered, rank
from loraexp.statistics.calibration import (
    Batch,
    Calibration,
    own_randomness,
    samples_in,
    tokens_in,
)
from loraexp.statistics.hooks import BatchHooks, Sums, prepared
from loraexp.statistics.probes import LOSS, Pass, probe_sum


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
        loss: str,
    ) -> None:
        self.model, self.targets, self.calibration = model, dict(targets), calibration
        self.seed, self.loss = calibration.seed, loss
        self.device = next(model.parameters()).device
        self.encoder_decoder = bool(
            getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        )
        given = calibration.batches
        shares = gathered([sum(map(samples_in, given)), len(given), sum(map(tokens_in, given))])
        self.samples, _, self.tokens = (sum(column) for column in zip(*shares, strict=True))
        self.first_sample, self.first_batch = (
            sum(share[k] for share in shares[: rank()]) for k in (0, 1)
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
        counts = [losses, *(int(name in reached) for name in names)]
        tensors = [
            tensor for accumulators in sums.values() for a in accumulators for tensor in a.sums
        ]
        if distributed():
            shared = torch.tensor(counts, dtype=torch.int64, device=self.device)
            for tensor in [shared, *tensors]:
                dist.all_reduce(tensor)
            counts = shared.tolist()
        self.losses = counts[0]
        if not all_finite(tensors):
            self._blame(make)
        for name, count in zip(names, counts[1:], strict=True):
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
        with prepared(self.model, self.calibration.mode):
            for index, batch in enumerate(batches, first):
                losses += self.batch(sums, passes, batch, index, sample, reached)
                sample += samples_in(batch)
            for _ in range(missing):
                self.batch({name: [] for name in sums}, passes, spare, 0, 0, set())
        return losses, reached

    def _to_keep_step(self, batches: Sequence[Batch]) -> tuple[int, Batch]:
        """How many batches another process has more, and one to run as often, of which nothing
        counts: where they hold the weights in pieces all have to make as many passes."""
        if not in_pieces(self.model.parameters()):
            return 0, {}
        shares = gathered((len(batches), batches[:1]))
        spare: Batch = next((held[0] for _, held in shares if held), {})
        return max(count for count, _ in shares) - len(batches), spare

    def batch(
        self,
        sums: Sums,
        passes: Sequence[Pass],
        given: Batch,
        index: int,
        first_sample: int,
        reached: set[str],
    ) -> int:
        """The passes of one batch, whose calls go to the accumulators; the number of terms of the
        loss."""
        batch = to_device(given, self.device)
        hooks = BatchHooks(sums, given, first_sample, passes, self.encoder_decoder)
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
            for which in passes:
                scalar = scalars.pop(0)
                hooks.current = which
                if not scalar.requires_grad:
                    raise ValueError(
                        f"batch {index}: its {which.kind} does not depend on any of the {len(sums)}"
                        " target layers; expected a differentiable loss (with re-entrant gradient"
                        " checkpointing: set use_reentrant=False)"
                    )
                scalar.backward(retain_graph=which != passes[-1])
                del scalar  # and what it alone keeps, such as the loss its logits
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
        alone = not in_pieces(self.model.parameters())  # else no process can run a batch by itself
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


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every number is finite, by the least and the largest, without a copy of any; one
    transfer from the device."""
    ends = [torch.stack(x.aminmax()).isfinite().all() for x in tensors if x.numel()]
    return bool(torch.stack([flag.to(ends[0].device) for flag in ends]).all()) if ends else True
