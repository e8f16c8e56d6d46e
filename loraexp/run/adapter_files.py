"""The files of a run's adapter, and what the record says of a run's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraexp import models
from loraexp.adapter.adapted import Adapters
from loraexp.adapter.formats import FACTORS, save_peft, save_raw
from loraexp.machine.files import sha256
from loraexp.models import Base


def write_adapter(
    place: Path, adapters: Adapters, *, base: Base, kind: str, head: Sequence[str]
) -> None:
    """In our form and in PEFT's, whose configuration names the base."""
    save_raw(adapters, place / FACTORS)
    save_peft(
        adapters,
        place,
        base=base.reference,
        revision=base.commit,
        task_type=models.PEFT_TASK[kind],
        head=head,
    )


def described(folder: Path, step: int) -> dict[str, object]:
    """What the record says of a run's weights: their step, a digest of each file, their size."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors" and path.name != FACTORS]
    return {
        "adapter": {"step": step},
        "files": {f"{folder.name}/{path.name}": sha256(path) for path in files},
        "cost": {"adapter_bytes": sum(path.stat().st_size for path in weights)},
    }
