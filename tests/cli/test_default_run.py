"""The default configuration at its real size: minutes, so not part of `make test`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from loraexp import cli
from tests.support.readme import missing, shown

pytestmark = pytest.mark.slow


def test_the_default_run_prints_what_the_readme_shows_within_four_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Always "negative" is right for 0.42 of the dev tweets."""
    monkeypatch.chdir(tmp_path)
    began = time.perf_counter()
    assert cli.main([]) == 0
    seconds = time.perf_counter() - began
    printed = capfd.readouterr()
    record = json.loads(next(tmp_path.rglob("record.json")).read_text())
    assert record["metrics"]["dev"]["accuracy"] > 0.6
    [default] = [one for one in shown("README.md") if one.command == "loraexp"]
    lines = [*printed.err.splitlines(), *printed.out.splitlines()]
    left = missing([*default.output, "…"], lines)
    assert not left, (left, lines)
    assert seconds < 240
