"""Runs that share their passes on a device that pretends: the host waits for a step of theirs no
more than for one of a lone run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraexp.run import loop, packed, train
from tests.support.pretend import STEPS, TRAINING, counted, training_device
from tests.support.text_data import overrides, write_all
from tests.support.together import runs

SHORT = (*TRAINING, "init.cache=false")
EACH = [["init=lora"], ["init=pissa", "lr=1e-4"], ["init=lora_fa", "optimizer=sgd", "rank=4"]]


@pytest.mark.parametrize("kind", ["encoder", "causal", "seq2seq"])
def test_a_shared_pass_never_waits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"encoder": None, "causal": "gsm8k", "seq2seq": "cola_t5"}
    name = tasks[kind]
    words = [*(overrides(write_all(tmp_path / "data"))[name] if name else ()), *SHORT]
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"held_out": {}, "dev": {}})
    monkeypatch.setattr(train.Loop, "watched", property(lambda self: []))
    with training_device() as mode:
        shares = counted(mode, packed.Passes, "share", monkeypatch)
        steps = counted(mode, train, "step", monkeypatch)
        lines = counted(mode, train, "log_step", monkeypatch)
        outcomes: list[Any] = packed.run(runs(tmp_path / "together", words, EACH))
    where = mode.waits.lines()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    assert shares == [0] * STEPS, where
    assert steps == [0] * STEPS * len(EACH), where
    assert lines == [1] * (STEPS // 3) * len(EACH), where
