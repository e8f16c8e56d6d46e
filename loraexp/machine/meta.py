"""Computing without numbers, on the meta device: an answer to whoever reads a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
WHOLE = {torch.int64: 2**20}  # whatever is counted is plenty


class Answers(TorchDispatchMode):
    """Whatever is read of a value on the host is one, or true, or a whole number of `WHOLE`: what
    is decided by it is what is decided where all is well."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        name = function.overloadpacket.__name__
        source: Any = arguments[1] if name == "copy_" else arguments[0] if arguments else None
        from_meta = isinstance(source, Tensor) and source.device == META
        if from_meta and name in ("_local_scalar_dense", "item", "is_nonzero", "equal"):
            return WHOLE.get(source.dtype, torch.ones((), dtype=source.dtype).item())
        elsewhere = torch.device(keywords.get("device") or META) != META
        if from_meta and name in ("_to_copy", "to") and elsewhere:
            return torch.ones(source.shape, dtype=keywords.get("dtype") or source.dtype)
        if from_meta and name == "copy_" and arguments[0].device != META:
            return arguments[0].fill_(1)
        if from_meta and name == "eq" and source.dim() == 0:
            return torch.tensor(False)  # whether it is zero
        if from_meta and name == "linalg_cholesky_ex":
            L, _ = function(*arguments, **keywords)
            return L, torch.zeros(L.shape[:-2], dtype=torch.int32, device=META)
        if from_meta and name in ("index", "nonzero"):
            return self.chosen(function, arguments, keywords)
        return function(*arguments, **keywords)

    @staticmethod
    def chosen(function: Any, arguments: Any, keywords: Any) -> Any:
        """By a mask everything is chosen."""
        if function.overloadpacket.__name__ == "nonzero":
            (mask,) = arguments
            return torch.empty(mask.numel(), mask.dim(), dtype=torch.int64, device=META)
        x, indices = arguments
        every = [
            torch.empty(i.numel(), dtype=torch.int64, device=META)
            if i is not None and i.dtype == torch.bool and i.dim() == 1
            else i
            for i in indices
        ]
        return function(x, every, **keywords)
