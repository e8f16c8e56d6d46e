"""What a person sees besides the result: details with -v, and how the runs of a grid compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import cli
from loraexp.cli import outcomes
from loraexp.machine import progress


def test_a_grid_ends_with_a_table_of_its_runs(tmp_path: Path, capsys) -> None:
    words = ["experiment=debug", "init=lora", "seed=0,1", "lr=1e-3,2e-3"]
    assert cli.main(["-m", *words, f"output_root={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert lines[0].split() == ["seed", "lr", "state", "held_out/accuracy", "dev/accuracy", "time"]
    points = [line.split()[:3] for line in lines[1:]]
    assert points == [[s, lr, "finished"] for s in "01" for lr in ("0.001", "0.002")]
    assert all(0 <= float(value) <= 1 for line in lines[1:] for value in line.split()[3:5])


def test_a_sweep_ends_with_the_same_table(tmp_path: Path, capsys) -> None:
    (tmp_path / "small.yaml").write_text(
        "title: t\npaper: mine\nartifact: small\nkind: table\nbase: [experiment=debug]\n"
        "grid: {seed: [0, 1]}\nrows: {lora: {label: LoRA, overrides: [init=lora]}}\n"
        "columns: {tweets: {label: tweets, value: dev/accuracy, overrides: []}}\n"
        "report: {unit: percent, digits: 2}\n"
    )
    assert cli.main(["sweep", str(tmp_path / "small.yaml"), f"output_root={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0].split()[:2] == ["seed", "state"] and len(lines) == 3


def test_of_many_runs_the_best_are_shown_and_the_failed_are_named() -> None:
    best = {"split": "dev", "metric": "accuracy"}
    lines = [
        outcomes.Line(
            {"seed": str(i)},
            {
                "status": "finished",
                "best": best | {"value": i / 100},
                "metrics": {"dev": {"accuracy": i / 100, "f1": 0.5}},
                "cost": {"train_seconds": 1.0},
            },
        )
        for i in range(40)
    ]
    table = outcomes.table(lines)
    assert table.row_count == 30 and "the best 30 of 40 runs" in str(table.caption)
    assert [str(cell) for cell in table.columns[0].cells][0] == "10"
    assert [column.header for column in table.columns] == ["seed", "state", "dev/accuracy", "time"]
    failed = outcomes.table([outcomes.Line({"lr": "1"}, {}), outcomes.Line({"lr": "2"}, {})])
    assert list(failed.columns[1].cells) == ["no record", "no record"]


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_v_says_what_happens_and_where_an_error_came_from(flag: str, tmp_path, capsys) -> None:
    words = ["experiment=debug", "init=lora", f"output_root={tmp_path}"]
    try:
        assert cli.main([*words, flag]) == 0
        said = capsys.readouterr().err
        for detail in ("train: 64 rows of ", "(random weights) on cpu", "checkpoint at step 2"):
            assert detail in said
        assert cli.main(["task=colaa", flag]) == 2
        said = capsys.readouterr().err
        assert "Traceback" in said and said.splitlines()[-1].startswith("loraexp: task=colaa: ")
        assert cli.main(["table", flag, "nope"]) == 2
        assert "Traceback" in capsys.readouterr().err
    finally:
        progress.verbose = False
    assert cli.main([*words, "force=true"]) == 0
    assert "rows of" not in capsys.readouterr().err
