"""Run by several processes under torchrun (see tests/run/test_sharding.py): runs by the command,
one after another. Only the first process may read a model, and one of them may be told to break."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from loraexp import cli
from loraexp.models import Base
from loraexp.run import train

RANK, BREAK = os.environ["RANK"], os.environ.get("BREAK")  # `rank:step`


def nobody_else_reads() -> None:
    """A model that is read elsewhere than in the first process ends the run."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError(f"process {RANK} read the whole model")

    if RANK != "0":
        Base.load = refuse  # type: ignore[assignment,method-assign]


def broken_step(rank: str, at: int) -> None:
    """A process whose step `at` raises."""
    before = train.step

    def step(run: Any, parts: Any, number: int, *rest: Any) -> Any:
        if rank == RANK and number == at:
            raise ValueError(f"process {rank} broke at step {number}")
        return before(run, parts, number, *rest)

    train.step = step


def main(words: str, out: str, *more: str) -> int:
    """`words`: a JSON file with the overrides of every run."""
    torch.set_num_threads(1)
    nobody_else_reads()
    if BREAK:
        rank, _, at = BREAK.partition(":")
        broken_step(rank, int(at))
    for overrides in json.loads(Path(words).read_text()):
        status = cli.main([*overrides, f"output_root={out}", *more])
        if status:
            print(f"{overrides}: status {status}", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
