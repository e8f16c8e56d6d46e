"""Bytes alive at the peak of a computation without numbers (on the meta device)."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

EXPIRED = torch.UntypedStorage._expired  # what StorageWeakRef asks, thousands of times a call here


class Alive(TorchDispatchMode):
    """Within: every storage that an operation makes counts from then on until nobody holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0
        self.recent = 0  # the peak since `reset`

    def note(self, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        if storage._cdata not in self.held:  # where one was, no other is while it is watched
            self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.now += storage.nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self.note(value)
        if self.now > self.recent:  # unless some of it is gone by now
            self.forget(until=self.recent)
            self.recent = max(self.recent, self.now)
            self.peak = max(self.peak, self.now)
        return result

    def reset(self) -> None:
        """Begin a new peak beside that of all."""
        self.forget()
        self.recent = self.now

    def forget(self, until: int = -1) -> None:
        """Storages that nobody holds count no more; the youngest go first, and as soon as no more
        than `until` bytes are left, the others may stay."""
        for key, (seen, size) in reversed(list(self.held.items())):
            if EXPIRED(seen.cdata):
                del self.held[key]
                self.now -= size
                if self.now <= until:
                    return
