"""The calibration batches, which of their tokens count, and the random numbers that belong to
them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from loraexp.adapter.layer import Weighting

Batch = Mapping[str, Tensor]
IGNORED = -100  # the label of a token that is not in the loss
CROSS_ATTENTION = {"EncDecAttention", "encoder_attn", "crossattention", "cross_attn"}
KEYS_AND_VALUES = {"k", "v", "key", "value", "k_proj", "v_proj"}


@dataclass(frozen=True)
class Calibration:
    """The rows that statistics are taken from, and how the model is run on them.

    `batches`: CPU tensors by name, samples first. `loss_sum(model, batch)`: the sum of the losses
    of all label tokens, and their count. `outputs(model, batch)`: the logits (n, C). `population`:
    the size N of the training set. `sample_losses(model, batch)`: each sample's mean loss over its
    own label tokens (n,), for tasks with several label tokens per sample; None says that a sample
    has one label, and both weightings are the same. `weighting` says what the loss L is a mean
    over, for every statistic of a loss. Both are `L = (1/n) Σ_i L_i` over the n samples: "samples"
    has `L_i` the mean over the T_i label tokens of sample i, "tokens" their sum times n/ΣT, so that
    L is the mean over all label tokens. All three callables are handed one stand-in for the model:
    the forward pass that one of them ran serves the others. `mode`: without dropout, or as in
    training; `seed`: of the dropout, and of whatever the statistics draw.
    """

    batches: Sequence[Batch]
    loss_sum: Callable[[Any, Any], tuple[Tensor, int]]
    outputs: Callable[[Any, Any], Tensor]
    population: int
    sample_losses: Callable[[Any, Any], Tensor] | None = None
    weighting: Weighting = "tokens"
    mode: Literal["eval", "train"] = "eval"
    seed: int = 0


def samples_in(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def tokens_in(batch: Batch, source: str | None = "attention_mask") -> int:
    """Unpadded tokens of the model's input, or of what the entry `source` masks; samples where
    there is no such mask."""
    if source is None or source not in batch:
        return samples_in(batch)
    return int((batch[source] != (IGNORED if source == "labels" else 0)).sum())


def mask_source(name: str, batch: Batch, encoder_decoder: bool) -> str | None:
    """The entry of the batch that says which of a layer's input rows are padding, None where
    nothing does."""
    parts = name.split(".")
    crossing = parts[-1] in KEYS_AND_VALUES and not CROSS_ATTENTION.isdisjoint(parts)
    if encoder_decoder and "decoder" in parts and not crossing:
        if "decoder_attention_mask" in batch:
            return "decoder_attention_mask"
        if "labels" in batch and batch["labels"].dim() == 2:
            return "labels"
    return "attention_mask" if "attention_mask" in batch else None


def token_mask(
    name: str, leading: torch.Size, batch: Batch, encoder_decoder: bool = False
) -> Tensor | None:
    """Which rows of a layer's input are tokens: a bool mask of shape `leading` (all dimensions but
    d_in), None for all.

    Padding is what `attention_mask` says, matched by the number of rows, so that a flattened (B·T,
    d_in) is masked too; an input with one row per sample has none. The decoder of an
    encoder-decoder goes by `decoder_attention_mask`, or by where there are labels, except the keys
    and values of cross-attention, which read the encoder. Raises ValueError where the rows are
    neither samples nor the mask's tokens.
    """
    source = mask_source(name, batch, encoder_decoder)
    if source is None or tuple(leading) == (samples_in(batch),):
        return None
    mask = batch[source] != (IGNORED if source == "labels" else 0)
    if mask.numel() != leading.numel():
        raise ValueError(
            f"layer {name}: input rows {tuple(leading)} fit neither the {samples_in(batch)} samples"
            f" nor {source} {tuple(mask.shape)}; expected one row per token or per sample, drop the"
            " layer from model.targets"
        )
    return mask.reshape(leading)


def layer_generator(seed: int, name: str, purpose: str = "init") -> torch.Generator:
    """A CPU generator of its own for one name and purpose: the global one is never touched, and no
    order matters."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def own_randomness(device: torch.device, seed: int, batch_index: int) -> Iterator[None]:
    """Within: global generators seeded for this batch (dropout is the same in every sweep);
    restored afterwards."""
    own = layer_generator(seed, str(batch_index), "dropout").initial_seed()
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_cuda else []):
        torch.default_generator.manual_seed(own)
        if on_cuda:
            torch.cuda.manual_seed_all(own)
        yield
