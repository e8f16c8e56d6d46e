"""Time and memory of runs that trained together are nowhere those of one run: a table, a figure,
the page, the plan and the list say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import cli
from loraexp.artifacts import page, plots
from loraexp.records.reading import load_records, run_seconds
from loraexp.results import provenance
from loraexp.results.gather import Results, gather
from loraexp.sweep import plan
from tests.support.measured import CONTENT, expanded_once, fill, load, put

__all__ = ["expanded_once"]  # a fixture for every test here
TIMED = CONTENT.replace(
    "  second: {label",
    "  time: {label: Time, overrides: [task.limit_train=64], value: cost/train_seconds}\n"
    "  second: {label",
).replace(
    "report: ",
    "plots:\n  - {name: costs, kind: scatter, x: cost/train_seconds, columns: [first]}\n"
    "  - {name: bars, kind: bar, y: cost/train_seconds, columns: [first]}\n"
    "report: ",
    1,
)
BEGAN, ENDED = "2026-01-01T00:00:00+00:00", "2026-01-01T03:00:00+00:00"


@pytest.fixture
def found(tmp_path: Path) -> Results:
    """Every run is there; those of the first row trained by threes, in three hours."""
    wanted = load(tmp_path, TIMED)
    for cell in fill(wanted, lambda cell: (0.7, 0.8)):
        if cell.row == "plain":
            put(cell, 0.7, 0.8, packed=3, started=BEGAN, ended=ENDED)
    return gather(wanted)


def test_no_column_and_no_figure_shows_them(found: Results) -> None:
    shared, own = found.places["plain", "time"], found.places["gradient", "time"]
    assert shared.mean is None and "trained together" in (shared.reason or "")
    assert own.mean == 3599.0
    assert found.places["plain", "first"].mean == pytest.approx(0.7)  # a metric is its own
    assert any("force=true sweep.pack=1 runs them again" in line for line in found.problems)
    for plot in found.sweep.plots:
        [panel] = plots.make(found, plot).panels
        lines = [line for line in panel.lines if line.x and line.y[0] == line.y[0]]
        assert [line.label for line in lines] == ["LoRA-GA & co_1"], plot.name
    [line] = [line for line in provenance.environments(found) if "trained together" in line]
    assert line.startswith("12 runs trained together with others, up to 3 at once")


def test_their_time_is_a_share_of_the_clock(found: Results) -> None:
    place = found.places["plain", "first"]
    run = place.runs[0]
    assert run.record is not None and run.folder is not None
    assert run_seconds(run.record) == 3600.0  # of three hours
    assert run_seconds({**run.record, "packed": 1}) == 3 * 3600.0
    times = plan.measured_times({run.folder: run.cell}, {run.folder: run.record})
    assert set(times.values()) == {3600.0}
    costs = plan.Costs()
    cost = {"init_peak_bytes": 1, "train_peak_bytes": 5}
    plan.note_peak(costs, run.cell, {**run.record, "cost": cost})
    assert costs.recorded == {}
    plan.note_peak(costs, run.cell, {**run.record, "cost": cost, "packed": 1})
    assert list(costs.recorded.values()) == [5]


def test_the_page_and_the_list_mark_them(found: Results, capsys: pytest.CaptureFixture) -> None:
    root = found.sweep.output_root
    rows = page.all_runs(root, root)
    shared = [row for row in rows if row.get("packed") == 3]
    assert len(shared) == 12 and not any("train s" in row or "train MiB" in row for row in shared)
    assert sum("train s" in row for row in rows) == len(rows) - 12
    assert sorted(load_records(root)["packed"].unique()) == [1, 3]
    assert cli.main(["runs", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(", 1 of 3" in line for line in lines) == 12
    assert lines[-1].startswith("1 of k: trained together")


def test_statistics_from_the_cache_say_nothing_of_what_initialising_takes(tmp_path: Path) -> None:
    content = CONTENT.replace(
        "  second: {label",
        "  time: {label: Time, overrides: [task.limit_train=64], value: cost/init_seconds}\n"
        "  second: {label",
    )
    wanted = load(tmp_path, content)
    for cell in fill(wanted, lambda cell: (0.7, 0.8)):
        cost = {"init_seconds": 0.1, "init_forward_sweeps": 0.0}
        if cell.row == "gradient" and cell.point["seed"] == 1:
            cost = {"init_seconds": 9.0, "init_forward_sweeps": 2.0}
        put(cell, 0.7, 0.8, cost=cost)
    found = gather(wanted)
    assert found.places["gradient", "time"].values == {1: 9.0}
    assert found.places["plain", "time"].mean == pytest.approx(0.1)  # it asks for no statistics
    [line] = [line for line in found.problems if "from the cache" in line]
    assert line.startswith("gradient/time: ") and "init.cache=false" in line
