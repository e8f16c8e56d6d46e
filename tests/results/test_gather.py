"""From records to the numbers of a table: matching, choosing, and everything that can be wrong with
a record."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from loraexp import load_records
from loraexp.config import ConfigError
from loraexp.machine.files import write_json
from loraexp.results import gather as results
from loraexp.results import units
from loraexp.results.gather import gather
from loraexp.sweep import computed
from loraexp.sweep.cells import Cell
from loraexp.sweep.schema import Report
from tests.support.measured import CONTENT, LR, at, expanded_once, fill, load, log, put

__all__ = ["expanded_once"]  # a fixture for every test here


def numbers(cell: Cell) -> tuple[float, float]:
    """Validation prefers the second learning rate for LoRA-GA alone; the reported split would
    prefer the other one everywhere."""
    second = cell.point["lr"] == LR[1]
    better = second == (cell.row == "gradient")
    return 0.70 + 0.01 * cell.point["seed"] - 0.1 * better + 0.05 * (cell.column == "second"), (
        0.9 if better else 0.8
    )


def test_validation_chooses_for_every_place_and_the_reported_split_does_not(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    fill(wanted, numbers)
    found = gather(wanted)
    place = found.places["gradient", "first"]
    assert place.chosen == {"lr": 2e-3} and found.places["plain", "first"].chosen == {"lr": 1e-3}
    assert place.values == pytest.approx({0: 0.60, 1: 0.61, 2: 0.62})
    assert place.mean == pytest.approx(0.61) and place.std == pytest.approx(
        statistics.stdev([0.60, 0.61, 0.62])
    )
    assert place.tried == {"lr": 2} and (place.finished, place.failed, place.missing) == (6, 0, 0)
    assert [point for point, _ in place.against("lr")] == list(LR)
    assert place.against("lr")[0][1] == pytest.approx({0: 0.70, 1: 0.71, 2: 0.72})
    assert found.named("gradient/first") == pytest.approx(61.0) and found.named(
        "gradient/first/std"
    ) == pytest.approx(1.0)
    assert found.named("gradient/first/mean_over_lr") == pytest.approx(66.0)
    assert found.named("gradient/first/worst_over_lr") == pytest.approx(61.0)
    assert found.problems == [] and len(found.records) == 24


def test_a_cost_is_worst_where_it_is_largest_and_rows_may_read_their_own_value(
    tmp_path: Path,
) -> None:
    content = CONTENT.replace("init=lora_ga]", "init=lora_ga], value: cost/init_seconds").replace(
        "digits: 1}", "digits: 1, goal: min}"
    )
    wanted = load(tmp_path, content)
    cells = fill(wanted, numbers)
    put(at(cells, "gradient", "first", LR[0], 0), 0.7, 0.8, cost={"init_seconds": 7.0})
    found = gather(wanted)
    assert found.places["gradient", "second"].mean == 1.0 and found.places[
        "plain", "first"
    ].mean == pytest.approx(0.61)
    # of means over seeds: (7 + 1 + 1) / 3
    assert found.named("gradient/first/worst_over_lr") == pytest.approx(100 * 3.0)
    assert found.named("gradient/first") == pytest.approx(100 * 1.0)


def test_points_with_fewer_seeds_and_equal_points_are_said(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    cells = fill(
        wanted,
        lambda cell: (0.7, 0.8) if cell.point["lr"] == LR[0] or cell.point["seed"] != 2 else None,
    )
    put(
        at(cells, "plain", "first", LR[1], 2),
        0.7,
        0.8,
        status="failed",
        error={"type": "Diverged", "message": "step 3:\nloss nan"},
    )
    found = gather(wanted)
    place = found.places["plain", "first"]
    assert (place.finished, place.failed, place.missing, place.tried) == (5, 1, 0, {"lr": 2})
    assert [run.reason for run in place.runs if run.status == "failed"] == [
        "failed: Diverged: step 3:"
    ]
    said = next(line for line in found.problems if line.startswith("plain/first"))
    assert "unequal numbers of runs (lr=0.001: 3 of 3, lr=0.002: 2 of 3)" in said
    assert "lr=0.001, lr=0.002 are equally good by best/value (0.8); the first is reported" in said
    assert place.chosen == {"lr": 1e-3}


def test_nothing_hides_the_rest(tmp_path: Path) -> None:
    """A half-written record, one of an older schema, one without its metric, one without
    validation: each named, all others there."""
    wanted = load(tmp_path)
    cells = fill(wanted, numbers)
    half, old, bare, undecided = (
        at(cells, "plain", "first", seed=seed, lr=lr)
        for seed, lr in ((0, LR[0]), (1, LR[0]), (2, LR[0]), (0, LR[1]))
    )
    (half.folder / "record.json").write_text('{"schema": 1, "status": "fin')
    put(old, 0.7, 0.8, schema=0)
    put(bare, 0.7, 0.95, metrics={"dev": {"f1": 0.5}})
    put(undecided, 0.7, 0.8, best=None)
    found = gather(wanted)
    place = found.places["plain", "first"]
    assert sorted(run.status for run in place.runs) == ["finished"] * 4 + ["unreadable"] * 2
    text = "\n".join(found.problems)
    assert (
        f"{half.folder}/record.json: cannot be read" in text
        and f"{old.folder}/record.json: schema 0, expected 1" in text
    )
    assert f"1 finished records have no dev/accuracy; {bare.folder} has dev/f1" in text
    assert "unequal numbers of runs (lr=0.001: 1 of 3, lr=0.002: 2 of 3)" in text
    assert all(found.places[key].values for key in found.places if key != ("plain", "first"))
    frame = load_records(tmp_path / "outputs")
    assert len(frame) == 24 and (frame.status == "unreadable").sum() == 2


def test_a_record_without_sections_is_a_row_all_the_same(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    cell = fill(wanted, lambda cell: None)[0]
    put(cell, 0.7, 0.8)
    write_json(put(cell, 0.7, 0.8, cell.folder.parent / "lora-s0-ffffffffff") / "record.json", {})
    write_json(
        cell.folder / "record.json", {"schema": 1, "status": "running", "config": cell.plain}
    )
    frame = load_records(tmp_path / "outputs").set_index("status")
    assert (
        set(frame.index) == {"running", "unreadable"}
        and frame.loc["running"]["lr"] == cell.plain["lr"]
    )
    run = gather(wanted).places[cell.row, cell.column].runs[0]
    assert (
        run.status,
        run.value("dev/accuracy"),
        run.value("cost/init_seconds"),
        run.history("loss"),
    ) == (
        "running",
        None,
        None,
        ([], [], []),
    )


def test_two_records_of_one_cell(tmp_path: Path) -> None:
    """The same run on another device or other data: the exact id, else the newest; different
    results are said, naming both."""
    wanted = load(tmp_path)
    cells = fill(wanted, numbers)
    own, elsewhere = at(cells, "plain", "first"), at(cells, "plain", "first", seed=1)
    config = own.plain | {"device": "cuda:7", "wandb": {"mode": "online"}}
    other = put(
        own,
        0.1,
        0.8,
        own.folder.parent / "lora-s0-aaaaaaaaaa",
        config=config,
        run_id="aaaaaaaaaa",
        ended="2027",
    )
    put(
        own,
        *numbers(own),
        own.folder.parent / "lora-s0-bbbbbbbbbb",
        config=config | {"device": "cpu"},
        run_id="bbbbbbbbbb",
    )
    (elsewhere.folder / "record.json").unlink()
    new = elsewhere.folder.parent / "lora-s1-cccccccccc"
    put(
        elsewhere,
        0.3,
        0.8,
        new,
        config=elsewhere.plain | {"device": "mps"},
        run_id="cccccccccc",
        ended="2027",
    )
    put(
        elsewhere,
        0.2,
        0.8,
        elsewhere.folder.parent / "lora-s1-dddddddddd",
        config=elsewhere.plain | {"device": "cpu"},
        run_id="dddddddddd",
    )
    found = gather(wanted)
    runs = {run.cell.run_id: run for run in found.places["plain", "first"].runs}
    assert runs[own.run_id].folder == own.folder and runs[elsewhere.run_id].folder == new
    said = [line for line in found.problems if "are one run, but" in line]
    assert (
        len(said) == 2
        and str(own.folder) in said[0]
        and str(other) in said[0]
        and "dev/accuracy is 0.6 and 0.1" in said[0]
    )
    assert not any("bbbbbbbbbb" in line for line in found.problems)


def test_whole_numbers_match_with_and_without_their_point(tmp_path: Path) -> None:
    """`alpha=16` on the command line and 16.0 from W&B's server are one run, whatever their ids
    are."""
    wanted = load(tmp_path)
    cell = fill(wanted, lambda cell: None)[0]
    put(
        cell,
        0.7,
        0.8,
        cell.folder.parent / "lora-s0-eeeeeeeeee",
        config=cell.plain | {"alpha": float(cell.plain["alpha"])},
    )
    assert gather(wanted).places[cell.row, cell.column].finished == 1


def test_values_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    wanted = load(
        tmp_path, CONTENT.replace("value: dev/accuracy}", "value: dev/accuracy, epoch: 1}", 1)
    )
    cells = fill(wanted, numbers)
    for seed in (0, 1, 2):
        cell = at(cells, "plain", "first", seed=seed)
        end = {"step": 50, "epoch": 1.0, "dev/accuracy": 0.5 + seed / 10}
        other = {"step": 44, "epoch": 0.88, "dev/accuracy": 0.9}
        log(
            cell.folder,
            {"step": 10, "epoch": 0.2, "loss": 1.5},
            other,
            *([end] if seed < 2 else []),
            {"step": 99, "epoch": 1.98, "loss": 1.0},
        )
    found = gather(wanted)
    place = found.places["plain", "first"]
    # the third seed's nearest line is six steps away
    assert place.values == pytest.approx({0: 0.5, 1: 0.6})
    assert place.runs[0].history("loss") == ([10, 99], [0.2, 1.98], [1.5, 1.0])
    assert any("have no dev/accuracy at the end of epoch 1" in line for line in found.problems)


def test_steps_to_an_accuracy(tmp_path: Path) -> None:
    """The first logged step that has it; the last one where none has; nothing where nothing was
    logged."""
    wanted = load(
        tmp_path, CONTENT.replace("value: dev/accuracy}", "value: steps_to/dev/accuracy/0.6}", 1)
    )
    cells = fill(wanted, numbers)
    ways = {0: [0.4, 0.6, 0.5], 1: [0.4, 0.59, 0.59], 2: []}
    for seed, way in ways.items():
        lines = [
            {"step": 10 * (i + 1), "epoch": 0.2 * (i + 1), "dev/accuracy": value}
            for i, value in enumerate(way)
        ]
        log(
            at(cells, "plain", "first", seed=seed).folder,
            {"step": 5, "epoch": 0.1, "loss": 1.5},
            *lines,
        )
    assert gather(wanted).places["plain", "first"].values == {0: 20, 1: 30}


def test_means_of_columns(tmp_path: Path) -> None:
    content = CONTENT.replace(
        "report:", "  both: {label: Average, mean_of: [first, second]}\nreport:"
    )
    wanted = load(tmp_path, content)
    cells = fill(wanted, numbers)
    for lr in LR:
        (at(cells, "gradient", "second", lr, 2).folder / "record.json").unlink()
    found = gather(wanted)
    assert found.places["plain", "both"].values == pytest.approx({0: 0.625, 1: 0.635, 2: 0.645})
    uneven = found.places["gradient", "both"]
    assert (
        uneven.values == {}
        and uneven.mean == pytest.approx((0.61 + 0.655) / 2)
        and uneven.std is None
    )
    assert any(
        line.startswith("gradient/both: its columns have different seeds")
        for line in found.problems
    )
    for cell in cells:
        if (cell.row, cell.column) == ("plain", "second"):
            (cell.folder / "record.json").unlink()
    assert gather(wanted).places["plain", "both"].reason == "no value of Second"


def test_computed_values_are_places(tmp_path: Path) -> None:
    content = """
title: Computed
paper: a_paper
artifact: table2
kind: table
compute: {_target_: tests.support.measured.load, name: x}
rows: {a: {label: A}, b: {label: B, skip: quoted from elsewhere}}
columns: {x: {label: X}, y: {label: Y}, z: {label: Z, mean_of: [x]}}
report: {unit: seconds}
claims: [{text: a claim, value: ratio, below: 1}, {text: no such, value: a/none, above: 0}]
"""
    wanted = load(tmp_path, content)
    empty = gather(wanted)
    assert (
        empty.computed is None
        and empty.places["a", "x"].reason == "missing"
        and empty.named("ratio") is None
    )
    folder = computed.folder(wanted, wanted.output_root)
    folder.mkdir(parents=True)
    record = {
        "schema": 1,
        "status": "failed",
        "run_id": "x",
        "config": {},
        "error": {"type": "ValueError", "message": "too small"},
    }
    write_json(folder / "record.json", record)
    assert gather(wanted).problems == [f"{folder}: failed: ValueError: too small"]
    write_json(
        folder / "record.json",
        record
        | {
            "status": "finished",
            "metrics": {"values": {"a/x": [1.0, 3.0, None], "ratio": 0.5}},
        },
    )
    write_json(folder / "series.json", {"curves": [], "surfaces": [], "axes": {}})
    found = gather(wanted)
    assert found.places["a", "x"].values == {0: 1.0, 1: 3.0} and found.places["a", "z"].mean == 2.0
    assert (
        found.places["a", "y"].reason == "missing"
        and found.places["b", "x"].reason == "not run: quoted from elsewhere"
    )
    assert found.named("ratio") == 0.5 and found.named("a/x") == 2.0
    assert found.problems == [
        "mine.yaml: claims[1]: a/none: there is no such value and no such row/column"
    ]
    with pytest.raises(ConfigError, match="mine is computed and is not logged to W&B"):
        gather(wanted, f"wandb:{tmp_path}")
    for damaged, why in (("{", "line 1: not JSON"), ('{"curves": 1}', "holds no curves")):
        (folder / "series.json").write_text(damaged)
        lost = gather(wanted)
        assert lost.computed is None and lost.places["a", "x"].mean is None
        assert f"{folder / 'series.json'}: {why}" in lost.problems[0]
        assert "force=true" in lost.problems[0]


def test_a_grid_that_nothing_chooses_from_has_no_number(tmp_path: Path) -> None:
    wanted = load(tmp_path, CONTENT.replace("report:", "select: {by: held_out/f2}\nreport:"))
    fill(wanted, numbers)
    place = gather(wanted).places["plain", "first"]
    assert (
        place.mean is None
        and place.reason
        == "no record has held_out/f2, so nothing chooses between the 2 points of its grid"
    )


def test_claims_that_name_nothing_are_said(tmp_path: Path) -> None:
    wanted = load(
        tmp_path,
        CONTENT
        + "  - {text: x, value: plain/third, above: 0}\n  - {text: x, value: plain/first/best_of,"
        " above: 0}\n",
    )
    said = gather(wanted).problems
    assert (
        "mine.yaml: claims[1]: plain/third: there is no such value and no such row/column" in said
    )
    assert any(
        line.startswith("mine.yaml: claims[2]: plain/first/best_of: expected plain/first/std")
        for line in said
    )


@pytest.mark.parametrize(
    ("value", "unit", "digits", "text"),
    [
        (0.9319, "percent", 2, "93.19 %"),
        (90.0, "minutes", 1, "1.5 min"),
        (5400.0, "hours", 1, "1.5 h"),
        (3 * 2**20, "MiB", 0, "3 MiB"),
        (2**29, "GiB", 2, "0.50 GiB"),
        (1_500_000, "million", 1, "1.5 millions"),
        (12, "count", 0, "12"),
        (1.25, "ratio", 2, "1.25 ×"),
        (0.5, "nats", 1, "0.5 nats"),
    ],
)
def test_units(value: float, unit: str, digits: int, text: str) -> None:
    report = Report(unit=unit, digits=digits)
    assert f"{units.text(value, report)} {units.symbol(report)}".strip() == text


def test_a_source_is_said_as_it_is_expected(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    for source in ("records", "wandb:", "wandb:./nowhere", "disk:outputs"):
        with pytest.raises(ConfigError, match="expected wandb:ENTITY/PROJECT"):
            gather(wanted, source)
    assert results.split("a/b/c_over_lr") == ("a", "b", "c_over_lr")
