"""Adapters on disk: PEFT's format, which loads on the original base, and ours, which keeps R and
offset apart; merged weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from loraexp.adapter.adapted import Adapters, attach
from loraexp.adapter.layer import Factors
from loraexp.adapter.linalg import at_least_float32


def save_peft(
    adapters: Adapters,
    folder: Path,
    *,
    base: str,
    revision: str | None,
    task_type: str,
    head: Iterable[str],
) -> int:
    """Write `adapter_config.json` and `adapter_model.safetensors` as PEFT reads them; returns the
    bytes of the weights.

    Every layer is written as the ordinary pair of `plain_pair()`, its own rank and alpha in PEFT's
    patterns, so the folder loads on the original base whatever R or offset the training used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in adapters.layers.items():
        A, B = layer.plain_pair()
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.cpu().contiguous()
        ranks[name], alphas[name] = A.shape[0], layer.scaling * A.shape[0]
    for name, parameter in adapters.others.items():
        tensors[f"base_model.model.{name}"] = parameter.detach().cpu().contiguous()
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    alpha = alphas[next(name for name in ranks if ranks[name] == rank)]
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(adapters.layers),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: alphas[name] for name, r in ranks.items() if r != rank},
        "modules_to_save": sorted(head) or None,
        "bias": "none",
        "lora_dropout": max((layer.dropout for layer in adapters), default=0.0),
        "use_rslora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    path = folder / "adapter_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return path.stat().st_size


FACTORS = "factors.safetensors"  # the file that `save_raw` writes in a run's folder
RAW = ("lora_A", "lora_B", "lora_R", "offset_A", "offset_B")


def save_raw(adapters: Adapters, path: Path) -> None:
    """The factors as they trained, R and offset apart: what `load_raw` puts back, and PEFT's files
    cannot tell."""
    tensors = {
        f"{name}.{part}": getattr(layer, part).detach().cpu().contiguous()
        for name, layer in adapters.layers.items()
        for part in RAW
        if getattr(layer, part) is not None
    }
    said = {
        "scalings": {name: layer.scaling for name, layer in adapters.layers.items()},
        "others": list(adapters.others),
    }
    tensors |= {
        f"{name}.weight": p.detach().cpu().contiguous() for name, p in adapters.others.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"loraexp": json.dumps(said)})


def load_raw(model: nn.Module, path: Path) -> Adapters:
    """Attach the factors that `save_raw` wrote to a freshly loaded base, and set its head."""
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["loraexp"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    adapters = Adapters(model, {}, {})
    for name, scaling in said["scalings"].items():
        parts = {part: tensors.get(f"{name}.{part}") for part in RAW}
        factors = Factors(
            A=tensors[f"{name}.lora_A"],
            B=tensors[f"{name}.lora_B"],
            R=parts["lora_R"],
            start="shifted",
        )
        adapters.layers |= attach(model, {name: factors}, scaling).layers
        own = adapters.layers[name].factors
        own.offset_A, own.offset_B = (
            None if part is None else part.to(own.lora_A.device)
            for part in (parts["offset_A"], parts["offset_B"])
        )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in said["others"]:
            parameters[name].copy_(tensors[f"{name}.weight"])
            adapters.others[name] = parameters[name]
    return adapters


def merge(adapters: Adapters) -> nn.Module:
    """Add each update to its weight, once and in float32, and put the plain layers back; returns
    the model."""
    with torch.no_grad():
        for name, layer in adapters.layers.items():
            weight = layer.base.weight
            if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point:
                raise ValueError(
                    f"layer {name}: a weight of type {weight.dtype} cannot be merged; load the base"
                    " unquantised"
                )
            weight.copy_((at_least_float32(weight) + layer.update()).to(weight.dtype))
            parent, _, child = name.rpartition(".")
            setattr(adapters.model.get_submodule(parent), child, layer.base)
    adapters.layers.clear()
    return adapters.model
