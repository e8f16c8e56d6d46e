"""What was loaded against what the model has: a weight that matches nothing is a refusal, a part
that was drawn is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from loraexp.config import Plain
from loraexp.machine.hub import SourceError

# Parts of a body that a checkpoint of another purpose lacks (a masked language model has no
# pooler): they are drawn, and train and are saved like the new head.
DRAWN = ("pooler",)
# Names that a checkpoint may have although the model computes them itself.
COMPUTED = (
    "position_ids",
    "inv_freq",
    "attn.bias",
    "masked_bias",
    "token_type_ids",
    "num_batches_tracked",
)
SHOWN = 3
Shape: TypeAlias = tuple[int, ...]


@dataclass
class Loaded:
    """How a model came to its weights; it is the model's attribute `loaded`."""

    # modules without a pretrained weight: the new head, and a drawn pooler
    drawn: list[str] = field(default_factory=list)
    # modules of the head that the checkpoint had, which train on
    kept: list[str] = field(default_factory=list)
    # targets that shared their weight with another layer and have their own now
    untied: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a reader must know, one line each


def inspect(name: str, model: Any, head: Sequence[str], found: Plain, keep: bool) -> Loaded:
    """What `from_pretrained` said of keys that are missing, unexpected or of another shape; raises
    SourceError.

    `head`: the modules that the task added; `keep`: the user wants the checkpoint's own.
    """
    missing = sorted(found["missing_keys"])
    unexpected = [key for key in sorted(found["unexpected_keys"]) if not key.endswith(COMPUTED)]
    mismatched = {
        str(key): (tuple(stored), tuple(here))
        for key, stored, here in sorted(found["mismatched_keys"])
    }
    refuse_prefix(name, unexpected, model)
    pools = absent(model, missing)
    new = [*head, *pools]
    lost = [key for key in missing if not inside(key, new)]
    if lost:
        raise SourceError(
            f"model={name}: the checkpoint has no weight for {listed(lost)}: it is not a whole"
            f" checkpoint of this architecture ({type(model).__name__}); give the one that its"
            " config.json belongs to"
        )
    if bodily := {key: shapes for key, shapes in mismatched.items() if not inside(key, head)}:
        key, (stored, here) = next(iter(bodily.items()))
        raise SourceError(
            f"model={name}: {key} is {stored} in the checkpoint and {here} in the model"
            f" ({len(bodily)} such); config.json is not its own"
        )
    if foreign := extra(unexpected, model):
        raise SourceError(
            f"model={name}: the checkpoint has {listed(foreign)}, which the model"
            f" ({type(model).__name__}) has not: config.json is another model's, or has fewer"
            " layers"
        )
    there = [
        part for part in head if not any(inside(key, [part]) for key in (*missing, *mismatched))
    ]
    return decided(name, head, pools, there, mismatched, keep)


def decided(
    name: str,
    head: Sequence[str],
    pools: list[str],
    there: list[str],
    mismatched: Mapping[str, tuple[Shape, Shape]],
    keep: bool,
) -> Loaded:
    """Which parts are drawn anew and which are kept, and what is said of it."""
    notes = [
        f"{pool} has no weights in the checkpoint: it is drawn from the seed, trains in full and is"
        " saved"
        for pool in pools
    ]
    if keep:
        if list(head) != there:
            first = next(iter(mismatched.items()), None)
            has = (
                f"{first[0]} of shape {first[1][0]}, and the task needs {first[1][1]}"
                if first
                else f"no {', '.join(set(head) - set(there))}"
            )
            raise SourceError(
                f"model.head=keep: the checkpoint of model={name} has {has}; set model.head=new to"
                " draw the head from the seed"
            )
        return Loaded(
            drawn=pools,
            kept=list(head),
            notes=[*notes, f"the checkpoint's own head ({', '.join(head)}) is kept and trains on"],
        )
    if there:
        notes.append(
            f"the checkpoint's own head ({', '.join(there)}) is replaced by one drawn from the"
            " seed; model.head=keep keeps it"
        )
    for key, (stored, here) in mismatched.items():
        if key.endswith("weight"):
            notes.append(
                f"the checkpoint's {key} has shape {stored} and the task needs {here}: its body is"
                " loaded, the head is drawn"
            )
    return Loaded(drawn=[*head, *pools], notes=notes)


def refuse_prefix(name: str, unexpected: Sequence[str], model: nn.Module) -> None:
    """Every key under one more prefix than the model has: `_orig_mod.` of a compiled model,
    `module.` of a parallel one."""
    own = model.state_dict().keys()
    for prefix in {key.partition(".")[0] + "." for key in unexpected}:
        if any(key.startswith(prefix) and key.removeprefix(prefix) in own for key in unexpected):
            raise SourceError(
                f"model={name}: the checkpoint's keys begin with {prefix!r} ({listed(unexpected)}):"
                " it was saved from a wrapped model (torch.compile, DataParallel); save the model"
                f" inside it, or take {prefix!r} off the keys"
            )


def absent(model: nn.Module, missing: Iterable[str]) -> list[str]:
    """Children of the body of which no parameter is in the checkpoint, and which may be drawn."""
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None)
    if not isinstance(body, nn.Module):
        return []
    gone = set(missing)
    places = {
        f"{prefix}.{child}": module for child, module in body.named_children() if child in DRAWN
    }
    return [
        place
        for place, module in places.items()
        if own_names(place, module) and own_names(place, module) <= gone
    ]


def own_names(place: str, module: nn.Module) -> set[str]:
    return {f"{place}.{name}" for name, _ in module.named_parameters()}


def extra(unexpected: Iterable[str], model: nn.Module) -> list[str]:
    """Unexpected keys that are the body's: those in a module that the body has. Another head's are
    nobody's loss."""
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, model)
    children = {name for name, _ in body.named_children()}
    found = []
    for key in unexpected:
        bare = key.removeprefix(f"{prefix}.")
        if bare.partition(".")[0] in children and (
            key != bare or not hasattr(model, bare.partition(".")[0])
        ):
            found.append(key)
    return found


def inside(key: str, modules: Iterable[str]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)


def listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def shared(model: nn.Module) -> list[list[str]]:
    """The modules that have one weight between them, in groups."""
    owners: dict[int, list[str]] = {}
    for place, module in model.named_modules():
        if isinstance(weight := module._parameters.get("weight"), nn.Parameter):
            owners.setdefault(id(weight), []).append(place)
    return [places for places in owners.values() if len(places) > 1]


def own_weight(module: Any) -> None:
    """A copy of the weight that a module has shared, for it alone."""
    weight = module.weight
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


def untie(model: Any, targets: Sequence[str]) -> None:
    """Give every target a weight of its own where it shared one (an output layer with the
    embedding), and say which.

    An adapter changes one layer; merged into a shared weight it would change two.
    """
    ends = tuple(f".{target}" for target in targets)
    for group in shared(model):
        for target in (place for place in group if f".{place}".endswith(ends)):
            own_weight(model.get_submodule(target))
            model.config.tie_word_embeddings = False
            model.loaded.untied.append(target)
            others = ", ".join(place for place in group if place != target)
            model.loaded.notes.append(
                f"{target} shared its weight with {others}: it has its own from here on, so that"
                " the adapter changes one layer"
            )


def written_out(model: Any) -> Any:
    """An untied model with nothing left that a reader of its checkpoint must infer from
    `tie_word_embeddings`.

    With it false, BART's encoder and decoder do not take their embedding from the shared one, so
    each is written. T5 divides what its output layer reads by √d where it is tied (and where
    `scale_decoder_outputs` says so, which older versions of transformers do not know): the division
    moves into the weight.
    """
    if not model.loaded.untied:
        return model
    for group in shared(model):
        for place in group[1:]:
            own_weight(model.get_submodule(place))
    if getattr(model.config, "scale_decoder_outputs", False):
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(model.config.d_model**-0.5)
        model.config.scale_decoder_outputs = False
    return model
