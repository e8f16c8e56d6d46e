"""What a run was made from on this disk: files of data, of the base and of one's own code, and
whether they still are that."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loraexp import config
from loraexp.config.settings import Settings
from loraexp.machine.files import sha256
from loraexp.models import Base
from loraexp.records.record import Record

BASE = (
    "*.safetensors",
    "pytorch_model*.bin",
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.*",
)
NAMES = {
    "data": "data",
    "base": "base weights",
    "init": "initializer code",
    "optimizer": "optimizer code",
    "task": "task code",
}
Sources = dict[str, dict[str, Any]]


def of(settings: Settings, base: Base, described: Mapping[str, object]) -> Sources:
    """Each file by its path: what it is to the run, its size, when it was changed, and the digest
    of its content."""
    sources: Sources = {}
    for what, path in [*data(described), *model(base), *code(settings)]:
        if str(path) not in sources:
            stat = path.stat()
            sources[str(path)] = {
                "what": what,
                "bytes": stat.st_size,
                "changed": stat.st_mtime_ns,
                "sha256": sha256(path),
            }
    return sources


def data(described: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The local files that the task's splits say they were read from."""
    for split in described.values():
        for word in str(split.get("source") or "").split(", "):
            if word.startswith("/") and Path(word).is_file():
                yield "data", Path(word)


def model(base: Base) -> Iterator[tuple[str, Path]]:
    """The weights, architecture and tokenizer in a folder of one's own; what is the hub's has a
    commit."""
    if base.settings.path is not None and isinstance(base.place, Path):
        for pattern in BASE:
            yield from (("base", path) for path in sorted(base.place.glob(pattern)))


def code(settings: Settings) -> Iterator[tuple[str, Path]]:
    """The files of an initializer, optimizer or task that is not this program's."""
    for group in ("init", "optimizer", "task"):
        function = config.target(getattr(settings, group), group)
        if not str(getattr(function, "__module__", "")).startswith("loraexp."):
            file = inspect.getsourcefile(inspect.unwrap(function))
            if file is not None and Path(file).is_file():
                yield group, Path(file).absolute()


def changed(sources: Mapping[str, Mapping[str, Any]], *kinds: str) -> tuple[str, str] | None:
    """(what it is, path) of the first file whose content is another now; one that is gone, or only
    touched, is not."""
    for name, known in sources.items():
        if kinds and known["what"] not in kinds:
            continue
        path = Path(name)
        if not path.is_file():
            continue
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (known["bytes"], known["changed"]):
            continue
        if sha256(path) != known["sha256"]:
            return NAMES[known["what"]], name
    return None


def require_same(record: Mapping[str, Any], folder: Path) -> None:
    """A run that is finished, or goes on, is of what is there now.

    Raises: ConfigError naming what has changed, and what to type.
    """
    different = changed(record.get("sources") or {})
    if different is None:
        return
    what, path = different
    if record["status"] == "finished":
        raise config.ConfigError(
            f"finished already, with other {what}: {path} has changed since ({folder}); force=true"
            " runs it again with what is there now, a new seed keeps both"
        )
    if (folder / "checkpoint").exists():
        raise config.ConfigError(
            f"this run began with other {what}: {path} has changed since ({folder}); put it back to"
            " go on, or force=true begins again"
        )


def require_same_rows(record: Record, described: Mapping[str, Any]) -> None:
    """A run that goes on has the rows that it began with, wherever they were read.

    Raises: ConfigError naming the split; the checkpoint stays.
    """
    before = record.before.get("data") or {}
    for split, rows in described.items():
        old, new = (part.get("fingerprint") for part in (before.get(split) or {}, rows))
        if old is not None and old != new:
            record.update(
                **{key: record.before[key] for key in ("data", "sources") if key in record.before}
            )
            raise config.ConfigError(
                f"this run began with other data: the rows of {split} have fingerprint"
                f" {str(new)[:12]}, and had {str(old)[:12]} ({record.folder}); put them back to go"
                " on, or force=true begins again"
            )
