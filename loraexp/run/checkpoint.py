"""The resumable state of a run: everything that the next step depends on, written at once and read
back only if whole."""

from __future__ import annotations

import ast
import dataclasses
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraexp.adapter.layer import Factors
from loraexp.machine.files import Damaged, check_seal, sealed, set_aside, sha256
from loraexp.machine.progress import log
from loraexp.machine.tensors import read_tensors, write_tensors
from loraexp.machine.words import message_of
from loraexp.records.record import Mark

FORMAT = 3  # of what a checkpoint holds: a change of it takes the next number


@dataclass
class Progress:
    """Where training is: all of it goes into a checkpoint."""

    step: int = 0
    judged: int = 0  # the step of the last evaluation
    saved: int = 0  # the step of the last checkpoint
    tokens: int = 0
    samples: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    best: dict[str, Any] | None = None  # its weights are those of the checkpoint of its step
    evaluations_without_better: int = 0
    stopped_early: bool = False
    loss: Any = 0.0  # summed over the steps since the last line of the log, of this process
    steps: int = 0  # since that line
    parts: dict[str, float] = field(default_factory=dict)  # seconds of the loop, by its clock
    peak: int = 0  # bytes of memory, of the attempts so far

    def count(self, loss: Tensor, *, rows: int, tokens: int) -> None:
        """One more step."""
        self.step += 1
        self.samples += rows
        self.tokens += tokens
        self.loss = self.loss + loss
        self.steps += 1


@dataclass(frozen=True, kw_only=True)
class State:
    """What a checkpoint is given, and gives back. Tensors are on their device until they are
    written, and on the disk until they are copied from: the host's memory holds none of them."""

    progress: Progress
    weights: Mapping[str, Any]  # Entries to write, tensors when read
    moments: Mapping[str, Any]  # likewise, by `number of the parameter.name`
    groups: dict[str, Any]  # the optimizer's state_dict without the moments
    # of each process: its random generators, and the loss that it has not yet logged
    ranks: list[dict[str, Any]]
    history: Mark | None = None  # how long the log was, and its digest


class Checkpoint:
    """`checkpoint/state.pt` (latest step) and `checkpoint/factors.pt` (where training started), of
    one run.

    Both are sealed with a digest of their content, and the first names the safetensors files that
    hold weights and moments, with theirs: it is written last, so a step is there whole or not at
    all. What is damaged, or of another run, is set aside under another name and `damage` says so;
    the run then starts from what is sound.
    """

    def __init__(self, folder: Path, run_id: str, *, selects: bool = True) -> None:
        """`selects`: the weights of the best step may be the result, and are kept."""
        self.folder, self.run_id, self.selects = folder, run_id, selects
        self.state_path = folder / "state.pt"
        self.factors_path = folder / "factors.pt"
        self.damage: list[str] = []

    # ----------------------------------------------------------------------------------------------
    # the latest step

    def weights_at(self, step: int) -> Path:
        """The weights that were trained, at a step: of the latest checkpoint, and of the best."""
        return self.folder / f"weights-{step:07d}.safetensors"

    def moments_at(self, step: int) -> Path:
        return self.folder / f"moments-{step:07d}.safetensors"

    def save(self, state: State) -> None:
        """Write a state; of those before, the weights of the best step stay."""
        step, best = state.progress.step, state.progress.best if self.selects else None
        self.folder.mkdir(parents=True, exist_ok=True)
        fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(State)}
        weights, moments = self.weights_at(step), self.moments_at(step)
        files = {
            weights.name: write_tensors(weights, fields.pop("weights")),
            moments.name: write_tensors(moments, fields.pop("moments")),
        }
        if best is not None:
            chosen = self.weights_at(best["step"]).name
            files |= {} if chosen in files else {chosen: self._digests()[chosen]}
        self._write(self.state_path, fields | {"progress": vars(state.progress), "files": files})
        for path in self.folder.glob("*.safetensors"):
            if path.name not in files:
                path.unlink()
        log(f"  checkpoint at step {step}")

    def _digests(self) -> dict[str, str]:
        """What the latest state says of the files beside it."""
        stored = contents(self.state_path)
        files: dict[str, str] = stored["files"]
        if self.selects:
            return files
        step = stored["progress"]["step"]
        own = (self.weights_at(step).name, self.moments_at(step).name)
        return {name: files[name] for name in own}

    def load(self) -> State | None:
        """The latest state; None where there is none. `examine` has seen to it that it can be
        used."""
        stored = self._read(self.state_path)
        if not stored:
            return None
        progress = Progress(**stored.pop("progress"))
        del stored["files"]
        return State(
            progress=progress,
            weights=read_tensors(self.weights_at(progress.step)),
            moments=read_tensors(self.moments_at(progress.step)),
            **stored,
        )

    def best(self, step: int) -> dict[str, Tensor]:
        """The weights of the step that was best, where they lie on the disk."""
        return read_tensors(self.weights_at(step))

    # ----------------------------------------------------------------------------------------------
    # the first step

    def save_factors(self, factors: dict[str, Factors], extra: Mapping[str, object]) -> None:
        """The initial factors and what the record says of initialising: a resumed run does not
        initialise again."""
        plain = {
            name: {"A": f.A, "B": f.B, "R": f.R, "start": f.start, "train": sorted(f.train)}
            for name, f in factors.items()
        }
        self._write(self.factors_path, {"factors": plain, "extra": extra})

    def load_factors(self) -> tuple[dict[str, Factors], dict[str, Any]] | None:
        """The initial factors, and what the record says of initialising; None where there are
        none."""
        stored = self._read(self.factors_path)
        if stored is None:
            return None
        factors = {
            name: Factors(**(f | {"train": frozenset(f["train"])}))
            for name, f in stored["factors"].items()
        }
        return factors, stored["extra"]

    # ----------------------------------------------------------------------------------------------
    # files

    def examine(self, *, factors: bool) -> None:
        """Set aside whatever is damaged; one process does it before all of them read.

        `factors`: training starts from factors of an initializer, without which a later state is of
        no use.
        """
        started = not factors or self._sound(self.factors_path, "the initializer")
        if not started and self.state_path.exists():
            set_aside(self.state_path)
        if self._sound(self.state_path, "the first step"):
            files, step = self._digests(), contents(self.state_path)["progress"]["step"]
            latest = (self.weights_at(step).name, self.moments_at(step).name)
            # of all of them each: what is damaged is all named
            if not all([self._as_written(name, files[name], name in latest) for name in files]):
                set_aside(self.state_path)

    def remove(self) -> None:
        """Remove what a finished run does not need; what was set aside goes with it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with sealed(path) as file:
            torch.save(content | {"format": FORMAT, "run_id": self.run_id}, file)  # type: ignore[arg-type]

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        return {k: v for k, v in contents(path).items() if k not in ("format", "run_id")}

    def _sound(self, path: Path, instead: str) -> bool:
        """Whether a file can be used; one that cannot is set aside."""
        if not path.exists():
            return False
        try:
            check_seal(path)
            stored = contents(path, mmap=True)
            if stored.get("format") != FORMAT:
                raise Damaged(
                    f"its format is {stored.get('format')}, expected {FORMAT}: another version"
                    " wrote it"
                )
            if stored.get("run_id") != self.run_id:
                raise Damaged(f"it is of run {stored.get('run_id')}, expected {self.run_id}")
        except (IsADirectoryError, ValueError, RuntimeError, EOFError, pickle.PickleError) as error:
            self._put_aside(path, instead, error)
            return False
        return True

    def _as_written(self, name: str, digest: str, latest: bool) -> bool:
        """Whether a file of tensors is what the state says; one that is not is set aside. `latest`:
        of the step to go on at, and not of the best before it."""
        path = self.folder / name
        why = (
            "" if latest else ": nothing else has the weights of its best step, perhaps the result"
        )
        instead = f"the first step{why}"
        try:
            if sha256(path) != digest:
                raise Damaged("its content does not have the checksum that was written with it")
        except FileNotFoundError:
            self.damage.append(f"{path} is not there; starting again from {instead}")
            return False
        except (IsADirectoryError, Damaged) as error:
            self._put_aside(path, instead, error)
            return False
        return True

    def _put_aside(self, path: Path, instead: str, error: Exception) -> None:
        aside = set_aside(path)
        why = message_of(error)
        self.damage.append(
            f"{path} is damaged; starting again from {instead} ({why}; kept as {aside.name})"
        )


def contents(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a file of ours; tensors and plain values only, no code."""
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(loaded, dict):
        raise Damaged(f"it holds a {type(loaded).__name__}")
    return loaded


# --------------------------------------------------------------------------------------------------
# random generators


def states() -> dict[str, Any]:
    """The state of every global random generator, as each library gives it."""
    found: dict[str, object] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(found: Mapping[str, Any]) -> None:
    """Put the state of every global random generator back."""
    torch.set_rng_state(found["torch"])
    np.random.set_state(found["numpy"])
    random.setstate(found["python"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])


def generators() -> dict[str, Any]:
    """The same in tensors and plain values, as a checkpoint holds them."""
    found = states()
    version, keys, *rest = found["numpy"]
    numpy = [version, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest]
    return found | {"numpy": numpy, "python": repr(found["python"])}


def restore_generators(stored: Mapping[str, Any]) -> None:
    """Put back what a checkpoint holds."""
    version, keys, *rest = stored["numpy"]
    numpy = (version, keys.numpy().astype(np.uint32), *rest)
    restore({**stored, "numpy": numpy, "python": ast.literal_eval(stored["python"])})


def seed_generators(seed: int, rank: int, step: int = 0) -> None:
    """Seed every global generator; processes differ in dropout, not in data order or initial
    factors.

    `step`: of a run that goes on with another number of processes than it had, whose old states fit
    nobody.
    """
    torch.manual_seed(seed + 1_000_003 * rank + 7_368_787 * step)
    random.seed(seed + step)
    np.random.seed((seed + step) % 2**32)
