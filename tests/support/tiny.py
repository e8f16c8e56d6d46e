"""A tiny transformer and its batches, for statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, VOCABULARY = 12, 30


class Attention(nn.Module):
    """One attention block whose linear layers note their inputs and outputs when `trace` is a
    dictionary."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("query", "key", "value", "up", "down"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.dropout = nn.Dropout(0.3)

    def traced(self, name: str, x: Tensor, trace: dict | None) -> Tensor:
        y = getattr(self, name)(x)
        if trace is not None:
            trace.setdefault(name, []).append((x, y))
        return y

    def forward(self, x: Tensor, mask: Tensor, trace: dict | None = None) -> Tensor:
        q, k, v = (self.traced(name, x, trace) for name in ("query", "key", "value"))
        scores = (q @ k.mT / math.sqrt(WIDTH)).masked_fill(~mask[:, None, :].bool(), -torch.inf)
        x = x + self.dropout(scores.softmax(-1) @ v)
        x = x + self.traced("down", torch.tanh(self.traced("up", x, trace)), trace)
        return x + self.traced("down", torch.sin(x), trace)  # a layer that is called twice


class Tiny(nn.Module):
    """A classifier over token embeddings, mean-pooled over unpadded tokens."""

    def __init__(
        self, classes: int = 2, dtype: torch.dtype = torch.float64, checkpointed: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.block = Attention()
        self.head = nn.Linear(WIDTH, classes)
        self.checkpointed = checkpointed
        self.to(dtype)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, trace: dict | None = None
    ) -> Tensor:
        x = self.embedding(input_ids)
        if self.checkpointed:
            x = checkpoint(self.block, x, attention_mask, use_reentrant=False)
        else:
            x = self.block(x, attention_mask, trace)
        weight = (attention_mask / attention_mask.sum(1, keepdim=True)).to(x.dtype)
        return self.head((x * weight.unsqueeze(-1)).sum(1))


def rows(count: int = 10, classes: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        length = int(torch.randint(3, 9, (), generator=generator))
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator)
        made.append((ids, torch.randint(0, max(classes, 2), (), generator=generator)))
    return made


def batches(
    samples: list[tuple[Tensor, Tensor]], split: list[int], extra_padding: int = 0
) -> list[dict[str, Tensor]]:
    made, first = [], 0
    for size in split:
        part = samples[first : first + size]
        length = max(len(ids) for ids, _ in part) + extra_padding
        ids = torch.stack(
            [nn.functional.pad(ids, (0, length - len(ids)), value=7) for ids, _ in part]
        )
        mask = torch.stack([(torch.arange(length) < len(ids)).long() for ids, _ in part])
        made.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": torch.stack([label for _, label in part]),
            }
        )
        first += size
    return made


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["input_ids"], batch["attention_mask"])


def loss_sum(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    return losses(outputs(model, batch), batch["labels"]).sum(), len(batch["labels"])


def targets_of(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "head"
    }


SPLIT = [4, 1, 5]


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[-1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], labels.to(logits), reduction="none"
        )
    return nn.functional.cross_entropy(logits, labels, reduction="none")
