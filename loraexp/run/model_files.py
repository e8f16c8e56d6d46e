"""A whole model on the disk, in the files that transformers writes, with one tensor in the host's
memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import in_pieces, whole
from loraexp.machine.processes import Processes
from loraexp.machine.progress import log
from loraexp.machine.tensors import Entry, read_along, write_tensors
from loraexp.run.sharding import gathered_state


class File(NamedTuple):
    """One of them: its name, what it says of itself, and of each tensor there the name in the
    model."""

    name: str
    metadata: dict[str, str]
    tensors: dict[str, str]


def write_model(
    model: nn.Module, folder: Path | None, processes: Processes, **options: object
) -> None:
    """What `save_pretrained(folder, **options)` writes, whether one process has the weights or
    several hold them in pieces. Every process must ask; the main one has the folder.

    transformers says which names go into which files, of a model without numbers; then each tensor
    is gathered and written in its turn. Where it makes new tensors of those of the model (experts
    that it keeps apart on the disk), it is given all of them at once, as it asks for.
    """
    own = model.state_dict(keep_vars=True)
    files = planned(model, own, folder, options) if folder is not None else None
    files = processes.gather(files)[0]
    if files is None:
        log("  the model's tensors have another form on the disk: all are gathered at once")
        state = gathered_state(model) if in_pieces(model.parameters()) else None
        if folder is not None:
            model.save_pretrained(folder, state_dict=state, **options)  # type: ignore[operator]
        return
    for file in files:
        entries = {new: entry_of(own[name]) for new, name in sorted(file.tensors.items())}
        if folder is not None:
            write_tensors(folder / file.name, entries, file.metadata)
        else:
            read_along(entries)


def entry_of(value: Tensor) -> Entry:
    return Entry(tuple(value.shape), value.dtype, partial(whole, value.detach()))


def planned(
    model: Any, own: Mapping[str, Tensor], folder: Path, options: Mapping[str, Any]
) -> list[File] | None:
    """The files of weights that transformers would write, all others being written; None where some
    tensor there is none of the model's."""
    hollow: dict[int, Tensor] = {}  # tied ones are one
    for value in own.values():
        if id(value) not in hollow:
            hollow[id(value)] = torch.empty(value.shape, dtype=value.dtype, device="meta")
    state = {name: hollow[id(value)] for name, value in own.items()}
    names = {id(tensor): name for name, tensor in reversed(state.items())}
    with unwritten() as found:
        model.save_pretrained(folder, state_dict=dict(state), **options)
    files = [
        File(path.name, metadata, {new: names.get(id(x), "") for new, x in tensors.items()})
        for path, metadata, tensors in found
    ]
    return files if all(all(file.tensors.values()) for file in files) else None


@contextmanager
def unwritten() -> Iterator[list[tuple[Path, dict[str, str], dict[str, Tensor]]]]:
    """Within: what transformers would write into a file of weights is noted instead."""
    from transformers import modeling_utils
    from transformers.utils import logging

    inner: Any = modeling_utils
    found: list[tuple[Path, dict[str, str], dict[str, Tensor]]] = []
    before = inner.safe_save_file

    def note(tensors: dict[str, Tensor], path: str, metadata: dict[str, str]) -> None:
        found.append((Path(path), metadata, tensors))

    inner.safe_save_file, bars = note, logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield found
    finally:
        inner.safe_save_file = before
        if bars:
            logging.enable_progress_bar()
