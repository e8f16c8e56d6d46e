"""`sweep.pack`: which runs of a sweep train together, through the command line, killed and gone on
with; costs are never read from runs that did."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from loraexp import cli, config
from loraexp.machine.measure import Available
from loraexp.records import record
from loraexp.run import kept
from loraexp.sweep import packs, reading, sizes
from loraexp.sweep.cells import expand
from tests.support.forks import Command
from tests.support.runs import metric_lines
from tests.support.small_sweep import TINY, cells_of, go, written
from tests.support.together import farthest


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    kept.clear()


def table(path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["table", str(path), f"output_root={out}"]) == 0
    return capsys.readouterr().out


def test_a_packed_sweep_has_the_table_of_one_run_after_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, steps=6)
    assert go(path, tmp_path / "one") == 0 and go(path, tmp_path / "two", "sweep.pack=2") == 0
    said = capsys.readouterr().err
    assert "mine: 4 runs in 2 groups that train together" in said
    assert "mine: 4 of 4 runs finished, 0 failed" in said
    for alone, packed in zip(
        cells_of(path, tmp_path / "one"), cells_of(path, tmp_path / "two"), strict=True
    ):
        assert alone.run_id == packed.run_id
        assert farthest(alone.folder, packed.folder) < 1e-5
        mine, theirs = record.read(packed.folder), record.read(alone.folder)
        assert mine is not None and theirs is not None
        assert mine["packed"] == 2 and "packed" not in theirs
        assert mine["config"]["sweep"] == {"pack": 2}
    one, two = (table(path, tmp_path / name, capsys) for name in ("one", "two"))
    one, two = (re.sub(r"- time: .* in all", "- time: T in all", text) for text in (one, two))
    together = "- 4 runs trained together with others, up to 2 at once (sweep.pack)"
    assert together not in one and together in two
    two = "".join(line for line in two.splitlines(keepends=True) if together not in line)
    assert one.replace(f"{tmp_path}/one", f"{tmp_path}/two") == two and "0." in one
    assert go(path, tmp_path / "two") == 0
    assert "4 runs, 4 finished already" in capsys.readouterr().err


def test_costs_are_of_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row whose time is read is run by itself, and said; the time of a run that was packed before
    is not printed, and what to type is."""
    column = {"label": "Time", "overrides": ["task=tweets"], "value": "cost/train_seconds"}
    both = {
        "tweets": {"label": "Tweets", "overrides": ["task=tweets"], "value": "dev/accuracy"},
        "time": {**column, "unit": "seconds"},
    }
    cells = [{"rows": ["pissa"], "columns": ["time"], "skip": "not wanted"}]
    grid = {"lr": [1e-4, 1e-3], "seed": 0}
    mixed = written(tmp_path / "mixed", columns=both, cells=cells, grid=grid)
    assert go(mixed, tmp_path / "out", "sweep.pack=2") == 0
    said = capsys.readouterr().err
    assert "2 runs in 1 group that train together; 2 alone: their cost is read" in said
    found = {
        (c.row, c.plain["lr"]): record.read(c.folder) for c in cells_of(mixed, tmp_path / "out")
    }
    k = {where: (content or {}).get("packed") for where, content in found.items()}
    assert k == {("lora", 1e-4): None, ("lora", 1e-3): None, ("pissa", 1e-4): 2, ("pissa", 1e-3): 2}

    rows = {
        name: {"label": name, "overrides": ["init=lora", f"lr={lr}"]}
        for name, lr in (("slow", 1e-4), ("fast", 1e-3))
    }
    plain = written(tmp_path / "plain", rows=rows, grid={"seed": 0})
    assert go(plain, tmp_path / "packed", "sweep.pack=2") == 0
    timed = written(tmp_path / "timed", rows=rows, grid={"seed": 0}, columns={"time": column})
    capsys.readouterr()
    shown = table(timed, tmp_path / "packed", capsys)
    assert "1 runs trained together with others (sweep.pack)" in shown
    assert "force=true sweep.pack=1 runs them again by themselves" in shown
    assert go(timed, tmp_path / "packed", "sweep.pack=2", "force=true") == 0
    assert "2 alone: their cost is read" in capsys.readouterr().err
    assert "trained together" not in table(timed, tmp_path / "packed", capsys)


@pytest.mark.parametrize(
    ("path", "is_cost"),
    [
        ("cost/train_seconds", True),
        ("cost/init_seconds + cost/train_seconds", True),
        ("cost/train_peak_bytes", True),
        ("cost/train_processor_seconds", True),
        ("seconds", True),
        ("cost/adapter_bytes", False),
        ("dev/accuracy", False),
        ("parameters/trainable", False),
    ],
)
def test_what_counts_as_the_cost_of_a_run(path: str, is_cost: bool) -> None:
    from loraexp.records.reading import measured

    assert measured(path) is is_cost


def test_figures_and_choices_that_read_costs_keep_runs_apart(tmp_path: Path) -> None:
    scatter = {"name": "cost", "kind": "scatter", "y": "dev/accuracy", "rows": ["lora"]}
    drawn = reading.load(str(written(tmp_path / "a", plots=[scatter])), None, [])
    assert list(packs.timed_places(drawn)) == [("lora", "tweets")]
    select = {"over": ["lr"], "by": "cost/train_seconds", "goal": "min"}
    chosen = reading.load(str(written(tmp_path / "b", select=select)), None, [])
    assert list(packs.timed_places(chosen)) == [("lora", "tweets"), ("pissa", "tweets")]
    assert not list(packs.timed_places(reading.load(str(written(tmp_path / "c")), None, [])))


def grouped(tmp_path: Path, pack: str, **changes: Any) -> tuple[packs.Packs, list[list[Any]]]:
    words = [f"output_root={tmp_path}/out", f"sweep.pack={pack}"]
    sweep = reading.load(str(written(tmp_path, **changes)), None, words)
    cells = expand(sweep)
    made = packs.Packs(sweep, cells)
    return made, made.of(cells)


def test_groups_share_base_rows_and_order_and_are_of_like_size(tmp_path: Path) -> None:
    grid = {"lr": [1e-4, 1e-3, 1e-2], "seed": [0, 1], "train.batch_size": [4, 8]}
    rows = {
        "lora": {"label": "LoRA", "overrides": ["init=lora"]},
        "pissa": {"label": "PiSSA", "overrides": ["init=pissa", "rank=4"]},
        "full": {"label": "full", "overrides": ["init=full"]},
        "saving": {"label": "s", "overrides": ["init=lora", "model.gradient_checkpointing=true"]},
        "start": {"label": "one step", "overrides": ["init=one_step"]},
    }
    made, groups = grouped(tmp_path, "4", grid=grid, rows=rows)
    several = [group for group in groups if len(group) > 1]
    assert sorted(map(len, several)) == [3] * 8  # six alike at most four at a time: three and three
    for group in several:
        train = [(c.plain["seed"], c.plain["train"]["batch_size"]) for c in group]
        assert len(set(train)) == 1 and {c.row for c in group} <= {"lora", "pissa"}
    reasons = {group[0].row: made.apart(group[0]) for group in groups if len(group) == 1}
    assert reasons == {
        "full": "init=full trains every weight",
        "saving": "model.gradient_checkpointing=true",
        "start": "init=one_step trains nothing",
    }
    assert all(len(group) == 1 for group in grouped(tmp_path, "1", grid=grid)[1])


def test_auto_fills_a_pass_and_no_more_than_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"lr": [10.0**-i for i in range(1, 8)], "seed": 0}
    three_rows = [*TINY, "train.batch_size=3", "train.max_steps=2"]
    assert [len(g) for g in grouped(tmp_path, "auto", grid=grid, base=three_rows)[1]] == [7, 7]
    large = [*TINY, "train.batch_size=32", "train.max_steps=2"]
    assert {len(g) for g in grouped(tmp_path, "auto", grid=grid, base=large)[1]} == {1}
    monkeypatch.setattr(packs, "available_bytes", lambda _: Available(2**20, of_host=True))
    assert {len(g) for g in grouped(tmp_path, "auto", grid=grid, base=three_rows)[1]} == {1}


def test_the_memory_is_looked_at_once_and_shared_by_the_workers_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the runs themselves take does not change the groups of those that are left."""
    grid = {"lr": [10.0**-i for i in range(1, 8)], "seed": 0}
    base = [*TINY, "train.batch_size=1", "train.max_steps=2"]
    sweep = reading.load(
        str(written(tmp_path, grid=grid, base=base)),
        None,
        [f"output_root={tmp_path}/out", "sweep.pack=auto"],
    )
    cells = expand(sweep)
    each = {cell.row: config.typed(cell.plain) for cell in cells}.values()
    memories = [sizes.counted(sizes.shape_of(sizes.offline(x)), x.cache_root)[0] for x in each]
    memory = max(memories, key=lambda memory: memory.train)
    four = int((memory.weights + 4.5 * (memory.train - memory.weights)) / packs.SPARE)
    looked = iter([Available(four, of_host=True)])
    monkeypatch.setattr(packs, "available_bytes", lambda _: next(looked))
    made = packs.Packs(sweep, cells)
    assert [len(group) for group in made.of(cells)] == [3, 4, 3, 4]
    assert [len(group) for group in made.of(cells[3:6])] == [3]  # nobody looks again
    for sharing, most in ((2, 1), (0, 14)):
        looked = iter([Available(four, of_host=True)])
        assert max(map(len, packs.Packs(sweep, cells, sharing=sharing).of(cells))) == most


@pytest.mark.parametrize("pack", ["0", "many", "1.5", "null"])
def test_a_size_that_is_none_is_one_line(
    pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(written(tmp_path), tmp_path / "out", f"sweep.pack={pack}") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"sweep.pack={pack}: expected a" in last


def test_how_many_share_a_step_is_no_part_of_a_run() -> None:
    plain = [config.check(config.compose([f"sweep.pack={k}"]))[1] for k in ("1", "7", "auto")]
    assert len({config.run_id(each) for each in plain}) == 1


# --------------------------------------------------------------------------------------------------
# killed


def steps_of(out: Path) -> list[int]:
    """Lines of the log of every run."""
    return [path.read_bytes().count(b"\n") for path in sorted(out.glob("*/*/metrics.jsonl"))]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_group_that_is_killed_goes_on_from_each_runs_own_checkpoint(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the middle, and one run's checkpoint lost besides: it begins again, catches up, and
    all end where runs end that nothing befell."""
    base = [*TINY, "train.max_steps=80", "train.eval_every=40", "train.batch_size=4"]
    base += ["train.checkpoint_every=1", "train.log_every=1"]
    grid = {"lr": [1e-4, 1e-3, 3e-3], "seed": 0}
    rows = {"lora": {"label": "LoRA", "overrides": ["init=lora"]}}
    path, out = written(tmp_path, base=base, grid=grid, rows=rows), tmp_path / "out"
    asked = ("sweep", str(path), f"output_root={out}", "sweep.pack=3")
    process = Command(*asked, log=tmp_path / "said.txt")
    deadline = time.monotonic() + 200
    while len(steps_of(out)) < 3 or min(steps_of(out)) < 8:
        assert time.monotonic() < deadline and process.returncode is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.ended(60)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    cells = cells_of(path, out)
    before = [record.read(cell.folder) or {} for cell in cells]
    stopped = "interrupted" if number == signal.SIGTERM else "running"
    assert [found["status"] for found in before] == [stopped] * 3
    assert all(found["packed"] == 3 for found in before)
    (cells[1].folder / "checkpoint" / "state.pt").unlink()
    assert go(path, out, "sweep.pack=3", "train.max_steps=80") == 0
    whole = tmp_path / "whole"
    assert go(path, whole) == 0
    for cell, other in zip(cells, cells_of(path, whole), strict=True):
        found = record.read(cell.folder) or {}
        assert found["status"] == "finished" and found["packed"] == 3
        assert farthest(cell.folder, other.folder) < 1e-4
        steps = [line["step"] for line in metric_lines(cell.folder) if "loss" in line]
        assert steps == list(range(1, 81))
        began = [entry["step"] for entry in found.get("resumed") or ()]
        assert bool(began and began[0] > 0) == (cell is not cells[1])
    log = (cells[0].folder / "run.log").read_text()
    assert log.count("3 runs share their passes") == 2 and "2 runs share" not in json.dumps(log)
