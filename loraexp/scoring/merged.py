"""The adapted model as a plain checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import AdaptedLinear
from loraexp.adapter.linalg import at_least_float32
from loraexp.scoring.prompts import Tokenizer, bare


def write_merged(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """The adapted model as a plain checkpoint: every update added to its weight once, in float32.
    The live one stays as it is.

    Raises: ValueError for a quantised base, whose weights take no update.
    """
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    inner = bare(model)
    state: dict[str, Tensor] = dict(inner.state_dict())
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
        with torch.no_grad():
            state[f"{name}.weight"] = (at_least_float32(weight) + layer.update()).to(weight.dtype)
    disable_progress_bar()
    try:
        inner.save_pretrained(folder, state_dict=state)
    finally:
        enable_progress_bar()
    tokenizer.save_pretrained(folder)
