"""Which kind of model an architecture is: an encoder, a causal model, or an encoder-decoder."""

from __future__ import annotations

import functools
from pathlib import Path

from loraexp.config import Plain
from loraexp.machine import repository
from loraexp.machine.files import Damaged
from loraexp.machine.hub import SourceError, resolve
from loraexp.machine.notation import read_json
from loraexp.models import place


def kind(model: Plain) -> str:
    """`encoder`, `seq2seq` or `causal`: what the architecture of these keys of `model` is.

    Raises: SourceError where there is none, or where it is none of the three.
    """
    name, path = model["name"], model["path"]
    if model["config"] is not None:
        return of_architecture(f"model={name}", model["config"])
    if path is None:
        raise SourceError(f"model={name}: give model.path=DIR, or the id of a model of the hub")
    return of_place(path, model["revision"])


@functools.cache
def of_place(path: str, revision: str | None) -> str:
    """The kind of the model in a folder, in a .gguf file, or on the hub."""
    where = resolve(path, key="model.path", revision=revision)
    if isinstance(where, Path) and where.suffix == ".gguf":
        return "causal"
    here = where if isinstance(where, Path) else repository.definition(place.hub(where, revision))
    try:
        return of_architecture(f"model.path={path}", read_json(here / "config.json", dict))
    except (OSError, Damaged) as error:
        reason = f"its config.json cannot be read ({error})"
        raise SourceError(f"model.path={path}: {reason}; give a complete model") from error


def of_architecture(source: str, architecture: Plain) -> str:
    """By the class that was saved; where that is a body alone, by the classes there are for its
    type, masked models first."""
    from transformers.models.auto import modeling_auto as auto

    classes = {
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    saved = architecture.get("architectures") or []
    for found, names in classes.items():
        if set(saved) & set(names.values()):
            return found
    family = str(architecture.get("model_type"))
    for found in ("seq2seq", "encoder", "causal"):
        if family in classes[found]:
            return found
    if family in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return "encoder"
    raise SourceError(
        f"{source}: its model_type is {family}, which transformers has no class of text for;"
        " expected an encoder, a causal model or an encoder-decoder"
    )
