"""The words for a device; whether it is there is asked where a run begins."""

from __future__ import annotations

import re

from loraexp.config.errors import ConfigError

WORD = re.compile(r"auto|cpu|mps|xpu|cuda(:(0|[1-9][0-9]?[0-9]?))?")
KINDS = "auto, cpu, cuda, cuda:N for card N, or mps"


def check_device(value: object) -> None:
    """Raises: ConfigError where a value is no word for one device."""
    if isinstance(value, str) and WORD.fullmatch(value):
        return
    shown = "null" if value is None else repr(value) if value == "" else value
    raise ConfigError(f"device={shown}: {meant(str(value).strip().lower())}expected {KINDS}")


def meant(word: str) -> str:
    """What a wrong word was for, as far as one can tell."""
    if "," in word:
        return (
            "a run names one device, and train.gpus_per_run with CUDA_VISIBLE_DEVICES gives it"
            " several; "
        )
    if word in ("gpu", "nvidia", "accelerator"):
        return "a GPU is cuda; "
    if word.isdecimal():
        return f"card {int(word)} is cuda:{int(word)}; "
    if word.startswith("cpu"):
        return "there is one cpu, without a number; "
    if WORD.fullmatch(word):
        return f"did you mean {word}? "
    if word.startswith(("gpu-", "mig-")):
        return "a card by its UUID is what CUDA_VISIBLE_DEVICES takes, and then device=cuda; "
    return ""
