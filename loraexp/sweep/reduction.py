"""What is alive of gradients where processes hold the weights in pieces, as PyTorch's `fully_shard`
has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loraexp.run.sharding import blocks


class Reduction:
    """A hook of every parameter. The gradients of a block are whole until the next block has some;
    then they are in one message, until that block's are; a process keeps a piece of them. Those of
    what is in no block are whole to the end of the pass, and sent when no weight is whole any
    more."""

    def __init__(self, model: nn.Module, shards: int) -> None:
        self.shards = shards
        held = [list(block.parameters()) for block in blocks(model)]
        self.block = {id(p): i for i, own in enumerate(held) for p in own}
        outside = sum(p.numel() for p in model.parameters() if id(p) not in self.block)
        largest = max((sum(p.numel() for p in own) for own in held), default=0)
        self.gathered = outside + 2 * largest  # numbers of weights that were whole until then
        self.current: int | None = None
        self.whole: dict[int | None, dict[int, Tensor]] = {}
        self.message: Tensor | None = None
        self.pieces: dict[int, Tensor] = {}

    def __call__(self, parameter: Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        block = self.block.get(id(parameter))
        if block is not None and block != self.current:
            if self.current is not None:
                self.send(self.current)
            self.current = block
        self.whole.setdefault(block, {})[id(parameter)] = grad

    def send(self, block: int | None, gone: int = 0) -> None:
        """The gradients of a block go into a message, and a piece of them stays; `gone`: numbers
        of weights that were let go of before."""
        self.message = None
        held = self.whole.pop(block, {})
        if not held:
            return
        some = next(iter(held.values()))
        total = sum(grad.numel() for grad in held.values())
        self.message = some.new_empty(max(0, total - gone))
        for key, grad in held.items():
            if key not in self.pieces:  # further passes add to them
                piece = grad[: -(-grad.shape[0] // self.shards)] if grad.dim() else grad
                self.pieces[key] = torch.empty_like(piece)

    def end(self) -> None:
        """Of a backward pass."""
        if self.current is not None:
            self.send(self.current)
        self.current = None
        self.send(None, self.gathered)
        self.message = None
