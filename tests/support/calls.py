"""The calls that reach the kernels of a device, by name: what each forward pass launches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# they only look at memory in another shape, and launch nothing
VIEWS = frozenset(
    """_reshape_alias _unsafe_view alias as_strided chunk detach empty empty_like empty_strided
    expand lift_fresh new_empty permute select slice split split_with_sizes squeeze t transpose
    unbind unsqueeze view""".split()  # noqa: SIM905
)


class Calls(TorchDispatchMode):
    """Counts them while it is on; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        if torch.is_inference_mode_enabled():  # what is made of others comes here in one piece
            with self:
                result = function.decompose(*arguments, **keywords)
            if result is not NotImplemented:
                return result
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.names[name] += 1
        return function(*arguments, **keywords)

    @property
    def total(self) -> int:
        return self.names.total()
