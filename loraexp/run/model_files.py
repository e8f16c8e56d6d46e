"""A whole model on the disk, in the files that transformers writes, with one tensor in the host's
memory at a time."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from loraexp.adapter.adapted import in_pieces, whole
from loraexp.machine.processes import Processes
from loraexp.machine.progress import log
from loraexp.machine.tensors import read_along, write_tensors
from loraexp.machine.weight_files import Turns, planned
from loraexp.run.sharding import gathered_state


def write_model(
    model: nn.Module, folder: Path | None, processes: Processes, **options: object
) -> None:
    """What `save_pretrained(folder, **options)` writes, whether one process has the weights or
    several hold them in pieces. Every process must ask; the main one has the folder.

    transformers says which names go into which files, of a model without numbers; then each tensor
    is gathered and written in its turn, one of the model's at a time also where it makes several of
    it (experts that are apart on the disk). Where it makes one of several, it is given all at once.
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
    turns = Turns(model, own, lambda name: whole(own[name].detach()))
    for file in files:
        entries = turns.entries(file)
        if folder is not None:
            write_tensors(folder / file.name, entries, file.metadata)
        else:
            read_along(entries)
