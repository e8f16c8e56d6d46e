"""The default configuration at its real size: minutes, so not part of `make test`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from loraexp import cli

pytestmark = pytest.mark.slow


def test_the_default_run_beats_the_majority_class_within_four_minutes(tmp_path: Path) -> None:
    """Always "negative" is right for 0.42 of the dev tweets."""
    began = time.perf_counter()
    assert cli.main([f"output_root={tmp_path}"]) == 0
    record = json.loads(next(tmp_path.rglob("record.json")).read_text())
    assert record["metrics"]["dev"]["accuracy"] > 0.6
    assert time.perf_counter() - began < 240
