"""A finished run for use elsewhere: a PEFT adapter folder, or the base with the update merged once
in float32."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from loraexp import models
from loraexp.adapter.formats import merge
from loraexp.config import ConfigError
from loraexp.finished.card import card
from loraexp.finished.opened import RAW, FinishedRun
from loraexp.machine.files import replace, write_json
from loraexp.machine.notation import read_json


def check_place(to: Path) -> None:
    """A folder that does not exist yet, or an empty one."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        what = "the folder is not empty" if to.is_dir() else "there is a file of that name"
        raise ConfigError(f"--to {to}: {what}; give a new one")


def adapter(run: FinishedRun, to: Path) -> None:
    """What the run saved, in PEFT's format (of `init=full`, the whole model), with its tokenizer,
    labels and card."""
    check_place(to)
    run.check_files()
    to.mkdir(parents=True, exist_ok=True)
    for path in (run.folder / "adapter").iterdir():
        if path.name != RAW:
            shutil.copy2(path, to / path.name)
    base, revision = base_of(run)
    if run.has_factors:
        path = to / "adapter_config.json"
        write_json(
            path,
            read_json(path, dict) | {"base_model_name_or_path": base, "revision": revision},
        )
    else:
        path = to / "config.json"
        write_json(path, read_json(path, dict) | both_ways(run.labels()))
    accompany(run, to, base, revision, is_adapter=run.has_factors)


def merged(run: FinishedRun, to: Path) -> None:
    """A whole checkpoint: the original base in float32 with the update added, its tokenizer, labels
    and card."""
    if not run.has_factors:
        return adapter(run, to)
    check_place(to)
    run.check_files()
    to.mkdir(parents=True, exist_ok=True)
    model: Any = models.written_out(merge(run.adapted(torch.float32)))
    for key, value in both_ways(run.labels()).items():
        setattr(model.config, key, value)
    model.save_pretrained(to)
    accompany(run, to, *base_of(run), is_adapter=False)


def accompany(
    run: FinishedRun, to: Path, base: str, revision: str | None, *, is_adapter: bool
) -> None:
    """What a stranger needs beside the weights: the tokenizer, how the model writes, the labels by
    name, the card."""
    run.original.tokenizer.save_pretrained(to)
    if run.settings.model.kind != "encoder":
        run.original.generation.save_pretrained(to)
    if labels := both_ways(run.labels()):
        write_json(
            to / "labels.json",
            {key: labels[key] for key in ("num_labels", "id2label", "label2id") if key in labels},
        )
    replace(to / "README.md", card(run, base, revision, adapter=is_adapter).encode())


def both_ways(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels with the number of each name, too."""
    if "id2label" not in labels:
        return dict(labels)
    return {**labels, "label2id": {name: number for number, name in labels["id2label"].items()}}


def base_of(run: FinishedRun) -> tuple[str, str | None]:
    """The base as others find it: its id and commit on the hub; a folder of one's own by its
    path."""
    model = run.settings.model
    known = run.settings.facts.get("model") or {}
    if str(model.path).startswith("package:") and model.sha256 is not None and "hub" in known:
        return str(known["hub"]), known.get("revision")  # the same file, by its sha256
    stored = (
        read_json(run.folder / "adapter" / "adapter_config.json", dict) if run.has_factors else {}
    )
    place = stored.get("base_model_name_or_path") or model.path or model.name
    return (
        str(place),
        (run.record.get("model") or {}).get("commit") or stored.get("revision") or model.revision,
    )
