"""Processes that share a run: one by default, several under `torchrun` or `accelerate launch`.

With adapters every process holds the factors whole, and their gradients, which are small, are
averaged in one message; the frozen base is copied, or sharded where accelerate is configured for
FSDP. With `init=full` the wrapping, DDP or FSDP, is accelerate's alone. With one process nothing of
this is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Processes:
    """The group of processes of this run, seen from one of them."""

    def __init__(self, device: str = "auto") -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.world > 1 else 0
        self.accelerator: Any = None
        self.averaged: list[nn.Parameter] = []  # whose gradients this object averages
        if self.world > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(
        self, model: nn.Module, trained: Sequence[nn.Parameter], apart: Sequence[nn.Module]
    ) -> nn.Module:
        """The model as the loop calls it: itself, or wrapped by accelerate.

        `apart`: the modules that hold `trained` beside a frozen base, which every process keeps
        whole; none where the base itself trains.
        """
        if self.accelerator is None:
            return model
        if not apart:
            prepared: nn.Module = self.accelerator.prepare_model(model)
            return prepared
        self.averaged = list(trained)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None:
            return model
        plugin.ignored_modules = list(apart)
        sharded: nn.Module = self.accelerator.prepare_model(model)
        return sharded

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within: gradients stay on their process (all micro-batches of a step but the last)."""
        return (
            nullcontext()
            if self.accelerator is None or self.averaged
            else self.accelerator.no_sync(model)
        )

    def average(self) -> None:
        """Average the gradients over processes, in one message; a parameter without one counts as
        zero."""
        if not self.averaged:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.averaged]
        message = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(message)
        message /= self.world
        for parameter, gradient in zip(
            self.averaged, message.split([g.numel() for g in gradients]), strict=True
        ):
            parameter.grad = gradient.view_as(parameter)

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Clip the global norm; returns the norm before clipping."""
        if self.accelerator is None or self.averaged:
            return nn.utils.clip_grad_norm_(parameters, max_norm)
        return torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, max_norm))

    def sum(self, value: float, device: torch.device) -> float:
        if self.accelerator is None:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total)
        return total.item()

    def gather(self, thing: Any) -> list[Any]:
        """`thing` of every process, in order of rank, on every process."""
        if self.accelerator is None:
            return [thing]
        things: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(things, thing)
        return things

    def wait(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
