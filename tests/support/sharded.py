"""Run by several processes under torchrun (see tests/run/test_sharding.py): runs by the command,
one after another. Only the first process may read a model, none may hold more than one tensor of
what is saved, and one of them may be told to break."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from loraexp import cli
from loraexp.adapter.adapted import shared_out
from loraexp.models import Base
from loraexp.run import model_files, train


def nobody_else_reads(own: str) -> None:
    """A model that is read elsewhere than in the first process ends the run."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError(f"process {own} read the whole model")

    if own != "0":
        Base.load = refuse  # type: ignore[assignment,method-assign]


def one_tensor_at_a_time(own: str) -> None:
    """A model that is saved from more than one whole tensor at once ends the run."""
    gather = model_files.whole
    held: list[StorageWeakRef] = []

    def whole(value: Any) -> torch.Tensor:
        until = time.monotonic() + 5  # gloo's own thread lets go of a message a moment later
        while any(not one.expired() for one in held):
            assert time.monotonic() < until, f"process {own} keeps a tensor that it has saved"
            time.sleep(0.001)
        result = gather(value)
        if shared_out(value):
            held[:] = [StorageWeakRef(result.untyped_storage())]
        return result

    def refuse(*_: Any) -> None:
        raise AssertionError(f"process {own} gathered the whole model")

    model_files.whole = whole
    model_files.gathered_state = refuse  # type: ignore[assignment]


def broken_step(own: str, at: int) -> None:
    """The step `at` of this process raises."""
    before = train.step

    def step(run: Any, parts: Any, number: int, *rest: Any) -> Any:
        if number == at:
            raise ValueError(f"process {own} broke at step {number}")
        return before(run, parts, number, *rest)

    train.step = step


def main(words: str, out: str, *more: str) -> int:
    """`words`: a JSON file with the overrides of every run."""
    torch.set_num_threads(1)
    own = os.environ["RANK"]
    nobody_else_reads(own)
    one_tensor_at_a_time(own)
    rank, _, at = os.environ.get("BREAK", "").partition(":")  # `rank:step`
    if rank == own:
        broken_step(own, int(at))
    for overrides in json.loads(Path(words).read_text()):
        status = cli.main([*overrides, f"output_root={out}", *more])
        if status:
            print(f"{overrides}: status {status}", file=sys.stderr)
            return status
    return 0
