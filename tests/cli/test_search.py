"""A sweeper that searches: Optuna is told what validation selected, and a person sees the runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import REPOSITORY
from tests.support.readme import line_with

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")


def test_the_example_searches_and_shows_its_runs(tmp_path: Path) -> None:
    """The line of examples/README.md, in a process of its own: Optuna logs by itself."""
    words = line_with("examples/README.md", "hydra/sweeper=optuna")[1:]
    assert "hydra.sweeper.n_trials=20" in words
    quick = [word for word in words if not word.startswith(("task=", "hydra.sweeper.n_trials"))]
    quick += ["experiment=debug", "hydra.sweeper.n_trials=3", f"output_root={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "loraexp", *quick],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()[-4:]
    assert {"lr", "state", "held_out/accuracy"} <= set(lines[0].split())
    assert all("finished" in line for line in lines[1:])
    assert 1 <= len(list(tmp_path.rglob("record.json"))) <= 3
    # the larger value is the better one, unless somebody says otherwise
    [results] = tmp_path.rglob("optimization_results.yaml")
    best = float(results.read_text().split("best_value: ")[1].split()[0])
    column = lines[0].split().index("held_out/accuracy")
    assert best == pytest.approx(max(float(line.split()[column]) for line in lines[1:]), abs=1e-4)
