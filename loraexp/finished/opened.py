"""A finished run opened again: its folder, record, checked settings, its original base and what it
learned from."""

from __future__ import annotations

import copy
import errno
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from loraexp import config, models
from loraexp.adapter import formats
from loraexp.adapter.adapted import Adapters
from loraexp.adapter.formats import load_raw
from loraexp.config import ConfigError, boundary
from loraexp.config.settings import Settings
from loraexp.machine import repository
from loraexp.machine.device import Runtime, choose_device, to_device
from loraexp.machine.files import Damaged, finite, sha256
from loraexp.machine.measure import ran_out
from loraexp.machine.notation import read_yaml
from loraexp.machine.processes import Processes
from loraexp.machine.progress import notice
from loraexp.machine.words import reason_of
from loraexp.records.content import CHANGED, METRICS, content, sound_lines
from loraexp.records.reading import flatten
from loraexp.records.sections import RunRecord
from loraexp.run import components, kept, sources
from loraexp.scoring.passes import in_batches

RAW = formats.FACTORS
AGAIN = "put it back, or train again with force=true"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run; `base` loads the weights that its training started from, head included."""

    folder: Path
    record: RunRecord
    settings: Settings

    @classmethod
    def of(
        cls, folder: Path, record: RunRecord, changed: Mapping[str, object] | None = None
    ) -> FinishedRun:
        """`changed`: keys of its configuration that do not say what was trained."""
        plain = replaced(stored_config(folder, record["config"]), changed or {})
        if boundary.UNSAFE not in (changed or {}):  # said on the command line, never by a file
            plain = replaced(plain, {boundary.UNSAFE: False})
        with boundary.within(folder / config.STORED):
            settings = settings_of(plain)
        repository.assume(record.get("hub", {}))  # wherever main is today
        opened = cls(folder, record, settings)
        opened.check_files(f"adapter/{RAW}")
        opened.require_same("base")
        return opened

    def require_same(self, *kinds: str) -> None:
        """What the run was made from is still that, as far as it is read again; raises
        ConfigError."""
        different = sources.changed(self.record.get("sources") or {}, *kinds)
        if different is not None:
            what, path = different
            raise ConfigError(
                f"{self.folder}: the run had other {what}: {path} has changed since; put it back,"
                " or train again with force=true"
            )

    def check_files(self, *names: str) -> None:
        """The files that the run saved are there and what they were; all of them where none is
        named.

        Raises: ConfigError naming the first that is not.
        """
        for name, digest in (self.record.get("files") or {}).items():
            if names and name not in names:
                continue
            path = self.folder / name
            if not path.is_file():
                there = "a folder is in its place" if path.exists() else "it is missing"
                raise ConfigError(f"{path}: {there}, the run saved a file; {AGAIN}")
            if sha256(path) != digest:
                raise ConfigError(
                    f"{path} is damaged: it does not have the checksum in the record; {AGAIN}"
                )

    @functools.cached_property
    def original(self) -> models.Base:
        """The base as it was before training."""
        return models.open(self.settings.model)

    @functools.cached_property
    def task(self) -> Any:
        """The task of the run, tokenised; raises ConfigError where its data are not there."""
        try:
            settings, base = self.settings, self.original
            return kept.task(settings, lambda: components.tokenise(settings, base))
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @functools.cached_property
    def device(self) -> torch.device:
        try:
            return choose_device(self.settings.device)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def runtime(self) -> Runtime:
        settings = self.settings
        processes = Processes(settings.device)
        return Runtime(device=self.device, precision=settings.precision, processes=processes)

    @property
    def raw(self) -> Path:
        """The factors as the run holds them: R and the offset apart."""
        return self.folder / "adapter" / RAW

    @property
    def has_factors(self) -> bool:
        return self.raw.exists()

    @property
    def dtype(self) -> torch.dtype:
        return models.dtype_of(
            self.settings.model, self.settings.precision, full=not self.has_factors
        )

    @property
    def last_step(self) -> int:
        """The step that the saved adapter is of: the one that validation chose, or the last."""
        if self.settings.train.select == "best" and (best := self.record.get("best")):
            return best["step"]
        path = self.folder / METRICS
        lines, _ = sound_lines(path.read_bytes() if path.exists() else b"")
        return max((line["step"] for line in lines), default=0)

    def labels(self) -> dict[str, Any]:
        """What the head of the run was made with; json has made words of the class numbers."""
        stored: dict[str, Any] = self.record["labels"]
        return {
            key: {int(i): name for i, name in value.items()} if key == "id2label" else value
            for key, value in stored.items()
        }

    def base(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The original base as the run has it, on its device; with a `dtype`, its stored weights in
        that, on the CPU and never quantised."""
        device = self.device if dtype is None else None
        model = self.original.load(
            dtype=dtype or self.dtype,
            head_seed=self.settings.seed,
            device=device,
            **self.labels(),
        )
        return model if self.settings.model.quantise or device is None else model.to(device)

    def adapted(self, dtype: torch.dtype | None = None) -> Adapters:
        """The base with the trained factors on it."""
        base = self.base(dtype)
        with usable(self.raw):
            return load_raw(base, self.raw)

    def whole(self) -> nn.Module:
        """The model that a run with `init=full` saved, in the float32 that it trained in."""
        self.check_files()
        with usable(self.folder / "adapter"):
            saved = self.original.saved(self.folder / "adapter", dtype=torch.float32)
        return saved.to(self.device).eval()

    def targets(self, model: nn.Module) -> dict[str, nn.Module]:
        return self.original.targets(model)

    def batches(self, rows: int) -> tuple[str, list[dict[str, Tensor]]]:
        """The first rows that the run did not train on, or of train where all others are generated;
        and their split's name."""
        wanted = [*self.task.reports, self.task.selection]
        split = next((name for name in wanted if name in self.task.splits), "train")
        examples = self.task.splits[split]
        size = self.settings.train.eval_batch_size
        order = np.argsort(examples.lengths[:rows], kind="stable")
        parts = [self.task.collate(examples, part) for part in in_batches(order, size)]
        return split, [to_device(part, self.device) for part in parts]


def replaced(plain: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, object]:
    """A stored configuration with other values at some dotted keys."""
    whole = copy.deepcopy(dict(plain))
    for key, value in changed.items():
        *groups, name = key.split(".")
        node = whole
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return whole


def settings_of(plain: Mapping[str, Any]) -> Settings:
    """The settings of a run; the code of its initializer and optimizer, which have done their work,
    need not be there."""
    try:
        return config.checked(plain)[0]
    except ConfigError:
        try:
            for group in ("init", "optimizer"):
                config.target(plain[group], group)
        except ConfigError:
            return config.typed(plain)
        raise


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Within: a file of the run is read, and what a library says of one that is damaged names it.

    Raises: ConfigError.
    """
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if is_refused(error):
            raise
        raise ConfigError(f"{path} is damaged ({reason_of(error)}); {AGAIN}") from error


def is_refused(error: BaseException) -> bool:
    """Whether it is no damage: the system has no memory or no open file left for this process."""
    return ran_out(error) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)


def stored_config(folder: Path, recorded: Mapping[str, object]) -> dict[str, Any]:
    """The configuration of a run as it is in its folder, with every key of the one in its record;
    what has another value there is said.

    Raises: ConfigError where it is not there, cannot be read, or lacks a key.
    """
    path = folder / config.STORED
    try:
        stored = read_yaml(path, dict)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); {AGAIN}") from error
    except Damaged as error:
        raise ConfigError(f"{error}: it is damaged; {AGAIN}") from error
    lost, other = [], []
    here = flatten(finite(stored))
    for key, value in flatten(finite(recorded)).items():
        if key not in here:
            lost.append(key)
        elif here[key] != value:
            other.append(f"{key} is {here[key]}, and {value} in the record")
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ConfigError(f"{path} is damaged: it has no {lost[0]}{more}; {AGAIN}")
    if other:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        notice(f"{path} was changed since the run: {other[0]}{more}")
    return stored


def find_run(word: str) -> tuple[Path, RunRecord]:
    """A run folder by its path or a file in it, or by its id under any output root here; with its
    record."""
    folder = Path(word).parent if Path(word).name == config.RECORD else Path(word)
    if not folder.is_dir():
        folders = [
            path.parent
            for path in ([] if "/" in word else sorted(Path().glob(f"*/**/{config.RECORD}")))
            if path.parent.name == word or path.parent.name.endswith(f"-{word}")
        ]
        if len(folders) != 1:
            raise ConfigError(
                f"{word}: expected a run folder, or the id of one run in a folder here"
                f" ({len(folders)} found)"
            )
        folder = folders[0]
    found = content(folder)
    if found.record is None or not found.finished:
        status = (
            f"status {found.record['status']}" if found.record is not None else "no record.json"
        )
        if found.error is not None:
            status = f"a record.json that {found.error}"
        raise ConfigError(f"{folder}: expected a finished run, found {status}")
    if found.changed:
        notice(f"{folder / config.RECORD} {CHANGED}")
    return folder, found.record


def open_run(word: str, changed: Mapping[str, object] | None = None) -> FinishedRun:
    """The finished run that `word` names, with some keys of its configuration changed."""
    return FinishedRun.of(*find_run(word), changed)
