"""Paths that Hydra's grammar refuses are taken as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import cli, config
from loraexp.config.paths import quoted, spelled, unquoted
from loraexp.sweep import reading
from loraexp.sweep.cells import expand
from tests.support.small_sweep import written

ODD = [
    "/tmp/x#y",
    "/tmp/ü ñ",
    "/a(b)/c",
    "/tmp/it's",
    "/tmp/a\\",
    "/tmp/100%",
    "/tmp/x{y}",
    "/a=b",
    "/tmp/'q'",
    "/tmp/\\'",
]


@pytest.mark.parametrize("path", ODD)
def test_an_odd_path_reaches_the_configuration(path: str) -> None:
    (word,) = spelled([f"output_root={path}"])
    _, plain = config.check(config.compose([word, "model=tiny-bert"]))
    assert plain["output_root"] == path and unquoted(quoted(path)) == path


def test_home_and_what_is_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert spelled(["output_root=~/x y"]) == [f"output_root='{tmp_path}/x y'"]
    same = [
        "output_root=outs",
        "lr=1,2",
        "task.data_dir=null",
        "output_root='a b'",
        "seed=~3",
        "output_root=${oc.env:X}",
    ]
    assert spelled(same) == same


def test_chdir_files_runs_where_they_are_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert spelled(["hydra.job.chdir=true", "output_root=outs"]) == [
        "hydra.job.chdir=true",
        f"output_root='{tmp_path}/outs'",
    ]
    assert spelled(["hydra.job.chdir=true"])[-1] == f"output_root='{tmp_path}/outputs'"
    tiny = [
        "model=tiny-bert",
        "experiment=smoke",
        "wandb.mode=disabled",
        "device=cpu",
        "train.max_steps=1",
        "init=lora",
    ]
    assert cli.main(["-m", *tiny, "hydra.job.chdir=true", "output_root=outs", "seed=0,1"]) == 0
    monkeypatch.chdir(tmp_path)
    assert (
        len(list((tmp_path / "outs").glob("*/*/record.json"))) == 2
        and not (tmp_path / "outs" / "outs").exists()
    )


@pytest.mark.parametrize("folder", ["x#y", "ü ñ", "it's"])
def test_a_sweep_finds_its_cells_under_an_odd_root(folder: str, tmp_path: Path) -> None:
    words = spelled([f"output_root={tmp_path / folder}"])
    found = reading.load(str(written(tmp_path)), None, words)
    assert found.output_root == tmp_path / folder
    assert all(cell.folder.parent.parent == tmp_path / folder for cell in expand(found))
