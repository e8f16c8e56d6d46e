"""What trains and the state of its optimizer, as a checkpoint's files hold them: whole tensors, one
at a time, whether one process has them or several hold them in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import Adapters, shared_out, whole
from loraexp.machine.tensors import Entry
from loraexp.optimizers.stepping import AdapterOptimizer


def weights(adapters: Adapters) -> dict[str, Entry]:
    """What trains; every process must read along."""
    return {
        name: Entry(tuple(p.shape), p.dtype, partial(whole, p.detach()))
        for name, p in adapters.named_trainable().items()
    }


def moments(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Entry], dict[str, object]]:
    """An optimizer's state as one process would have it: (tensors by `number of the
    parameter.name`, all the rest of its state_dict); every process must read along."""
    parameters, state = numbered(optimizer), optimizer.state_dict()
    entries: dict[str, Entry] = {}
    rest: dict[int, dict[str, object]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                entries[f"{index}.{key}"] = moment(parameters[index], value)
            else:
                rest.setdefault(index, {})[key] = value
    return entries, {**state, "state": rest}


def moment(parameter: Any, value: Tensor) -> Entry:
    if shared_out(parameter) and not shared_out(value) and value.dim() > 1:
        # a block's row (1, …) of this process's piece
        shape = (1, *parameter.shape)
        return Entry(shape, value.dtype, partial(row_of_pieces, parameter, value))
    return Entry(tuple(value.shape), value.dtype, partial(whole, value))


def row_of_pieces(parameter: Any, value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        value[0],
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    ).full_tensor()[None]


def restore(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """Give an optimizer the state that `moments` took apart, in the pieces of this process."""
    parameters = numbered(optimizer)
    own: dict[int, dict[str, Any]] = {i: dict(values) for i, values in rest["state"].items()}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        own.setdefault(int(index), {})[key] = value
    state: dict[int, Any] = {i: Pieces(parameters[i], values) for i, values in own.items()}
    if not isinstance(optimizer, AdapterOptimizer):
        # PyTorch's own keep what they are given: not the disk's, and all at once
        state = {i: {k: copied(v) for k, v in values.items()} for i, values in state.items()}
    optimizer.load_state_dict({**rest, "state": state})


class Pieces(Mapping[str, Any]):
    """A parameter's state, each tensor cut to the piece of this process when it is asked for."""

    def __init__(self, parameter: nn.Parameter, values: Mapping[str, object]) -> None:
        self.parameter, self.whole = parameter, values

    def __getitem__(self, key: str) -> object:
        return piece(self.parameter, self.whole[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


def piece(parameter: Any, value: Any) -> object:
    if not shared_out(parameter) or not isinstance(value, Tensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    blocked = value.shape == (1, *parameter.shape)
    if not blocked and value.shape != parameter.shape:
        return value
    full = (value[0] if blocked else value).to(parameter.device)
    shared = distribute_tensor(
        full, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    return shared.to_local()[None] if blocked else shared


def copied(value: object) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def numbered(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Its parameters in the order of `state_dict`'s numbers."""
    return [p for group in optimizer.param_groups for p in group["params"]]
