"""Without a terminal: a line now and then on standard error, and in any case in the log of the
run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loraexp import cli
from loraexp.machine import progress
from tests.support.runs import SMOKE


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_line_every_half_minute_with_step_columns_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    with progress.logged(tmp_path / "run.log"), progress.bar("training", 400, 100) as advance:
        for step in range(1, 91):
            clock.now += 1.0
            advance(0, loss=1 / step, rate="12 samples/s") if step % 10 == 0 else None
            advance(1)
    expected = [
        "training 129/400 · loss 0.03333 · rate 12 samples/s · 4.7 min left",
        "training 159/400 · loss 0.01667 · rate 12 samples/s · 4.1 min left",
        "training 189/400 · loss 0.01111 · rate 12 samples/s · 3.6 min left",
    ]
    said = capsys.readouterr().err.splitlines()
    assert said == expected
    written = [
        re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line)
        for line in (tmp_path / "run.log").read_text().splitlines()
    ]
    assert written == expected


def test_only_the_first_process_speaks_and_what_is_short_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    with progress.bar("evaluating", 3) as advance:
        clock.now += 29
        advance(1)
    monkeypatch.setenv("RANK", "1")
    with progress.bar("evaluating", 3) as advance:
        clock.now += 31
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_run_keeps_a_log_and_prints_its_layers_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SMOKE, "init=pissa", "train.max_steps=1", f"output_root={tmp_path}"]
    assert cli.main(argv) == 0
    assert "leading singular values" not in capsys.readouterr().err
    assert cli.main([*argv, "init.show=true", "force=true"]) == 0
    assert "leading singular values" in capsys.readouterr().err
    [path] = tmp_path.rglob("run.log")
    lines = [line[21:] for line in path.read_text().splitlines()]
    phases = [line for line in lines if not line.startswith("  ")]  # these are details of them
    assert phases[:4] == [
        "reading the data",
        "loading the model",
        "initialising",
        "loading the model",
    ]
    assert (
        "training" in phases
        and phases[-1] == "evaluating"
        and len(phases) == 2 * len(phases[: len(phases) // 2])
    )
