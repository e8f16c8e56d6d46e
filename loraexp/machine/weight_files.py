"""Which weights a model has on the disk, in which files and by which names: transformers says it of
a model without numbers, before any is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loraexp.machine.tensors import Entry


class File(NamedTuple):
    """One of them: its name, what it says of itself, and of each tensor there the name in the
    model; `made`: shape and type of those that are made of the model's, several of one."""

    name: str
    metadata: dict[str, str]
    tensors: dict[str, str]
    made: dict[str, tuple[tuple[int, ...], torch.dtype]]


class Turns:
    """The tensors of the files, each read when its turn comes.

    What is made of one tensor of the model (experts that are one there, and apart on the disk) is
    made when the first of it is asked for, and forgotten piece by piece.
    """

    def __init__(self, model: Any, own: Mapping[str, Tensor], read: Callable[[str], Tensor]):
        """`own`: of the model's names shapes and types; `read`: the tensor of a name."""
        self.model, self.own, self.read = model, own, read
        self.pieces: dict[str, dict[str, Tensor]] = {}

    def entries(self, file: File) -> dict[str, Entry]:
        """The tensors of a file, in the order of their names."""
        found = {}
        for new, name in sorted(file.tensors.items()):
            if new in file.made:
                found[new] = Entry(*file.made[new], partial(self._piece, new, name))
            else:
                x = self.own[name]
                found[new] = Entry(tuple(x.shape), x.dtype, partial(self.read, name))
        return found

    def _piece(self, new: str, name: str) -> Tensor:
        if name not in self.pieces:
            self.pieces[name] = pieces(self.model, name, self.read(name))
        mine = self.pieces[name]
        value = mine.pop(new)
        if not mine:
            del self.pieces[name]
        return value


def pieces(model: Any, name: str, value: Tensor) -> dict[str, Tensor]:
    """What transformers makes of one tensor of a model for the disk, by the names there."""
    from transformers.core_model_loading import revert_weight_conversion

    made: dict[str, Tensor] = revert_weight_conversion(model, {name: value})
    return made


def planned(
    model: Any, own: Mapping[str, Tensor], folder: Path, options: Mapping[str, Any]
) -> list[File] | None:
    """The files of weights that transformers would write, all others being written; None where some
    tensor there is made of several of the model's."""
    hollow: dict[int, Tensor] = {}  # tied ones are one
    for value in own.values():
        if id(value) not in hollow:
            hollow[id(value)] = torch.empty(value.shape, dtype=value.dtype, device="meta")
    state = {name: hollow[id(value)] for name, value in own.items()}
    names = {id(tensor): name for name, tensor in reversed(state.items())}
    with unwritten() as found:
        model.save_pretrained(folder, state_dict=dict(state), **options)
    there = {new: x for _, _, tensors in found for new, x in tensors.items()}
    new = {name: x for name, x in there.items() if id(x) not in names}
    kept = {id(x) for x in there.values()}
    left = {name: state[name] for i, name in names.items() if i not in kept}
    makers = makers_of(model, new, left)
    if makers is None:
        return None
    return [
        File(
            path.name,
            metadata,
            {name: makers.get(name) or names[id(x)] for name, x in tensors.items()},
            {name: (tuple(x.shape), x.dtype) for name, x in tensors.items() if name in makers},
        )
        for path, metadata, tensors in found
    ]


def makers_of(
    model: Any, new: Mapping[str, Tensor], left: Mapping[str, Tensor]
) -> dict[str, str] | None:
    """Of each new tensor the one of those left that it is made of; None where one is made of
    several, or of what is not known."""
    makers: dict[str, str] = {}
    for name, value in left.items() if new else ():
        try:
            made = pieces(model, name, value)
        except Exception:  # noqa: BLE001 - what cannot be made of one by itself is made of all at once
            return None
        for piece, x in made.items():
            alike = piece in new and (new[piece].shape, new[piece].dtype) == (x.shape, x.dtype)
            if alike and piece in makers:
                return None
            if alike:
                makers[piece] = name
    return makers if makers.keys() == new.keys() else None


@contextmanager
def unwritten() -> Iterator[list[tuple[Path, dict[str, str], dict[str, Tensor]]]]:
    """Within: what transformers would write into a file of weights is noted instead."""
    import huggingface_hub
    from transformers import modeling_utils
    from transformers.utils import logging

    inner: Any = modeling_utils
    found: list[tuple[Path, dict[str, str], dict[str, Tensor]]] = []
    before = inner.safe_save_file, inner.split_torch_state_dict_into_shards

    def note(tensors: dict[str, Tensor], path: str, metadata: dict[str, str]) -> None:
        found.append((Path(path), metadata, tensors))

    def split(state: dict[str, Tensor], **how: Any) -> Any:
        """Pieces of one tensor stay in one file, as those with numbers do."""
        size = huggingface_hub.get_torch_storage_size
        return huggingface_hub.split_state_dict_into_shards_factory(
            state, get_storage_size=size, get_storage_id=lambda x: x.untyped_storage()._cdata, **how
        )

    inner.split_torch_state_dict_into_shards = split
    inner.safe_save_file, bars = note, logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield found
    finally:
        inner.safe_save_file, inner.split_torch_state_dict_into_shards = before
        if bars:
            logging.enable_progress_bar()
