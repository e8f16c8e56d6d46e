"""Bytes that are alive at the peak of a computation: of tensors without numbers (on the meta
device) as of any other."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Within: every storage that an operation makes counts from then on until nobody holds it.

    A storage tells by itself when it is gone, so counting costs the same however many there are.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: set[int] = set()
        self.now = self.peak = 0
        self.recent = 0  # the peak since `reset`
        self.apart = False

    def note(self, value: Any, *, counted: bool = True) -> None:
        """Count what is alive already, such as weights; or know it, as of no size."""
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self.held:
            size = storage.nbytes() if counted else 0
            self.held.add(key)
            self.now += size
            weakref.finalize(storage, self.gone, key, size).atexit = False

    def gone(self, key: int, size: int) -> None:
        self.held.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self.note(value, counted=not self.apart)
        if self.now > self.recent:
            self.recent = self.now
            self.peak = max(self.peak, self.now)
        return result

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Within: what is made is of another device's memory, and of no size here."""
        before, self.apart = self.apart, True
        try:
            yield
        finally:
            self.apart = before

    def reset(self) -> None:
        """Begin a new peak beside that of all."""
        self.recent = self.now


class MadeWithin(Alive):
    """Of what is made within alone: what an operation is given, and did not come of one, was there
    before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            self.note(value, counted=False)
        return super().__torch_dispatch__(func, types, args, kwargs)
