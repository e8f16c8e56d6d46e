"""The one loop that evaluates: a model in batches, this process's share of them, joined with that
of the others.

What a batch is does not depend on the processes, so many find what one finds, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from loraexp.adapter.adapted import in_pieces
from loraexp.machine.device import unread_masks

Items = TypeVar("Items", bound=Sized)
Key = TypeVar("Key")
Value = TypeVar("Value")
Heard = Callable[[Key, Value, int], None]


class Sharing(Protocol):
    """The processes of a run, as far as scoring needs them
    (`loraexp.machine.processes.Processes`)."""

    world: int
    rank: int

    def gather(self, thing: object) -> list[Any]:
        """`thing` of every process, in order of rank, on every process."""
        ...


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients and without waits for its masks, and as it
    was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), unread_masks(next(model.parameters()).device):
            yield
    finally:
        model.train(training)


def over(
    model: nn.Module,
    batches: Sequence[Items],
    work: Callable[[int, Items], Iterable[tuple[Key, Value]]],
    *,
    processes: Sharing | None = None,
    in_step: bool = False,
    told: Heard[Key, Value] | None = None,
) -> dict[Key, Value]:
    """What `work` finds in all batches (by number) with a model that is evaluated, by key, on every
    process.

    Every process takes whole batches in turn. Where they hold the weights in pieces they make each
    forward pass together: every one does all, or, where `work` makes one pass of whatever batch
    (`in_step`), as many as the others. `told(key, value, of)` hears of each finding as it is there,
    `of` how many items this process's batches have.
    """
    together = in_pieces(model.parameters())
    if together and not in_step:
        processes = None
    mine = part_of(processes, len(batches), in_step=together)
    of = sum(len(batches[number]) for number in mine)
    found: dict[Key, Value] = {}
    with evaluating(model):
        for number in mine:
            for key, value in work(number, batches[number]):
                found[key] = value
                if told is not None:
                    told(key, value, of)
    return joined(processes, found)


def each(
    model: nn.Module,
    batches: Sequence[Items],
    function: Callable[[Items], Value],
    *,
    processes: Sharing | None = None,
    told: Heard[int, Value] | None = None,
) -> list[Value]:
    """What `function` makes of every batch in one forward pass, in their order, as `over` does."""
    found = over(
        model,
        batches,
        lambda number, batch: [(number, function(batch))],
        processes=processes,
        in_step=True,
        told=told,
    )
    return [found[number] for number in range(len(batches))]


def part_of(processes: Sharing | None, count: int, *, in_step: bool = False) -> list[int]:
    """The numbers, of `count`, that this process does: every world-th one; `in_step`: as many as
    each other process does, the last of all again where they do not divide."""
    if processes is None:
        return list(range(count))
    rank, world = processes.rank, processes.world
    if in_step and count:
        return [min(first + rank, count - 1) for first in range(0, count, world)]
    return list(range(rank, count, world))


def joined(processes: Sharing | None, found: dict[Key, Value]) -> dict[Key, Value]:
    """What this process found with what the others did. All of them take part, those that had no
    part of the work too."""
    if processes is None or processes.world == 1:
        return found
    return {key: value for share in processes.gather(found) for key, value in share.items()}


def in_batches(rows: Any, size: int) -> list[Any]:
    """A sequence, or an array, `size` at a time, in its order."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
