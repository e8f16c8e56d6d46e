"""Packed runs that were told to stop go on in groups of another size, or alone, to where they would
have come; their records say in what company each attempt was."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loraexp.records import record
from loraexp.run import kept, packed
from tests.support.runs import metric_lines
from tests.support.small_sweep import TINY, cells_of, go, written
from tests.support.together import factors, farthest

STEPS, STOPPED = 24, 9
LORA = {"lora": {"label": "LoRA", "overrides": ["init=lora"]}}
BASE = [*TINY, f"train.max_steps={STEPS}", "train.eval_every=12", "train.batch_size=4"]
BASE += ["train.log_every=1", "adapter.dropout=0.1"]


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    kept.clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sweep, and its runs that nothing befell, each by itself."""
    folder = tmp_path_factory.mktemp("whole")
    path = written(folder, base=BASE, rows=LORA, grid={"lr": [1e-4, 1e-3, 3e-3], "seed": 0})
    assert go(path, folder / "out") == 0
    return path, folder / "out"


@pytest.fixture(scope="module")
def stopped(whole: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its runs as they stand after a few steps of all three, by a signal between two steps."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    real = packed.Passes.share

    def share(self: packed.Passes, group: list[packed.Member]) -> None:
        real(self, group)
        if packed.ahead_of(group[0]).number == STOPPED - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed.Passes, "share", share)
        assert go(whole[0], out, "sweep.pack=3") == 143
    found = [record.read(cell.folder) or {} for cell in cells_of(whole[0], out)]
    assert [(one["status"], one["packed"]) for one in found] == [("interrupted", 3)] * 3
    return out


def gone_on(path: Path, stopped: Path, out: Path, pack: int) -> list[Any]:
    """The cells of a copy of what was stopped, at their end."""
    shutil.copytree(stopped, out)
    assert go(path, out, f"sweep.pack={pack}") == 0
    return cells_of(path, out)


@pytest.mark.parametrize(("pack", "company"), [(1, [1, 1, 1]), (2, [1, 2, 2]), (3, [3, 3, 3])])
def test_a_group_goes_on_in_groups_of_another_size(
    pack: int, company: Sequence[int], whole: tuple[Path, Path], stopped: Path, tmp_path: Path
) -> None:
    path, out = whole
    cells = gone_on(path, stopped, tmp_path / "out", pack)
    for cell, lone, count in zip(cells, cells_of(path, out), company, strict=True):
        assert cell.folder.name == lone.folder.name
        assert farthest(cell.folder, lone.folder) < 1e-5
        found = record.read(cell.folder) or {}
        assert (found["status"], found["packed"]) == ("finished", 3)
        [entry] = found["resumed"]
        assert (entry["step"], entry["packed"]) == (STOPPED, count)
        steps = [line["step"] for line in metric_lines(cell.folder) if "loss" in line]
        assert steps == list(range(1, STEPS + 1))


def test_a_run_that_goes_on_alone_is_one_that_goes_on_by_hand(
    whole: tuple[Path, Path], stopped: Path, tmp_path: Path
) -> None:
    """To the bit: nothing of the group is left in what it goes on from."""
    path, _ = whole
    by_hand = tmp_path / "hand"
    shutil.copytree(stopped, by_hand)
    first, *others = cells_of(path, by_hand)
    for other in others:  # it does not even know of them
        shutil.rmtree(other.folder)
    one = written(tmp_path, base=BASE, rows=LORA, grid={"lr": 1e-4, "seed": 0})
    assert go(one, by_hand) == 0
    again = gone_on(path, stopped, tmp_path / "out", 1)[0]
    a, b = factors(first.folder), factors(again.folder)
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("pack", [2, 3])
def test_runs_that_began_alone_go_on_together(
    pack: int, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each stopped at a step of its own: those behind catch up, then they share their passes."""
    path, out = whole
    cells = cells_of(path, tmp_path / "out")
    for i, cell in enumerate(cells):
        stop_alone(path, tmp_path / "out", cell, STOPPED + i)
    assert go(path, tmp_path / "out", f"sweep.pack={pack}") == 0
    for i, (cell, lone) in enumerate(zip(cells, cells_of(path, out), strict=True)):
        assert farthest(cell.folder, lone.folder) < 1e-5
        found = record.read(cell.folder) or {}
        alone = pack == 2 and i == 0
        assert found.get("packed") == (None if alone else pack)
        [entry] = found["resumed"]
        assert (entry["step"], entry.get("packed")) == (STOPPED + i, None if alone else pack)


def stop_alone(path: Path, out: Path, cell: Any, step: int) -> None:
    from loraexp.run import train

    real = train.Agreement.look

    def look(self: Any, at: int, **how: Any) -> tuple[bool, bool]:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, at, **how)

    one = written(
        path.parent / f"one{step}", base=BASE, rows=LORA, grid={"lr": cell.plain["lr"], "seed": 0}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Agreement, "look", look)
        assert go(one, out) == 143
