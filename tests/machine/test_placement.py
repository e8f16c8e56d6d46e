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
    """A machine with two faked cards; which of them became the current one, by torch's own
    `set_device`, which takes no card without a number."""
    current: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1] if current else 0)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
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
        ("cuda", None, "cuda:0"),
        ("cuda", "1", "cuda:1"),
        ("auto", "1", "cuda:1"),
        ("auto", None, "cuda:0"),
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
    assert two_cards == [torch.device(chosen).index]  # whose generator a checkpoint saves


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


@pytest.mark.parametrize(
    ("name", "count", "visible", "rank", "said"),
    [
        ("cuda:7", 2, None, None, "expected auto, cpu, cuda or one of the 2 cards, cuda:0 to cuda"),
        ("cuda:7", 1, "3", None, "the 1 card, cuda:0; CUDA_VISIBLE_DEVICES='3' hides all others"),
        ("cuda", 2, None, "5", "here are 2 cards, cuda:0 to cuda:1: expected at most 2 processes"),
        ("cuda:7", 0, "", None, "expected auto or cpu; CUDA_VISIBLE_DEVICES='' hides every card"),
        ("cuda:7", 0, "-1", None, "auto or cpu; CUDA_VISIBLE_DEVICES='-1' hides every card"),
        ("cuda:7", 0, "GPU-no", None, "auto or cpu; CUDA_VISIBLE_DEVICES='GPU-no' hides every"),
        ("cuda:7", 0, None, None, "expected auto or cpu$"),
    ],
)
def test_what_is_there_instead_is_said(
    name: str,
    count: int,
    visible: str | None,
    rank: str | None,
    said: str,
    two_cards: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for key, value in (("CUDA_VISIBLE_DEVICES", visible), ("LOCAL_RANK", rank)):
        monkeypatch.delenv(key, raising=False)
        if value is not None:
            monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=f"device=cuda:[57]: not available here .*{said}"):
        choose_device(name)


@pytest.mark.parametrize(
    ("visible", "cuda", "refused"),
    [
        ("GPU-no", "12.8", True),
        (" 7", "12.8", True),
        ("MIG-no", "12.8", True),
        ("", "12.8", False),
        ("-1", "12.8", False),
        ("NoDevFiles", "12.8", False),
        (None, "12.8", False),
        ("0", None, False),  # torch is built for the CPU
    ],
)
def test_a_card_that_was_named_is_not_replaced_by_the_cpu(
    visible: str | None, cuda: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if not refused:
        assert choose_device("auto") == torch.device("cpu")
        return
    with pytest.raises(ValueError, match=f"device=auto: CUDA_VISIBLE_DEVICES='{visible}' names"):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")
