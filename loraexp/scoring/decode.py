"""Tokens that continue prompts: one prefill a prompt, a cache with room, rows that leave when they
end and are replaced.

Rows of a batch end at the same column of the cache and are masked where they are shorter; each row
has the positions of a batch of its own, so neither the batch nor who left it changes an answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

ROOM = 128  # columns that a layer's buffers grow by
LEAVE = 8  # rows that have ended leave a batch when they are one in so many
REFILL = 0.75  # of a batch: with as few rows or fewer, prompts that wait join it
# kinds of layers whose past is keys and values, and can be padded on the left
LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class Answer:
    """One answer while it grows: whose it is, which prompt it continues, what it is drawn with, and
    its tokens."""

    prompt: int
    sample: int
    reads: int  # the first of the equal prompts: they are read once
    uniform: Tensor | None = None  # (steps,) of sampling
    tokens: list[int] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True)
class Rules:
    """When an answer ends, and how a token is chosen: `choose(logits (n, V), answers)` → (n,)."""

    most: int
    ends: frozenset[int]
    choose: Callable[[Tensor, Sequence[Answer]], Tensor]
    stopped: Callable[[Sequence[int]], bool] | None = None


class Roomy(DynamicLayer):
    """Keys and values as views of buffers with room behind: a step writes a column, where a
    concatenation copies all."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < after:
            # A prompt alone needs no room yet: its cache is copied once its rows are known.
            room = after + ROOM if before else after
            held = [self.keys, self.values] if before else [None, None]
            self._buffers = [
                _with_room(x, new, room)
                for x, new in zip(held, (key_states, value_states), strict=True)
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., before:after, :] = new
        self.keys, self.values = (buffer[..., :after, :] for buffer in self._buffers)
        return self.keys, self.values

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, whatever was held before; room comes with the next step."""
        self.keys, self.values, self._buffers = keys, values, []


def _with_room(held: Tensor | None, new: Tensor, room: int) -> Tensor:
    buffer = new.new_empty(*new.shape[:-2], room, new.shape[-1])
    if held is not None:
        buffer[..., : held.shape[-2], :] = held
    return buffer


def can_decode(model: nn.Module) -> bool:
    """Whether the model's past is a cache of keys and values, which rows can leave and join."""
    config: Any = model.config
    kinds = set(
        getattr(config.get_text_config(decoder=True), "layer_types", None) or ["full_attention"]
    )
    return kinds <= LAYERS and not getattr(model, "_is_stateful", False)


def pad_left(
    rows: Sequence[Sequence[int]], value: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one batch that ends together, and its mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[value] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


# --------------------------------------------------------------------------------------------------
# causal models


class CausalState:
    """The past of the rows of a causal model, and the logits of their next tokens."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        ids, self.mask = pad_left(prompts, pad, model.device)
        self.lengths = self.mask.sum(1)
        self.cache: Any = Cache(layer_class_to_replicate=Roomy)
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)
        self.logits = self._forward(ids, positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        given = {"position_ids": positions} if self._takes_positions else {}
        found = self._model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **given,
        )
        return found.logits[:, -1]

    def step(self, tokens: Tensor) -> None:
        """One token more in every row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(tokens.unsqueeze(1), self.lengths.unsqueeze(1))
        self.lengths = self.lengths + 1

    def keep(self, rows: Tensor) -> None:
        """These rows alone, in this order; a row may be there several times."""
        self.mask, self.lengths, self.logits = (
            self.mask[rows],
            self.lengths[rows],
            self.logits[rows],
        )
        empty = self.mask.shape[1] - int(self.lengths.max())  # columns that no row needs any more
        self.mask = self.mask[:, empty:]
        for layer in self.cache.layers:
            layer.put(*(x[rows, :, empty:] for x in (layer.keys, layer.values)))

    def join(self, other: CausalState) -> None:
        """The other's rows behind these; the shorter past is padded on the left."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_left(state.mask, width, 1) for state in (self, other)])
        self.lengths, self.logits = (
            torch.cat([self.lengths, other.lengths]),
            torch.cat([self.logits, other.logits]),
        )
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            pairs = ((mine.keys, theirs.keys), (mine.values, theirs.values))
            mine.put(*(torch.cat([_left(x, width, 2) for x in pair]) for pair in pairs))


def _left(x: Tensor, width: int, dim: int) -> Tensor:
    """Zeros in front, along one dimension, up to a width."""
    missing = width - x.shape[dim]
    if not missing:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x.new_zeros(shape), x], dim=dim)


# --------------------------------------------------------------------------------------------------
# encoder-decoders


class DecoderState:
    """The past of the rows of an encoder-decoder: its prompts are read once, and its rows all have
    the same length."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self._model = model
        ids, self.mask = pad_left(prompts, pad, model.device)
        self.read = model.get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.step(ids.new_full((len(prompts),), int(model.config.decoder_start_token_id)))

    def step(self, tokens: Tensor) -> None:
        found = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.read),
            attention_mask=self.mask,
            decoder_input_ids=tokens.unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = found.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.mask, self.read, self.logits = self.mask[rows], self.read[rows], self.logits[rows]
        self.cache.batch_select_indices(rows)


# --------------------------------------------------------------------------------------------------
# the loop


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    rules: Rules,
    *,
    pad: int,
    batch_size: int,
    finished: Callable[[Answer], None],
) -> None:
    """Grow the answers to their ends, `batch_size` at a time, those of one prompt from one reading
    of it.

    `finished` is told of each as it ends.
    """
    causal = not model.config.is_encoder_decoder
    waiting, active = list(answers), list[Answer]()
    state: Any = None
    while waiting or active:
        if waiting and (not active or (causal and len(active) <= REFILL * batch_size)):
            fresh, waiting = (
                waiting[: batch_size - len(active)],
                waiting[batch_size - len(active) :],
            )
            read = dict.fromkeys(answer.reads for answer in fresh)
            numbers = {prompt: number for number, prompt in enumerate(read)}
            new = (CausalState if causal else DecoderState)(
                model, [prompts[prompt] for prompt in read], pad
            )
            if len(read) < len(fresh):
                new.keep(
                    torch.tensor([numbers[answer.reads] for answer in fresh], device=model.device)
                )
            if active:
                state.join(new)
            else:
                state = new
            active += fresh
        tokens = rules.choose(state.logits, active)
        for answer, token in zip(active, tokens.tolist(), strict=True):
            if not answer.done and _ends(answer, token, rules):
                answer.done = True
                finished(answer)
        going = [number for number, answer in enumerate(active) if not answer.done]
        replaced = bool(waiting) and causal and len(going) <= REFILL * batch_size
        if not going:
            active = []
            continue
        if replaced or len(active) - len(going) >= max(1, len(active) // LEAVE):
            rows = torch.tensor(going, device=model.device)
            state.keep(rows)
            active, tokens = [active[number] for number in going], tokens[rows]
        state.step(tokens)


def _ends(answer: Answer, token: int, rules: Rules) -> bool:
    """Take the token; whether it is the answer's last (an end token is none of its text)."""
    if token in rules.ends:
        return True
    answer.tokens.append(token)
    return len(answer.tokens) >= rules.most or (
        rules.stopped is not None and rules.stopped(answer.tokens)
    )
