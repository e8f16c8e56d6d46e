"""The resumable state of a run: everything that the next step depends on, written at once."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loraexp.adapter.layer import Factors
from loraexp.machine.files import replace


class Checkpoint:
    """`checkpoint/state.pt` (latest step) and `checkpoint/factors.pt` (where training started), of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_path = folder / "state.pt"
        self.factors_path = folder / "factors.pt"

    def save(self, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self.state_path, encode(state))

    def load(self) -> dict[str, Any] | None:
        return decode(self.state_path)

    def save_factors(self, factors: dict[str, Factors], extra: dict[str, Any]) -> None:
        """The initial factors and what the record says of initialising: a resumed run does not initialise again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = {name: {"A": f.A, "B": f.B, "R": f.R, "start": f.start, "train": sorted(f.train)} for name, f in factors.items()}
        replace(self.factors_path, encode({"factors": plain, "extra": extra}))

    def load_factors(self) -> tuple[dict[str, Factors], dict[str, Any]] | None:
        stored = decode(self.factors_path)
        if stored is None:
            return None
        factors = {name: Factors(**(f | {"train": frozenset(f["train"])})) for name, f in stored["factors"].items()}
        return factors, stored["extra"]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def encode(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def decode(path: Path) -> Any:
    """The content of a file of ours, or None where there is none; tensors and plain values only, no code."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def generators() -> dict[str, Any]:
    """The state of every global random generator."""
    version, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [version, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": repr(random.getstate()),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    import ast

    torch.set_rng_state(states["torch"])
    version, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(ast.literal_eval(states["python"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
