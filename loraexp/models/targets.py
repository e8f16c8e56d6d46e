"""The linear layers that get an adapter, and the modules that train in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn


def new_modules(model: nn.Module, kind: str) -> list[str]:
    """The modules that a task adds to a model: an encoder's head for classes or scores."""
    if kind != "encoder":
        return []
    body = getattr(model, "base_model_prefix", "")
    return [
        name
        for name, child in model.named_children()
        if name != body and any(True for _ in child.parameters())
    ]


def is_linear(module: nn.Module) -> bool:
    """An `nn.Linear`, or a quantised stand-in that has its attributes and computes `x Wᵀ`."""
    return (
        hasattr(module, "in_features")
        and hasattr(module, "out_features")
        and hasattr(module, "weight")
    )


ALL = "all-linear"


def target_layers(
    model: nn.Module, targets: Sequence[str], head: Sequence[str]
) -> dict[str, nn.Module]:
    """The linear layers whose name is, or ends in, one of `targets`; the new head is never among
    them.

    `all-linear` are those of the body: all but a head, an output layer, and what belongs to the
    embeddings.
    """
    linear = {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and not any(name == h or name.startswith(f"{h}.") for h in head)
    }
    if ALL in targets:
        return all_linear(model, linear, targets)
    found: dict[str, nn.Module] = {}
    for target in targets:
        matching = {n: m for n, m in linear.items() if n == target or n.endswith(f".{target}")}
        if not matching:
            raise ValueError(f"model.targets: {no_layer(model, linear, target)}")
        found |= matching
    return {name: module for name, module in linear.items() if name in found}


def no_layer(model: nn.Module, linear: Mapping[str, nn.Module], target: str) -> str:
    """Why a name is none of the linear layers': what it is, and what there is."""
    ends = sorted({name.rpartition(".")[2] for name in linear})
    there = f"the model has {', '.join(ends) or 'none'}"
    for name, module in model.named_modules():
        if f".{name}".endswith(f".{target}"):
            kind = type(module).__name__
            return f"{target!r} is a {kind}, and an adapter goes on a linear layer; {there}"
    return f"no linear layer is named {target!r}; {there}"


def all_linear(
    model: nn.Module, linear: Mapping[str, nn.Module], targets: Sequence[str]
) -> dict[str, nn.Module]:
    """Those of `linear` that are neither the output layer nor of the embeddings."""
    if len(targets) > 1:
        raise ValueError(f"model.targets={list(targets)}: {ALL} stands alone, or name the layers")
    output = getattr(model, "get_output_embeddings", lambda: None)()
    found = {
        name: module
        for name, module in linear.items()
        if module is not output and not any(part.startswith("embed") for part in name.split("."))
    }
    if not found:
        raise ValueError(
            f"model.targets={ALL}: the body of this model has no nn.Linear (GPT-2's layers are"
            " Conv1D, which is not adapted); choose another model"
        )
    return found


def check_rank(targets: Mapping[str, nn.Module], rank: int, directions: int = 0) -> None:
    """The rank fits every target, or a ValueError names the first that is smaller.

    `directions`: how many leading ones of a layer the initializer reads for this rank (2r for
    LoRA-GA).
    """
    for name, module in targets.items():
        d_out, d_in = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        if rank > min(d_out, d_in):
            raise ValueError(
                f"rank={rank}: layer {name} is ({d_out}, {d_in}); expected at most"
                f" {min(d_out, d_in)}"
            )
        if directions > min(d_out, d_in):
            most = min(d_out, d_in) * rank // directions
            raise ValueError(
                f"rank={rank}: init reads {directions} directions, and layer {name} is ({d_out},"
                f" {d_in}); expected at most {most}"
            )
