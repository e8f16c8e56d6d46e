"""Which rows a step has: a function of the seed and the step alone, and how a step is cut and
shared."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from loraexp.machine.device import Batch, Runtime, is_accelerator, to_device
from loraexp.machine.processes import Processes
from loraexp.scoring.passes import in_batches

if TYPE_CHECKING:
    from loraexp.config.settings import TrainSettings
    from loraexp.run.task import Task

BLOCK = 50  # batches: examples are sorted by length within a shuffled block of this many batches


def epoch_batches(
    lengths: np.ndarray, size: int, *, seed: int, epoch: int, length_buckets: bool
) -> list[np.ndarray]:
    """The rows of each batch of an epoch: a function of the seed and the epoch alone, whatever ran
    before.

    Plainly shuffled, or with `length_buckets` shuffled, sorted by length within blocks of 50
    batches, and the batches shuffled again: padding falls to a few percent, and which examples meet
    in a batch depends on their length.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if not length_buckets:
        return in_batches(order, size)
    batches = []
    for start in range(0, len(order), size * BLOCK):
        block = order[start : start + size * BLOCK]
        block = block[np.argsort(lengths[block], kind="stable")]
        batches += in_batches(block, size)
    return [batches[i] for i in generator.permutation(len(batches))]


def micro_batches(
    rows: np.ndarray,
    lengths: np.ndarray,
    parts: int | Literal["auto"],
    world: int = 1,
    price: int | None = None,
) -> list[np.ndarray]:
    """The rows of one step, sorted by length and cut into at most `parts` pieces, each of which is
    padded only to its own longest.

    Cut where padding and passes cost least: of all cuts whose pieces hold no more padded tokens
    than the largest of equal ones, that with the fewest in all, a piece counted as PASS more. So
    many short rows go together, a few long ones apart, in no more memory than equal pieces need,
    which rows of equal length pay for with time. `auto` spends nothing on memory: as many pieces as
    are cheaper than the batch whole, often one, a pass counted as `price` tokens. Several
    processes, which share the rows of a piece, take equal pieces, with `auto` the batch whole.
    """
    if parts == 1 or (parts == "auto" and world > 1):
        return [rows]
    order = rows[np.argsort(lengths[rows], kind="stable")]
    if parts == "auto":
        places = cuts(lengths[order], MOST_PIECES, bounded=False, price=price or PASS)
        return [rows] if len(places) == 2 else pieces(order, places)
    if world > 1:
        return [part for part in np.array_split(order, parts) if len(part)]
    return pieces(order, cuts(lengths[order], parts))


def pieces(rows: np.ndarray, places: list[int]) -> list[np.ndarray]:
    """The rows between neighbouring places."""
    return [rows[start:stop] for start, stop in pairwise(places)]


# Tokens that take as long as what a pass costs beside its tokens: counted, so that the cut is the
# same on every machine. MiniLM's on two cores; larger models' is less, so that a cut that pays by
# it pays there.
PASS = 48
MOST_PIECES = 8  # beyond which even lengths far apart gain nothing at PASS
# The same for any model: products of a token with the weights of a linear layer that take as long
# as what one such layer costs a pass beside its tokens. On a CPU MiniLM's, of whose layers of 384 ×
# 384 PASS is, with two threads; on an accelerator, where it is the launch of kernels, from above
# and not measured: 150 µs a layer at 50 · 10¹² products a second.
BESIDE = {"cpu": PASS * 384**2, "accelerator": 75 * 10**8}


def pass_price(model: nn.Module, device: torch.device) -> int:
    """Tokens that take as long as what a pass of the model costs beside its tokens, rather too many
    than too few: a batch that is cut by it is not slower than whole. Never below PASS.

    Attention, whose share grows with the length of a row (L/6d of a layer's), is left out, which
    cuts less.
    """
    weights = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    if not weights:
        return PASS
    host = not is_accelerator(device)
    # what else runs on the host is not shared by threads, as products are
    threads = max(1.0, torch.get_num_threads() / 2) if host else 1.0
    beside = BESIDE["cpu" if host else "accelerator"] * threads
    return max(PASS, math.ceil(beside / statistics.median(weights)))


def cuts(lengths: np.ndarray, parts: int, *, bounded: bool = True, price: int = PASS) -> list[int]:
    """Where ascending lengths are cut, 0 and their number among it: the cheapest way, by dynamic
    programming; `bounded`: among those that need no more memory than equal pieces."""
    count = len(lengths)
    ends = np.arange(count + 1)
    # of a piece start … stop: its padded tokens
    tokens = np.subtract.outer(-ends, -ends) * np.concatenate([[0], lengths])
    most = math.ceil(count / (parts if bounded else 1)) * lengths[-1]
    cost = np.where((tokens > 0) & (tokens <= most), tokens + price, np.inf)
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    starts: list[np.ndarray] = []
    totals = []
    for _ in range(min(parts, count)):
        through = best[:, None] + cost
        starts.append(through.argmin(0))
        best = through.min(0)
        totals.append(best[-1])
    places = [count]
    for start in reversed(starts[: int(np.argmin(totals)) + 1]):
        places.append(int(start[places[-1]]))
    return places[::-1]


def count_labels(batch: dict[str, Tensor]) -> int:
    """Label tokens of a batch: those that enter the loss."""
    if isinstance(batch, Batch) and batch.count is not None:
        return batch.count
    labels = batch["labels"]
    return labels.numel() if labels.is_floating_point() else int((labels != -100).sum())


def collate_share(
    task: Task, examples: Any, rows: np.ndarray, processes: Processes
) -> dict[str, Any]:
    """This process's share of a micro-batch; one without rows runs the first with weight 0, so that
    all keep in step."""
    share = rows[processes.rank :: processes.world]
    if len(share):
        return task.collate(examples, share)
    batch: dict[str, Any] = task.collate(examples, rows[:1])
    batch["weight"] = 0
    return batch


def schedule(kind: str, step: int, total: int, warmup_ratio: float) -> float:
    """Factor on the learning rate at step 0 ≤ step < total: linear warm-up, then linear, cosine or
    constant."""
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def total_steps(settings: TrainSettings, rows: int) -> tuple[int, int]:
    """(steps in all, steps in one epoch)."""
    per_epoch = math.ceil(math.ceil(rows / settings.batch_size) / settings.gradient_accumulation)
    total = (
        settings.max_steps
        if settings.max_steps is not None
        else math.ceil(settings.epochs * per_epoch)
    )
    return total, per_epoch


@dataclass
class Step:
    """The rows of a step, this process's share of them as micro-batches on the device, and the
    label tokens of all processes' shares; `loss`: the mean, where its gradient is there already."""

    rows: np.ndarray
    parts: list[dict[str, Any]]
    labels: int
    loss: Tensor | None = None


class Batches:
    """The steps of a run: how many, and the rows of each."""

    def __init__(
        self,
        task: Task,
        settings: TrainSettings,
        seed: int,
        runtime: Runtime,
        *,
        whole: bool = False,
        price: int = PASS,
    ) -> None:
        """`whole`: nothing is padding, so that there is nothing to cut for; `price`: of a pass, in
        tokens."""
        self.task, self.settings, self.seed = task, settings, seed
        self.whole, self.price = whole, price
        self.device, self.processes = runtime.device, runtime.processes
        self.examples = task.splits["train"]
        self.total, self.per_epoch = total_steps(settings, len(self.examples))
        self.epoch = -1
        self.order: list[np.ndarray] = []
        self.ready: tuple[int, Step] | None = None

    def of(self, step: int) -> Step:
        """The rows of a step, cut, shared and on the device."""
        found, self.ready = self.ready, None
        return found[1] if found is not None and found[0] == step else self._made(step)

    def prepare(self, step: int) -> None:
        """Collate a step while the device is at work on the one before."""
        if step < self.total and is_accelerator(self.device):
            self.ready = step, self._made(step)

    def _made(self, step: int) -> Step:
        settings, examples, task = self.settings, self.examples, self.task
        epoch, within = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = epoch_batches(
                examples.lengths,
                settings.batch_size,
                seed=self.seed,
                epoch=epoch,
                length_buckets=settings.length_buckets,
            )
        first = within * settings.gradient_accumulation
        rows = np.concatenate(self.order[first : first + settings.gradient_accumulation])
        parts = self._cut(rows)
        shares = [collate_share(task, examples, part, self.processes) for part in parts]
        labels = (
            sum(map(count_labels, shares))
            if self.processes.world == 1
            else task.labels_in(examples, rows)
        )
        return Step(rows, [to_device(share, self.device) for share in shares], labels)

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of a step as its passes."""
        settings, lengths, world = self.settings, self.examples.lengths, self.processes.world
        each, accumulated = settings.micro_batches, settings.gradient_accumulation
        if each != "auto":
            return micro_batches(rows, lengths, accumulated * each, world)
        # a batch of its own each
        batches = [part for part in np.array_split(rows, accumulated) if len(part)]
        if self.whole:
            return batches
        return [
            part
            for batch in batches
            for part in micro_batches(batch, lengths, each, world, self.price)
        ]
