"""Statistics on disk, found again by a digest of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraexp.adapter.adapted import whole
from loraexp.adapter.layer import Curvature
from loraexp.adapter.linalg import SVD
from loraexp.machine.files import DiskError, Fresh, on_disk, sha256
from loraexp.machine.notation import read_json
from loraexp.statistics.calibration import Batch

# of the code that makes statistics: a change of what they hold, or of the mask rule, takes the next
# number
VERSION = 2
MANIFEST = "manifest.json"


def _feed(digest: Any, name: str, x: Tensor) -> None:
    digest.update(f"{name} {x.dtype} {tuple(x.shape)}\0".encode())
    digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def fingerprint(model: nn.Module) -> str:
    """A digest of every parameter and buffer of a model: names, dtypes, shapes, values."""
    digest = hashlib.blake2b(digest_size=32)
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        _feed(digest, name, whole(x))
    return digest.hexdigest()


def rows_fingerprint(batches: Sequence[Batch]) -> str:
    """A digest of the calibration rows and of their split into batches."""
    digest = hashlib.blake2b(digest_size=32)
    for index, batch in enumerate(batches):
        for name in sorted(batch):
            _feed(digest, f"{index} {name}", batch[name])
    return digest.hexdigest()


def key(parts: Mapping[str, Any]) -> str:
    """The name of a cache entry: sha256 of everything that its statistics depend on."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def flat(statistics: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A layer's statistics as named tensors, and what of them is not a tensor."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for name, value in statistics.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, SVD):
            tensors |= {f"{name}.{part}": x for part, x in value._asdict().items()}
        elif isinstance(value, Curvature):
            parts = {field.name: getattr(value, field.name) for field in fields(Curvature)}
            tensors |= {f"{name}.{part}": x for part, x in parts.items() if isinstance(x, Tensor)}
            rest |= {f"{name}.{part}": x for part, x in parts.items() if not isinstance(x, Tensor)}
    return {name: x.detach().cpu().contiguous() for name, x in tensors.items()}, rest


def unflat(
    tensors: Mapping[str, Tensor], rest: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """The statistics again, on `device`."""
    statistics: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *rest.items()]:
        value = value.to(device) if isinstance(value, Tensor) else value
        owner, _, part = name.partition(".")
        if part:
            nested.setdefault(owner, {})[part] = value
        else:
            statistics[owner] = value
    if "leading_gradient" in nested:
        statistics["leading_gradient"] = SVD(**nested["leading_gradient"])
    if "curvature" in nested:
        notes = tuple(nested["curvature"].pop("notes"))
        statistics["curvature"] = Curvature(**nested["curvature"], notes=notes)
    return statistics


@dataclass(frozen=True)
class Store:
    """Where statistics are kept: the folder, what they depend on that the calibration does not show
    (`fingerprint` of the model, task, loss), and how many bytes it may hold."""

    root: Path
    depends: str
    limit: int = 2**31

    def entry(self, parts: Mapping[str, Any]) -> Entry:
        return Entry(self.root, key({"model": self.depends, **parts}), self.limit)


class Entry:
    """One cache entry: a folder with a file of tensors per layer and a manifest of their
    checksums."""

    def __init__(self, root: Path, digest: str, limit: int) -> None:
        self.folder, self.limit = root / digest, limit
        self.fresh = Fresh(self.folder)
        self.manifest: dict[str, Any] = {}
        self.size = 0

    def sound(self, names: Sequence[str]) -> bool:
        """Whether the entry is there, complete and undamaged; a damaged one is removed."""
        if not self.folder.is_dir():
            return False
        try:
            self.manifest = read_json(self.folder / MANIFEST, dict)
            good = list(self.manifest) == list(names) and all(
                sha256(self.folder / layer["file"], "blake2b") == layer["checksum"]
                for layer in self.manifest.values()
            )
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if not good:
            shutil.rmtree(self.folder, ignore_errors=True)
        return good

    def read(self, devices: Mapping[str, torch.device]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Layers and statistics, each on its layer's device; of an entry that `sound` has just
        approved."""
        for name, layer in self.manifest.items():
            tensors = load_file(self.folder / layer["file"])
            yield name, unflat(tensors, layer["rest"], devices[name])

    def add(self, name: str, statistics: Mapping[str, Any]) -> str | None:
        """Write a layer's statistics to the entry under construction; why not, where that would
        pass the limit, or the disk does not take it."""
        tensors, rest = flat(statistics)
        self.size += sum(x.nbytes for x in tensors.values())
        if self.size > self.limit:
            return f"larger than the cache's limit of {self.limit} bytes"
        file = f"{len(self.manifest):05d}.safetensors"
        try:
            with on_disk(self.folder, "cache_root"):
                self.fresh.folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, self.fresh.folder / file)
        except DiskError as error:
            return str(error)
        self.manifest[name] = {
            "file": file,
            "rest": rest,
            "checksum": sha256(self.fresh.folder / file, "blake2b"),
        }
        return None

    def commit(self) -> str | None:
        """Make the entry visible at once, and remove the oldest others while the folder holds more
        than the limit; why not, where the disk does not take it."""
        try:
            with on_disk(self.folder, "cache_root"):
                (self.fresh.folder / MANIFEST).write_text(json.dumps(self.manifest))
        except DiskError as error:
            return str(error)
        self._make_room()
        self.fresh.place()
        return None

    def _make_room(self) -> None:
        entries = [path.parent for path in self.folder.parent.glob(f"[!.]*/{MANIFEST}")]
        entries.sort(key=lambda entry: entry.stat().st_mtime)
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
        held = sum(sizes.values())
        for entry in entries:
            if held + self.size <= self.limit:
                break
            shutil.rmtree(entry, ignore_errors=True)
            held -= sizes[entry]
