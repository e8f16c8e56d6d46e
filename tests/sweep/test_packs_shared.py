"""Packed sweeps in the workers of a launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraexp.records import record
from loraexp.run import kept
from tests.support.small_sweep import TINY, cells_of, go, written

LORA = {"lora": {"label": "LoRA", "overrides": ["init=lora"]}}


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    kept.clear()


def found(path: Path, out: Path) -> dict[tuple[float, int], dict[str, Any]]:
    """The records of a sweep by learning rate and seed."""
    return {
        (cell.plain["lr"], cell.plain["seed"]): dict(record.read(cell.folder) or {})
        for cell in cells_of(path, out)
    }


def test_workers_of_joblib_run_groups_of_which_some_are_finished_and_some_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [*TINY, "train.max_steps=4", "train.log_every=1", "train.max_grad_norm=null"]
    base += ["optimizer=gd", "train.eval_every=1000"]
    out = tmp_path / "out"
    one = written(tmp_path / "one", base=base, rows=LORA, grid={"lr": 1e-3, "seed": 0})
    assert go(one, out) == 0
    capsys.readouterr()
    grid = {"lr": [1e-3, 1e-2, 1e30], "seed": [0, 1]}
    path = written(tmp_path, base=base, rows=LORA, grid=grid)
    words = ("sweep.pack=3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert go(path, out, *words) == 1
    said = capsys.readouterr().err
    assert "6 runs, 1 finished already" in said and "4 of 6 runs finished, 2 failed" in said
    records = found(path, out)
    failed = {where for where, content in records.items() if content["status"] != "finished"}
    assert failed == {(1e30, 0), (1e30, 1)}
    assert all("is not finite" in records[where]["error"]["message"] for where in failed)
    packed = {where: content.get("packed") for where, content in records.items()}
    assert packed == {
        **{(1e-3, 0): None, (1e-2, 0): 2, (1e30, 0): 2},
        **{(1e-3, 1): 3, (1e-2, 1): 3, (1e30, 1): 3},
    }
