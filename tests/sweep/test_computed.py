"""A sweep without runs of its own takes the keys that say where and how, as every other sweep
does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraexp.config import ConfigError
from loraexp.records.curves import Computed
from loraexp.sweep import computed, reading

TAKEN: dict[str, Any] = {}


def small(
    *, overrides: list[str], output_root: Path, progress: Callable[[int, int], None]
) -> Computed:
    TAKEN.update(overrides=overrides, output_root=output_root)
    return Computed(values={"one": 1.0})


def read(tmp_path: Path, *words: str) -> Any:
    path = tmp_path / "mine.yaml"
    compute = {"_target_": "tests.sweep.test_computed.small", "overrides": ["task=tweets"]}
    told = {
        "title": "t",
        "paper": "p",
        "artifact": "Figure 1",
        "kind": "figure",
        "compute": compute,
    }
    path.write_text(yaml.safe_dump(told))
    return reading.load(str(path), None, list(words))


def test_its_runs_are_told_where_and_how(tmp_path: Path) -> None:
    words = (
        "wandb.mode=disabled",
        f"cache_root={tmp_path / 'cache'}",
        f"output_root={tmp_path / 'out'}",
    )
    sweep = read(tmp_path, *words)
    plain = read(tmp_path)
    into = computed.run(sweep, tmp_path / "out")
    assert {"overrides": ["task=tweets", *words[:2]], "output_root": tmp_path / "out"} == TAKEN
    assert into == computed.folder(plain, tmp_path / "out")  # none of it is part of what it is
    assert sweep.compute == plain.compute


@pytest.mark.parametrize(
    ("word", "expected"),
    {
        "lr=1e-3": (
            "lr=1e-3: expected compute.KEY=VALUE, or one of output_root, cache_root, wandb.mode"
        ),
        "wandb.mod=disabled": "wandb.mod=disabled: expected compute.KEY=VALUE, or one of",
        "wandb.mode=of": "wandb.mode=of: expected offline or online or disabled",
    }.items(),
)
def test_what_concerns_no_number_is_all_it_takes(word: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, word)
