"""Processes that share a run: one by default, several under `torchrun` or `accelerate launch`.

Every process has a share of the rows of each step. What it holds whole, the factors and the head or
with `init=full` every weight, has its gradient averaged here, in messages of a bounded size; what
processes hold in pieces (`train.shard=full`) PyTorch's `fully_shard` averages by itself. With one
process nothing of this is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")
MESSAGE = 2**26  # gradients that are averaged at once: the copy that this takes is bounded

# What `accelerate launch` hands to a run of its configuration, and which key here says the same.
ELSEWHERE = {
    "ACCELERATE_USE_FSDP": "train.shard=full",
    "ACCELERATE_USE_DEEPSPEED": "train.shard=full",
    "ACCELERATE_USE_MEGATRON_LM": "train.shard=full",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "train.shard=full",
}


def started() -> int:
    """How many processes the launcher started for this run, before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def misfit(
    *, shard: str, device: str, quantise: str | None, precision: str, gpus_per_run: int = 1
) -> str | None:
    """Why these settings cannot work on the processes that were started, in one line; None where
    they can."""
    world = started()
    for variable, key in ELSEWHERE.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            return (
                f"{variable}={os.environ[variable]}: accelerate's configuration shards models, and"
                f" loraexp would not follow it; choose a plain multi-GPU one there, and set {key}"
            )
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed not in ("no", precision):
        return (
            f"ACCELERATE_MIXED_PRECISION={mixed}: this run has precision={precision}; set"
            " precision=bf16 or fp32 here, and mixed_precision: no in accelerate's configuration"
        )
    kind, colon, _ = device.partition(":")
    if gpus_per_run > 1 and world != gpus_per_run:
        return (
            f"train.gpus_per_run={gpus_per_run}: this run has world size {world}; start it by"
            f" torchrun --nproc-per-node={gpus_per_run} -m loraexp ..., or set it to 1"
        )
    if world > 1 and colon:
        return (
            f"device={device}: names one device, and {world} processes share this run; set"
            f" device={kind}, and CUDA_VISIBLE_DEVICES to choose among the cards"
        )
    if shard == "none":
        return None
    if world == 1:
        return (
            f"train.shard={shard}: one process has nobody to share the weights with; start several"
            " (torchrun --nproc-per-node=2 -m loraexp ...), or set train.shard=none"
        )
    if quantise:
        return (
            f"train.shard={shard}: weights in {quantise} are not shared in pieces; set"
            " model.quantise=null, or train.shard=none"
        )
    return None


def distributed() -> bool:
    """Whether there is a group of several processes."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def rank() -> int:
    """The place of this process in the group; 0 where there is none."""
    return torch.distributed.get_rank() if distributed() else 0


def gathered(thing: Value) -> list[Value]:
    """`thing` of every process of the group, in order of rank, on every process."""
    if not distributed():
        return [thing]
    things: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(things, thing)
    return things


class Processes:
    """The group of processes of this run, seen from one of them."""

    def __init__(self, device: str = "auto") -> None:
        self.world = started()
        self.rank = int(os.environ.get("RANK", "0")) if self.world > 1 else 0
        self.averaged: list[nn.Parameter] = []  # whose gradients this object averages
        if self.world > 1 and not torch.distributed.is_initialized():
            nccl = device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available()
            if nccl:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            # what is no tensor of the device, such as who was told to stop, costs it nothing
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, trained: Sequence[nn.Parameter]) -> None:
        """Average the gradients of these from here on: all that this process holds whole."""
        self.averaged = [] if self.world == 1 else list(trained)

    def average(self) -> None:
        """Average the gradients over processes; a parameter without one counts as zero."""
        message: list[nn.Parameter] = []
        for parameter in self.averaged:
            if message and sum(p.numel() for p in message) + parameter.numel() > MESSAGE:
                self._average(message)
                message = []
            message.append(parameter)
        if message:
            self._average(message)

    def _average(self, parameters: Sequence[nn.Parameter]) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(message)
        message /= self.world
        parts = message.split([g.numel() for g in gradients])
        for parameter, gradient in zip(parameters, parts, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Clip the global norm; returns the norm before clipping."""
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        # of pieces it is one that the processes have yet to add up
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def sum(self, value: Tensor) -> Tensor:
        """A number of every process added up, where it is: nobody waits for it."""
        if self.world == 1:
            return value
        total = value.to(torch.float64)
        torch.distributed.all_reduce(total)
        return total

    def gather(self, thing: Value) -> list[Value]:
        """`thing` of every process, in order of rank, on every process."""
        return gathered(thing) if self.world > 1 else [thing]

    def wait(self) -> None:
        if self.world > 1:
            self.gather(None)  # among hosts: no device has to be chosen for it


def job_of_scheduler() -> str | None:
    """The Slurm job that this process is a part of, a task of an array as `12_3`."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
