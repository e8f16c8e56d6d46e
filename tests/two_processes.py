"""Run by two processes (see test_train.py): the shared gradient against that of one process, then a whole run."""

from __future__ import annotations

import sys

import numpy as np
import torch

from loraexp import cli
from loraexp.parallel import Processes
from loraexp.record import Stopwatch
from loraexp.train import accumulate_gradient, collate_share, micro_batches
from tests.test_train import adapted, gradient


class Alone(Processes):
    def __init__(self) -> None:
        self.world, self.rank, self.accelerator = 1, 0, None


def main(out: str) -> int:
    torch.set_num_threads(1)
    processes = Processes("cpu")
    model, task, adapters = adapted(dtype=torch.float32)
    rows = np.arange(19)  # odd: the shares differ, and the last part of 3 leaves a process one row short
    examples = task.splits["train"]
    batches = [task.collate(examples, rows)]
    accumulate_gradient(model, task, batches, precision="fp32", processes=Alone(), clock=Stopwatch())
    alone = {name: p.grad.clone() for name, p in adapters.named_trainable().items()}
    for p in adapters.trainable():
        p.grad = None
    wrapped = processes.prepare(model)
    shares = [collate_share(task, examples, part, processes) for part in micro_batches(rows, examples.lengths, 3)]
    shares.append(collate_share(task, examples, rows[:1], processes))  # one row: the second process has none
    expected_rows = [rows, rows[:1]]
    accumulate_gradient(wrapped, task, shares, precision="fp32", processes=processes, clock=Stopwatch())
    shared = {name: p.grad.clone() for name, p in adapters.named_trainable().items()}
    for p in adapters.trainable():
        p.grad = None
    joined = [task.collate(examples, r) for r in expected_rows]
    accumulate_gradient(model, task, joined, precision="fp32", processes=Alone(), clock=Stopwatch())
    for name, p in adapters.named_trainable().items():
        torch.testing.assert_close(shared[name], p.grad, rtol=1e-6, atol=1e-6)
        assert not torch.equal(alone[name], p.grad)
    print("gradients agree", flush=True)
    assert callable(gradient)
    return cli.main(["experiment=smoke", f"output_root={out}", "wandb.mode=offline", "device=cpu"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
