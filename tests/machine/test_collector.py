"""Python's collector of cycles: it rests while a command imports, and works while a run does."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from loraexp.cli.main import entry
from loraexp.machine import collector
from loraexp.run import experiment
from tests.support.runs import SMOKE


def test_it_rests_until_a_run_initialises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collector.work()  # where a command of another test began no run
    usual, seen = gc.get_threshold(), {}
    made, base = experiment.initialize, experiment.models.open

    def noted(name: str, function):  # type: ignore[no-untyped-def]
        def call(*given, **how):  # type: ignore[no-untyped-def]
            seen[name] = gc.get_threshold()
            return function(*given, **how)

        return call

    monkeypatch.setattr(experiment.models, "open", noted("model", base))
    monkeypatch.setattr(experiment, "initialize", noted("initialising", made))
    monkeypatch.setattr(sys, "argv", ["loraexp", *SMOKE, f"output_root={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        entry()
    assert end.value.code == 0, capsys.readouterr().err
    assert seen == {"model": (collector.RESTING, *usual[1:]), "initialising": usual}
    assert gc.get_threshold() == usual


def test_who_calls_a_run_from_python_keeps_the_collector_as_it_is() -> None:
    code = "import gc; gc.set_threshold(7, 8, 9)\nfrom loraexp.machine import collector"
    code += "\ncollector.work(); print(gc.get_threshold())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(7, 8, 9)\n"
