"""A finished run for use elsewhere: a PEFT adapter folder, or the base with the update merged once in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from loraexp.adapter.formats import merge
from loraexp.config import ConfigError
from loraexp.finished.opened import RAW, FinishedRun
from loraexp.models import load


def check_place(to: Path) -> None:
    """A folder that does not exist yet, or an empty one."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        what = "the folder is not empty" if to.is_dir() else "there is a file of that name"
        raise ConfigError(f"--to {to}: {what}; give a new one")


def adapter(run: FinishedRun, to: Path) -> None:
    """What the run saved, in PEFT's format (of `init=full`, the whole model)."""
    check_place(to)
    run.check_files()
    to.mkdir(parents=True, exist_ok=True)
    for path in (run.folder / "adapter").iterdir():
        if path.name != RAW:
            shutil.copy2(path, to / path.name)


def merged(run: FinishedRun, to: Path) -> None:
    """A whole checkpoint: the original base in float32 with the update added, and its tokenizer."""
    if not run.has_factors:
        return adapter(run, to)
    check_place(to)
    to.mkdir(parents=True, exist_ok=True)
    merge(run.adapted(torch.float32)).save_pretrained(to)  # type: ignore[operator]
    load.load_tokenizer(run.settings.model).save_pretrained(to)
