"""The statistics of a loss, one unpadded row at a time, from the logits of transformers' own
forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

IGNORED = -100


def token_losses(model: nn.Module, row: Mapping[str, Tensor], causal: bool) -> Tensor:
    """Cross-entropies (T,) of the label tokens of one row, each from the logits before it."""
    labels = row["labels"][0]
    logits = model(**row).logits[0]
    logits, labels = (logits[:-1], labels[1:]) if causal else (logits, labels)
    kept = labels != IGNORED
    return -logits[kept].log_softmax(-1)[torch.arange(int(kept.sum())), labels[kept]]


def loss_statistics(
    model: nn.Module, name: str, rows: Sequence[Mapping[str, Tensor]], weighting: str, causal: bool
) -> dict[str, Tensor]:
    """`gradient`, `summed_gradient`, `output_moment` of a layer for `L = (1/n) Σ_i L_i`.

    `L_i` is the mean over the row's own T_i label tokens (samples), or their sum over the mean of
    all T_i (tokens).
    """
    layer = model.get_submodule(name)
    counts = [
        int((row["labels"][0, 1:] if causal else row["labels"][0]).ne(IGNORED).sum())
        for row in rows
    ]
    gradients, squares, tokens = [], [], 0
    for row, count in zip(rows, counts, strict=True):
        held: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, given, output: held.append(output))  # noqa: B023
        losses = token_losses(model, row, causal)
        handle.remove()
        own = losses.sum() / (count if weighting == "samples" else sum(counts) / len(counts))
        gradient, mu = torch.autograd.grad(own, [layer.weight, held[0]])
        gradients.append(gradient)
        squares.append(mu.flatten(0, -2).square().sum(0))
        tokens += mu.flatten(0, -2).shape[0]
    total = torch.stack(gradients).sum(0)
    return {
        "gradient": total / len(rows),
        "summed_gradient": total,
        "output_moment": sum(squares) / tokens,
    }
