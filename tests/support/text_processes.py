"""Run alone, or by two processes under torchrun (see tests/scoring/test_text_processes.py): a run
of every text task, by the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from loraexp import cli
from loraexp.scoring import protocols
from tests.support.text_data import overrides

COMMON = (
    "experiment=smoke",
    "init=lora",
    "wandb.mode=disabled",
    "device=cpu",
    "train.batch_size=4",
    "train.eval_batch_size=3",
)


def short_answers() -> None:
    """Six tokens an answer."""
    for key, protocol in protocols.PROTOCOLS.items():
        if protocol.decoding is not None:
            protocols.PROTOCOLS[key] = replace(
                protocol, decoding=replace(protocol.decoding, max_new_tokens=6)
            )


def main(data: Path, out: Path, steps: int, names: Sequence[str]) -> int:
    """`names`: of the tasks, or none for all of them."""
    torch.set_num_threads(1)
    short_answers()
    tasks = overrides(data)
    for name in names or tasks:
        common = [
            *COMMON,
            f"train.max_steps={steps}",
            f"output_root={out}",
            f"cache_root={data / 'cache'}",
        ]
        status = cli.main([*common, *tasks[name]])
        if status:
            print(f"{name}: status {status}", file=sys.stderr)
            return status
    return 0
