"""The adapted model as a plain checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import AdaptedLinear
from loraexp.adapter.linalg import at_least_float32
from loraexp.machine.files import DiskFull, full_message
from loraexp.machine.progress import log
from loraexp.machine.tensors import write_tensors
from loraexp.machine.weight_files import Turns, planned
from loraexp.scoring.prompts import Tokenizer, bare


def write_merged(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """The adapted model as a plain checkpoint: every update added to its weight once, in float32,
    when its turn comes to be written. The live one stays as it is.

    Raises: ValueError for a quantised base, whose weights take no update; DiskFull.
    """
    inner: Any = bare(model)
    state: dict[str, Tensor] = dict(inner.state_dict(keep_vars=True))
    sums: dict[str, Callable[[], Tensor]] = {}
    for name, layer in [
        (name, module)
        for name, module in inner.named_modules()
        if isinstance(module, AdaptedLinear)
    ]:
        weight = layer.base.weight
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ValueError(
                f"layer {name}: a quantised weight cannot be merged for vLLM; set"
                " evaluate.backend=hf"
            )
        own = {key: state.pop(key) for key in [key for key in state if key.startswith(f"{name}.")]}
        state |= {
            key.replace(f"{name}.base.", f"{name}."): x
            for key, x in own.items()
            if key.startswith(f"{name}.base.")
        }
        # in its place one that is no other layer's, whatever its weight is tied to
        state[f"{name}.weight"] = torch.empty_like(weight, device="meta")
        sums[f"{name}.weight"] = partial(added, layer, weight)
    try:
        write(inner, state, sums, folder)
    except DiskFull as error:
        raise DiskFull(error.errno, full_message(folder, "TMPDIR")) from error
    tokenizer.save_pretrained(folder)


def write(
    inner: Any, state: dict[str, Tensor], sums: dict[str, Callable[[], Tensor]], folder: Path
) -> None:
    """The weights, one of the sums at a time; all of them where transformers makes one tensor of
    several."""
    files = planned(inner, state, folder, {})
    if files is None:
        log("  the model's tensors have another form on the disk: all are merged at once")
        inner.save_pretrained(folder, state_dict=state | {name: sums[name]() for name in sums})
        return
    turns = Turns(inner, state, lambda name: sums.get(name, state[name].detach)())
    for file in files:
        write_tensors(folder / file.name, turns.entries(file), file.metadata)


def added(layer: AdaptedLinear, weight: Tensor) -> Tensor:
    """The weight of a layer with its update."""
    with torch.no_grad():
        return (at_least_float32(weight) + layer.update()).to(weight.dtype)
