"""A run without padding has passes of its own, and trains with no other."""

from __future__ import annotations

from loraexp import config
from loraexp.sweep.packs import apart


def test_a_run_without_padding_trains_apart() -> None:
    def said(*words: str) -> str | None:
        return apart(
            config.check(config.compose(["model=minilm", "task=tweets", "device=cpu", *words]))[1]
        )

    assert said("train.unpadded=true") == "train.unpadded=true"
    assert said("train.micro_batches=auto") == "train.micro_batches=auto"
    assert said("train.micro_batches=4") is None
    assert said() is None
