"""Tests share a process and nothing else."""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from loraexp import cli
from loraexp.config import search
from loraexp.machine import progress
from tests.support import process


@pytest.mark.parametrize("turn", ["one", "the next"])
def test_the_next_test_does_not_find_what_one_set(
    turn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of one's own, its code, and any other variable: each turn begins without."""
    assert cli.main(["list", "inits"]) == 0
    assert "left_behind" not in capsys.readouterr().out
    assert "LEFT_BEHIND" not in os.environ and "left_behind" not in sys.modules
    with pytest.raises(ImportError):
        importlib.import_module("left_behind")
    yaml = tmp_path / "conf" / "init" / "left_behind.yaml"
    yaml.parent.mkdir(parents=True)
    yaml.write_text("name: left_behind\n_target_: left_behind.left_behind\n_partial_: true\n")
    (tmp_path / "left_behind.py").write_text(f"turn = {turn!r}\n")
    os.environ["LEFT_BEHIND"] = "1"
    assert cli.main(["list", "inits", "--config-dir", str(tmp_path / "conf")]) == 0
    assert "left_behind" in capsys.readouterr().out
    assert importlib.import_module("left_behind").turn == turn
    assert str(tmp_path / "conf") in os.environ[search.VARIABLE]
    assert str(tmp_path) in os.environ["PYTHONPATH"].split(os.pathsep)


def test_random_generators_go_on_from_where_a_test_began(tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate()
    with process.put_back(tmp_path):
        drawn = torch.rand(3), random.random()
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert torch.equal(torch.rand(3), drawn[0]) and random.random() == drawn[1]


@pytest.mark.parametrize("what", ["the working directory", "torch's dtype", "signal", "progress"])
def test_a_test_that_leaves_something_behind_fails(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave() -> None:
        if what == "the working directory":
            os.chdir(tmp_path)
        elif what == "torch's dtype":
            torch.set_default_dtype(torch.float64)
        elif what == "signal":
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        else:
            progress.every = 1.0

    monkeypatch.setattr(progress, "every", progress.every)
    handler, here = signal.getsignal(signal.SIGHUP), Path.cwd()
    try:
        message = f"left behind in the process: {what}"
        with pytest.raises(AssertionError, match=message), process.put_back(tmp_path):
            leave()
        assert Path.cwd() == here
    finally:
        torch.set_default_dtype(torch.float32)
        signal.signal(signal.SIGHUP, handler)
