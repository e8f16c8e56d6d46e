"""Where the files of a model are, and which weights lie there."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loraexp.machine import progress, repository
from loraexp.machine.files import Damaged, digest_now
from loraexp.machine.hub import SourceError, resolve
from loraexp.machine.notation import read_json
from loraexp.machine.repository import Repository
from loraexp.machine.words import message_of

if TYPE_CHECKING:
    from loraexp.config.settings import ModelSettings


# the files that hold an object, whoever saved the model
DESCRIBED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def locate(settings: ModelSettings) -> Path | str:
    """A folder, or a hub id, where the weights are; of a .gguf file, the folder that it was
    converted to."""
    if settings.path is None:
        raise SourceError(
            f"model={settings.name}: model.path and model.config are both null; give one of them"
        )
    place = resolve(settings.path, key="model.path", revision=settings.revision)
    if isinstance(place, Path) and place.suffix == ".gguf":
        from loraexp.models.gguf import converted

        return converted(place, kind=settings.kind, sha256=settings.sha256)
    return place


def hub(id: str, revision: str | None, key: str = "model.path") -> Repository:
    """The model's repository on the hub."""
    return Repository(id, "model", revision, repository.MODEL._replace(source=key, folder=key))


def weights_digest(folder: Path) -> str | None:
    """sha256 of a folder's weights: of the file, or of the digests of several; a file is read again
    when it changes."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    digests = [digest_now(path) for path in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@contextmanager
def loading() -> Iterator[None]:
    """transformers without its loading reports."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as client

    with progress.silent(client, logging.ERROR):
        yield


def unreachable(
    settings: ModelSettings, place: Path | str, what: str, error: Exception
) -> SourceError:
    """One line: what was looked for, where, why it cannot be used, and how to provide it."""
    if isinstance(place, Path) and (wrong := damage(place)) is not None:
        return SourceError(
            f"model={settings.name}: {wrong}; put the file right, or set model.path=DIR to a whole"
            " copy"
        )
    reason = message_of(error)
    remedy = (
        "set model.path=DIR to a complete copy"
        if isinstance(place, Path)
        else "set model.path to a complete repository or folder"
    )
    return SourceError(
        f"model={settings.name}: no usable {what} in {place}: {reason[:200]}; {remedy}"
    )


def damage(folder: Path) -> str | None:
    """The first of a model's small files that is damaged: file, line and what is wrong there."""
    for path in sorted(folder.glob("*.json")):
        described = path.name in DESCRIBED or path.name.endswith(".index.json")
        try:
            read_json(path, dict if described else object)
        except Damaged as error:
            return str(error)
        except OSError as error:
            return f"{path}: {error.strerror}"
    return None
