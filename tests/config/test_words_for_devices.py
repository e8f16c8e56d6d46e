"""What `device` takes: a word for one device, or one line that says what was meant; also of a run
that is finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraexp import cli
from loraexp.config import ConfigError
from loraexp.config.placement import check_device
from tests.support.runs import SMOKE, folder_of


@pytest.mark.parametrize("word", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:7", "cuda:15"])
def test_words_that_it_takes(word: str) -> None:
    check_device(word)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("CUDA", "device=CUDA: did you mean cuda? expected auto, cpu, cuda, cuda:N for card N, or"),
        ("Cuda:1", "device=Cuda:1: did you mean cuda:1? expected"),
        ("GPU", "device=GPU: a GPU is cuda; expected"),
        ("gpu", "device=gpu: a GPU is cuda; expected"),
        (0, "device=0: card 0 is cuda:0; expected"),
        ("1", "device=1: card 1 is cuda:1; expected"),
        ("cuda:0,1", "device=cuda:0,1: a run names one device, and train.gpus_per_run with"),
        ([0, 1], "device=[0, 1]: a run names one device"),
        ("cuda:-1", "device=cuda:-1: expected auto"),
        ("cuda:01", "device=cuda:01: expected auto"),
        ("cuda:", "device=cuda:: expected auto"),
        ("cpu:3", "device=cpu:3: there is one cpu, without a number; expected"),
        ("", "device='': expected auto"),
        (None, "device=null: expected auto"),
        ("meta", "device=meta: expected auto"),
        ("tpu", "device=tpu: expected auto"),
        ("GPU-1a2b", "device=GPU-1a2b: a card by its UUID is what CUDA_VISIBLE_DEVICES takes"),
        ("MIG-1a2b", "device=MIG-1a2b: a card by its UUID is what CUDA_VISIBLE_DEVICES takes"),
        ("cuda\n:0", "expected auto"),
    ],
)
def test_words_that_it_does_not(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        check_device(value)
    assert said in str(told.value)


@pytest.mark.parametrize("word", ["gpu", "cuda:0,1", "", "0"])
def test_a_finished_run_is_no_way_around(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is there or not is nothing that a finished run asks; a word for no device is
    wrong anywhere."""
    folder = folder_of(out=tmp_path)
    words = [*SMOKE, f"output_root={tmp_path}"]
    assert cli.main([*words, "train.max_steps=0", "task.limit_train=16", "init=lora"]) == 0
    capsys.readouterr()
    command = [*words, "train.max_steps=0", "task.limit_train=16", "init=lora", f"device='{word}'"]
    assert cli.main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("loraexp: device=") and "expected auto" in line
    assert folder.parent.parent == tmp_path
