"""Packed sweeps in the workers of a launcher, and in two commands at once."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from loraexp.records import record
from loraexp.run import kept
from loraexp.sweep import watch, worker
from tests.support.forks import Command
from tests.support.runs import metric_lines
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


def logs_of(process: int) -> frozenset[Path]:
    """The folders of the runs whose log a process has open."""
    with suppress(psutil.Error):
        files = (Path(file.path) for file in psutil.Process(process).open_files())
        return frozenset(path.parent for path in files if path.name == "run.log")
    return frozenset()


def test_two_commands_share_a_packed_sweep_and_train_nothing_twice(tmp_path: Path) -> None:
    """Five groups, of each of which one command trains all: they see each other's claims before a
    run has begun."""
    base = [*TINY, "train.max_steps=24", "train.log_every=1", "train.eval_every=1000"]
    grid = {"lr": [1e-3, 1e-2, 3e-3], "seed": [0, 1, 2, 3, 4]}
    path, out = written(tmp_path, base=base, rows=LORA, grid=grid), tmp_path / "out"
    asked = ("sweep", str(path), f"output_root={out}", "sweep.pack=3")
    both = [Command(*asked, log=tmp_path / f"said{i}.txt") for i in range(2)]
    claims: dict[int, set[Path]] = {process.pid: set() for process in both}
    end = time.monotonic() + 500
    while any(process.returncode is None for process in both):
        assert time.monotonic() < end
        for process in both:
            claims[process.pid] |= logs_of(process.pid)
        time.sleep(0.02)
    said = [process.ended(60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("15 of 15 runs finished, 0 failed" in one for one in said)
    cells = cells_of(path, out)
    for cell in cells:
        found = record.read(cell.folder) or {}
        assert found["status"] == "finished" and "resumed" not in found
        steps = [line["step"] for line in metric_lines(cell.folder) if "loss" in line]
        assert steps == list(range(1, 25))
        log = (cell.folder / "run.log").read_text()
        assert log.count("3 runs share their passes from step 0 on") == 1
        assert found["packed"] == 3
        assert (found.get("config") or {}).get("sweep") == {"pack": 3}
    assert not list(out.rglob("*.claim"))
    one, other = claims.values()
    assert one and other and one.isdisjoint(other)
    assert one | other == {cell.folder for cell in cells}
    for seed in range(5):
        group = {cell.folder for cell in cells if cell.plain["seed"] == seed}
        assert group <= one or group <= other


def test_a_group_is_claimed_whole_or_not_at_all(tmp_path: Path) -> None:
    """Before a folder of any of its runs is there; another command leaves even those alone that
    nobody else wants."""
    a, b, c = (tmp_path / "tweets" / name for name in "abc")
    with worker.claims([a, b]) as first, worker.claims([b, c]) as second:
        assert first and not second
        assert watch.held(a) and watch.held(b) and not a.exists()
    with worker.claims([b, c]) as later:
        assert later and watch.held(c) and not watch.held(a)
    with worker.claims([a]) as alone:  # whose own lock is enough
        assert alone and not watch.held(a)
    assert not list((tmp_path / "tweets").iterdir())
