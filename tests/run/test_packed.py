"""Runs that share their passes are, to rounding, the runs that they would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraexp import config
from tests.support.runs import metric_lines
from tests.support.together import (
    TWENTY,
    WITHOUT_DROPOUT,
    alone,
    farthest,
    moved,
    together,
)

ENCODER = ("model=tiny-bert", "task=tweets")
LLAMA = ("model=tiny-llama", "task=gsm8k")
# an initializer that trains what the rule needs, and rates at which it moves without diverging
RULES = {
    "adamw": ("lora", "1e-3"),
    "gd": ("lora", "1e-1"),
    "lora_fa": ("lora_fa", "1e-3"),
    "lora_plus": ("lora", "1e-3"),
    "lora_pro": ("lora", "1e-3"),
    "lora_pro_low_memory": ("lora", "1e-3"),
    "p_lora": ("pissa", "1e-4"),
    "sgd": ("lora", "1e-2"),
}
STARTS = ("cg_lora", "lora_sb", "lora_xs", "pissa", "lora_da", "lora_ga", "lora_one", "milora")


def compared(tmp_path: Path, words: Any, each: Any) -> None:
    """Weights to 1e-5 after twenty steps, and the log, of every run, though they trained."""
    packs = together(tmp_path / "together", words, each)
    for one, other in zip(packs, alone(tmp_path / "alone", words, each), strict=True):
        assert one.record["packed"] == len(each) and "packed" not in other.record
        assert one.record["run_id"] == other.record["run_id"]
        assert farthest(one.folder, other.folder) < 1e-5 < 1e-4 < moved(other.folder)
        lines, theirs = metric_lines(one.folder), metric_lines(other.folder)
        assert [line.keys() for line in lines] == [line.keys() for line in theirs]
        for line, their in zip(lines, theirs, strict=True):
            assert line == pytest.approx(their, rel=1e-4, abs=1e-5), line["step"]


def test_every_rule_is_tried() -> None:
    assert set(RULES) == set(config.names("optimizer"))


@pytest.mark.parametrize("model", [ENCODER, LLAMA], ids=["encoder", "llama"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_moves_a_packed_run_as_a_lone_one(
    rule: str, model: tuple[str, ...], tmp_path: Path
) -> None:
    """Beside a run of another rule, another rate and another rank."""
    init, lr = RULES[rule]
    words = (*model, *TWENTY, *(WITHOUT_DROPOUT if model is ENCODER else ()))
    each = [
        [f"init={init}", f"optimizer={rule}", f"lr={lr}"],
        ["init=lora", "optimizer=adamw", "lr=5e-4", "rank=4"],
        [f"init={init}", f"optimizer={rule}", f"lr={float(lr) / 4}", "train.scheduler=cosine"],
    ]
    compared(tmp_path, words, each)
