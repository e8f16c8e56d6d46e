"""Which part of the work this process does: a function of the work alone, so that many processes
find what one finds."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from torch import nn

from loraexp.adapter.adapted import in_pieces

Key = TypeVar("Key")
Found = TypeVar("Found")


class Sharing(Protocol):
    """The processes of a run, as far as scoring needs them
    (`loraexp.machine.processes.Processes`)."""

    world: int
    rank: int

    def gather(self, thing: Any) -> list[Any]:
        """`thing` of every process, in order of rank, on every process."""
        ...


def parts_of(processes: Sharing | None, model: nn.Module, count: int) -> list[int]:
    """The numbers of the parts, of `count`, that this process does: every world-th one.

    A part is a whole batch, and the batches do not depend on the processes: their sums are the same
    to the digit. Where processes hold the weights in pieces every one does all: they have to make
    each forward pass together.
    """
    if processes is None or not _shared(processes, model):
        return list(range(count))
    return list(range(processes.rank, count, processes.world))


def of_all(
    processes: Sharing | None, model: nn.Module, found: dict[Key, Found]
) -> dict[Key, Found]:
    """What this process found with what the others did. All of them take part, those that had no
    part of the work too."""
    if processes is None or not _shared(processes, model):
        return found
    return {key: value for share in processes.gather(found) for key, value in share.items()}


def _shared(processes: Sharing, model: nn.Module) -> bool:
    return processes.world > 1 and not in_pieces(model.parameters())
