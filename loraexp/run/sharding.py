"""Weights that the processes of a run hold in pieces (`train.shard=full`), by PyTorch's own
`fully_shard`.

One process reads the model into its host's memory and sends it block by block; on a device there
is never more than the pieces and one block. Before a block computes it is gathered, afterwards
the copy is dropped.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loraexp.adapter.adapted import shared_out, whole
from loraexp.machine.processes import rank

AWAKE = "gathered_root"


# --------------------------------------------------------------------------------------------------
# a model


def spread(
    read: Callable[[], nn.Module],
    kept_whole: Callable[[nn.Module], Collection[str]],
    device: torch.device,
) -> nn.Module:
    """The model that `read` gives, in pieces over all processes, on `device`; the first one reads.

    `kept_whole`: names of modules that every process holds whole, such as a new head.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    model = sent(read)
    apart = [model.get_submodule(name) for name in kept_whole(model)]
    for part in (*apart, *blocks(model)):
        place(part, device)
        if part not in apart:
            fully_shard(part)
    place(model, device)
    fully_shard(model, ignored_params={p for part in apart for p in part.parameters()})
    setattr(model, AWAKE, nothing)
    register_fsdp_forward_method(model, AWAKE)
    with gathered_root(model):
        for block in blocks(model):
            # Memory that an evaluation is the first to take could never be differentiated through.
            assert isinstance(block, FSDPModule)
            block.unshard()
            block.reshard()
    return model


def nothing() -> None:
    """What the root does where it is only to gather its own weights."""


@contextmanager
def gathered_root(model: nn.Module) -> Iterator[None]:
    """Within: what is in no block (embeddings, last norm, output layer) is there whole, because an
    evaluation calls parts of a model, T5's encoder, by themselves."""
    if not hasattr(model, AWAKE):
        yield
        return
    with torch.no_grad():
        getattr(model, AWAKE)()
    try:
        yield
    finally:
        model.reshard()  # type: ignore[operator]


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a network: the members of its outermost lists of modules."""

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                yield from (block for block in child if any(True for _ in block.parameters()))
            else:
                yield from below(child)

    return below(model)


class Weightless(pickle.Pickler):
    """Pickles a module with every parameter in its place, tied ones once, and without numbers."""

    def __init__(self, file: Any, parameters: Mapping[int, int]) -> None:
        super().__init__(file)
        self.parameters = parameters

    def persistent_id(self, thing: Any) -> object:
        if id(thing) not in self.parameters:
            return None
        return tuple(thing.shape), thing.dtype, thing.requires_grad, self.parameters[id(thing)]


class Hollow(pickle.Unpickler):
    """Reads such a module, its parameters on the meta device."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.parameters: dict[int, nn.Parameter] = {}

    def persistent_load(self, said: Any) -> nn.Parameter:
        shape, dtype, trains, number = said
        if number not in self.parameters:
            empty = torch.empty(shape, dtype=dtype, device="meta")
            self.parameters[number] = nn.Parameter(empty, requires_grad=trains)
        return self.parameters[number]


def sent(read: Callable[[], nn.Module]) -> nn.Module:
    """The model as the first process read it; on the others without numbers, buffers excepted.

    Raises: what `read` raised, on the first; on the others a RuntimeError that says so.
    """
    message: list[Any] = [None]
    model: nn.Module | None = None
    if rank() == 0:
        try:
            model = read()
            file = io.BytesIO()
            numbers = {id(p): i for i, p in enumerate(model.parameters())}
            Weightless(file, numbers).dump(model)
            message = [file.getvalue()]
        finally:
            dist.broadcast_object_list(message)
        return model
    dist.broadcast_object_list(message)
    if message[0] is None:
        raise RuntimeError("the first process could not read the model")
    hollow: nn.Module = Hollow(io.BytesIO(message[0])).load()
    return hollow


@torch.no_grad()
def place(module: nn.Module, device: torch.device) -> None:
    """Put the numbers of the first process into what of a module is not in pieces yet, on every
    process, on `device`."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and not shared_out(parameter):
                owners.setdefault(id(parameter), []).append((owner, name))
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = buffer.to(device)
    for places in owners.values():
        first, name = places[0]
        old: Any = first._parameters[name]
        if rank() == 0:
            value = old.detach().to(device, copy=True).contiguous()
        else:
            value = torch.empty(old.shape, dtype=old.dtype, device=device)
        dist.broadcast(value, 0)
        new = nn.Parameter(value, requires_grad=old.requires_grad)
        for owner, name in places:
            owner._parameters[name] = new


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict in whole tensors on the CPU of the first process, tied ones one tensor; empty
    on the others. Every process must ask."""
    state: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in made:
            made[id(value)] = kept(whole(value.detach()))
        state[name] = made[id(value)]
    return state if rank() == 0 else {}


def kept(value: Tensor) -> Tensor:
    """A tensor on the CPU of the first process; none of it elsewhere."""
    return value.cpu() if rank() == 0 else torch.empty(0)
