"""Which weights a model has on the disk, in which files and by which names: transformers says it of
a model without numbers, before any is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class File(NamedTuple):
    """One of them: its name, what it says of itself, and of each tensor there the name in the
    model."""

    name: str
    metadata: dict[str, str]
    tensors: dict[str, str]


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
