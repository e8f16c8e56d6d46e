"""Cross-entropies over a large vocabulary, with no copy of all logits in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from loraexp.adapter.linalg import at_least_float32
from loraexp.machine.device import is_accelerator

# bytes of the float32 copy of the tokens that are at work: a cache on a CPU, few launches elsewhere
CHUNK = {"cpu": 2**22, "accelerator": 2**25}


def cross_entropies(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """`−log softmax(logits)` (n, V) at the labels (n,), in float32 or better; 0 where a label is
    `ignored`.

    A chunk of tokens at a time, forward and backward: beside the logits, in their own dtype, there
    is only their gradient, in that dtype too. The values and gradients are those of the whole.
    """
    losses: Tensor = CrossEntropies.apply(logits, labels, ignored)  # type: ignore[no-untyped-call]
    return losses


def chunks(logits: Tensor) -> range:
    """Where each chunk of tokens begins."""
    wanted = CHUNK["accelerator" if is_accelerator(logits.device) else "cpu"]
    return range(0, len(logits), max(1, wanted // (4 * logits.shape[1])))


class CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.ignored = ignored
        starts = chunks(logits)
        parts = [
            functional.cross_entropy(
                at_least_float32(logits[start : start + starts.step]),
                labels[start : start + starts.step],
                ignore_index=ignored,
                reduction="none",
            )
            for start in starts
        ]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """`(softmax(logits) − e_label) g`, zero where the label is ignored."""
        logits, labels = ctx.saved_tensors
        here = labels != ctx.ignored
        weights = (gradients[0] * here).unsqueeze(1)
        at = labels.where(here, 0).unsqueeze(1)
        gradient = torch.empty_like(logits)
        starts = chunks(logits)
        for start in starts:
            part = slice(start, start + starts.step)
            own = at_least_float32(logits[part]).log_softmax(-1).exp_().mul_(weights[part])
            own.scatter_add_(1, at[part], -weights[part])
            gradient[part] = own
            del own  # before there is the next
        return gradient, None, None
