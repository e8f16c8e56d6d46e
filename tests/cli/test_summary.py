"""What a sweep ends with: one line for a reason of many failures, and what to type next."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import cli
from loraexp.cli import show, start
from loraexp.sweep import reading
from loraexp.sweep.watch import Watch
from tests.support.measured import CONTENT, cells_of


@pytest.mark.parametrize(("alike", "lines"), [(3, 3), (4, 1)])
def test_a_reason_that_many_runs_share_is_said_once(
    alike: int, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CONTENT)
    watch = Watch("mine", cells_of(CONTENT)[:5], {})
    for i, folder in enumerate(watch.cells):
        watch.fail(folder, "Unreachable: no hub" if i < alike else f"other {i}")
    show.summary_of_sweep(reading.load(str(path)), watch)
    said = capsys.readouterr().err.splitlines()
    shared = [line for line in said if "Unreachable" in line]
    assert len(shared) == lines
    assert ("seed=0 and 3 more: Unreachable: no hub" in shared[0]) == (alike == 4)
    assert sum(": other " in line for line in said) == 5 - alike
    assert said[0] == "mine: 0 of 5 runs finished, 5 failed"


@pytest.mark.parametrize(("words", "told"), [([], True), (["seed=0,1"], False)])
def test_a_grid_of_one_run_says_that_nothing_varies(
    words: list[str],
    told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "attempt", lambda cfg: 0)
    cli.main(["-m", "experiment=smoke", f"output_root={tmp_path}", *words])
    said = capsys.readouterr().err
    assert ("loraexp: -m: no key has several values" in said) == told
    assert said.count("--- run") == (1 if told else 2)
