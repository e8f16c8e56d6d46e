"""Processes that share a run: one by default, several under `torchrun` or `accelerate launch`.

The wrapping (DDP, or FSDP where accelerate is configured for it) is accelerate's; here are only the few sums and
gathers that the loop needs. With one process nothing of it is imported.
"""

from __future__ import annotations

import os
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
        if self.world > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as the loop calls it: itself, or wrapped so that gradients are averaged over processes."""
        return model if self.accelerator is None else self.accelerator.prepare_model(model)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """Within: gradients stay on their process (all micro-batches of a step but the last)."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(model)

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Clip the global norm; returns the norm before clipping."""
        if self.accelerator is None:
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
