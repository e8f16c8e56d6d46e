"""Proof that a run's saved adapter is the same function on the original base every way it can be
used."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from loraexp import models
from loraexp.adapter.formats import merge
from loraexp.config import ConfigError
from loraexp.finished.opened import FinishedRun, usable


def in_float32(run: FinishedRun) -> dict[str, float]:
    """Largest difference, of the largest logit, between this project's layer (R and the offset
    apart) and the other ways: merged once in float32, and through PEFT where it is installed."""
    if not run.has_factors:
        name = run.settings.init["name"]
        raise ConfigError(
            f"{run.folder}: init={name} saved a whole model, there is no adapter to verify"
        )
    adapters = run.adapted(torch.float32)
    expected = logits(adapters.model)
    results = {"this project": expected, "merged in float32": logits(merge(adapters))}
    if importlib.util.find_spec("peft") is not None:
        from peft import PeftModel

        base = run.base(torch.float32)
        # what the run drew is in its adapter, or PEFT is another function
        models.draw_head(base, run.settings.seed + 1)
        try:
            with usable(run.folder / "adapter"):
                through = PeftModel.from_pretrained(base, run.folder / "adapter")
        except ConfigError:
            run.check_files()  # which says which of its files it is
            raise
        results["PEFT"] = logits(through)
    return {
        name: float((found - expected).abs().max() / expected.abs().max())
        for name, found in results.items()
    }


def in_bf16(run: FinishedRun) -> dict[str, float]:
    """What rounding costs on a bf16 base, rms of the largest logit: of an adapter kept apart, and
    of one edited into the weights. Both against the same bf16 weights computed in float32."""
    from loraexp.adapter.formats import load_raw

    exact = load_raw(run.base(torch.bfloat16).float(), run.raw).model
    apart = run.adapted(torch.bfloat16).model
    edited = merge(run.adapted(torch.bfloat16))
    for name in models.head(edited):
        apart.get_submodule(name).bfloat16()
        edited.get_submodule(name).bfloat16()
    wanted = logits(exact)
    ways = {"bf16, kept apart": apart, "bf16, weight edited": edited}
    return {
        name: float((logits(model) - wanted).square().mean().sqrt() / wanted.abs().max())
        for name, model in ways.items()
    }


def logits(model: nn.Module) -> Tensor:
    """Logits of a model on fixed random tokens, half of the rows padded."""
    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    tokens = torch.randint(5, config.vocab_size, (8, 24), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::2, 16:] = 0
    reads = {"decoder_input_ids": tokens[:, :8]} if config.is_encoder_decoder else {}
    with torch.inference_mode():
        found: Tensor = model.eval()(input_ids=tokens, attention_mask=mask, **reads).logits
    return found.float()
