"""Where a run computes: the device that was named, or the one of this process; never another id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import config
from loraexp.machine.device import choose_device


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine with two faked cards; which of them became the current one."""
    current: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    real = torch.zeros

    def zeros(*shape: Any, device: Any = None, **how: Any) -> torch.Tensor:
        if torch.device(device or "cpu").index not in (None, 0, 1):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return real(*shape, **how)

    monkeypatch.setattr(torch, "zeros", zeros)
    return current


@pytest.mark.parametrize(
    ("name", "rank", "chosen"),
    [
        ("cuda:1", None, "cuda:1"),
        ("cuda", None, "cuda"),
        ("cuda", "1", "cuda:1"),
        ("auto", "1", "cuda:1"),
        ("auto", None, "cuda"),
    ],
)
def test_the_device_named_or_that_of_the_process_is_the_current_one(
    name: str,
    rank: str | None,
    chosen: str,
    two_cards: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(name) == torch.device(chosen)
    assert two_cards == [torch.device(chosen)]  # whose generator a checkpoint saves


def test_a_card_that_is_not_there_is_one_line(two_cards: list[Any]) -> None:
    with pytest.raises(ValueError, match="device=cuda:5: not available here") as told:
        choose_device("cuda:5")
    assert "\n" not in str(told.value) and not two_cards


def test_a_device_is_where_and_not_what(tmp_path: Path) -> None:
    folders = {
        config.run_folder(
            config.check(config.compose([f"device={device}", f"output_root={tmp_path}"]))[1]
        )
        for device in ("cpu", "cuda", "cuda:0", "cuda:1")
    }
    assert len(folders) == 1
