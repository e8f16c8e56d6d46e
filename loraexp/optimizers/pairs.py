"""The shell of rules that replace the gradients of A and B by others, computed from both factors
together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from loraexp.machine.device import is_accelerator
from loraexp.optimizers.elementwise import Base
from loraexp.optimizers.grams import SingularSystem
from loraexp.optimizers.stepping import AdapterOptimizer, Block

CACHED = 2**19  # entries of one factor: 2 MiB in float32

Transform = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def pairs(blocks: Sequence[Block]) -> Iterator[tuple[int, Block, Block]]:
    """The blocks (A, B) of the same layers with the place of A in the list; nothing for a group
    outside the adapters."""
    if blocks and blocks[0].factor is not None:
        for place in range(0, len(blocks), 2):
            yield place, blocks[place], blocks[place + 1]


def chunks(block: Block) -> list[slice]:
    """Runs of layers that are worked on together: on a CPU as many as stay in its cache, elsewhere
    all of them."""
    layers, entries = len(block.names), block.values[0].numel()
    size = layers if is_accelerator(block.values.device) else max(1, CACHED // entries)
    return [slice(start, start + size) for start in range(0, layers, size)]


class PairOptimizer(AdapterOptimizer):
    """Gives the base rule `transform(A, B, g_A, g_B, η)`, stacked over layers of equal shape, in
    place of `(g_A, g_B)`."""

    def __init__(
        self,
        sections: Sequence[tuple[list[Block], float]],
        *,
        weight_decay: float,
        base: Base,
        transform: Transform,
    ) -> None:
        super().__init__(sections, weight_decay=weight_decay, base=base)
        self.transform = transform

    def directions(self, blocks: list[Block], gradients: list[Tensor]) -> list[Tensor]:
        directions = list(gradients)
        for place, A, B in pairs(blocks):
            grad_A, grad_B = gradients[place : place + 2]
            scaling = A.layers[0].scaling
            runs = chunks(A)
            for rows in runs:
                try:
                    new_A, new_B = self.transform(
                        A.values[rows], B.values[rows], grad_A[rows], grad_B[rows], scaling
                    )
                except SingularSystem as problem:
                    size = len(A.values[rows])
                    raise SingularSystem(
                        str(problem), rows.start + problem.index % size, place
                    ) from None
                if len(runs) == 1:
                    directions[place : place + 2] = new_A.contiguous(), new_B.contiguous()
                else:  # a stack is a copy of the gradients, and warm memory: it takes the result
                    grad_A[rows], grad_B[rows] = new_A, new_B
        return directions
