"""A whole model on the disk, in the files that transformers writes, with one tensor in the host's
memory at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor, nn

from loraexp.adapter.adapted import in_pieces, whole
from loraexp.machine.processes import Processes
from loraexp.machine.progress import log
from loraexp.machine.tensors import Entry, read_along, write_tensors
from loraexp.machine.weight_files import planned
from loraexp.run.sharding import gathered_state


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
