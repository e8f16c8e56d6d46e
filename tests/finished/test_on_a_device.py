"""What is done with a finished run is done on the device of that run, here one that pretends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraexp import cli, config
from loraexp.run import experiment
from tests.support.pretend import TRAINING, Mode, pretend_device

STARTS = ("cg_lora", "lora", "lora_xs")  # an offset beside the factors, none, an R


@pytest.fixture
def device() -> Iterator[Mode]:
    with pretend_device() as mode:
        yield mode


@pytest.mark.parametrize("init", STARTS)
def test_a_finished_run_is_scored_where_it_was_trained(
    init: str, device: Mode, tmp_path: Path
) -> None:
    words = ["experiment=smoke", "wandb.mode=disabled", *TRAINING, "lr=1e-3"]
    composed = config.compose([*words, f"init={init}", f"output_root={tmp_path}"])
    outcome = experiment.run(*config.check(composed))
    for command in ("verify", "eval", "align"):
        assert cli.main([command, str(outcome.folder)]) == 0, command
    again = json.loads((outcome.folder / "record.json").read_text())["evaluations"][-1]
    assert again["metrics"]["dev"] == pytest.approx(outcome.record["metrics"]["dev"], rel=1e-5)
