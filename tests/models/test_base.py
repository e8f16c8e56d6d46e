"""A base is opened once: what a run asks of it is read a single time."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loraexp.run import kept
from tests.support.runs import run

ONCE = ("locate", "load_config", "new_modules", "load_tokenizer", "pretrained")


@pytest.mark.parametrize("words", [["init=lora"], ["init=full"]], ids=["adapter", "full"])
def test_a_run_asks_each_thing_of_its_base_once(words: list[str], tmp_path: Path) -> None:
    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and "loraexp/models/" in code.co_filename and code.co_name in ONCE:
            calls[code.co_name] += 1

    kept.clear()
    short = ["task.limit_train=32", "task.limit_eval=16", "train.max_steps=1", "init.samples=8"]
    sys.setprofile(count)
    try:
        outcome = run("model=minilm", *short, *words, out=tmp_path)
    finally:
        sys.setprofile(None)
    assert outcome.record["status"] == "finished"
    assert calls == dict.fromkeys(ONCE, 1)
