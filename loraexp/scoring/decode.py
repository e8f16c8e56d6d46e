"""Tokens that continue prompts: one prefill a prompt, a cache with room, rows that leave when they
end and are replaced.

Rows of a batch end at the same column of the cache and are masked where they are shorter; each row
has the positions of a batch of its own, so neither the batch nor who left it changes an answer.
An accelerator chooses the tokens itself, and the host looks at them together, every 16: what a row
has too many by then is cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.modeling_outputs import BaseModelOutput

from loraexp.machine.device import is_accelerator, on_device
from loraexp.machine.reach import positions
from loraexp.scoring.cache import past
from loraexp.scoring.prompts import Tokenizer, padded
from loraexp.scoring.sampling import Sampling, check_number, home

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOOK = 16  # tokens between two looks of the host at what an accelerator chose
LEAVE = 8  # rows that have ended leave a batch when they are one in so many
REFILL = 0.75  # of a batch: with as few rows or fewer, prompts that wait join it


@dataclass
class Answer:
    """One answer while it grows: whose it is, which prompt it continues, what it is drawn with, and
    its tokens."""

    prompt: int
    sample: int
    reads: int  # the first of the equal prompts: they are read once
    numbers: Tensor | None = None  # (max_new_tokens,) of sampling
    tokens: list[int] = field(default_factory=list)
    done: bool = False


class Stops:
    """A row is done as soon as its new text holds a stop string (looked for in the last few tokens
    of it)."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        # A token has at least one byte; a few more tokens for markers that decode to nothing.
        self._tail = max((len(text.encode()) for text in stop), default=0) + 8

    def in_tokens(self, tokens: Sequence[int]) -> bool:
        """Whether new tokens, of which all but the last held none, hold one."""
        if not self._stop:
            return False
        text = self._tokenizer.decode(list(tokens[-self._tail :]), skip_special_tokens=True)
        return any(word in text for word in self._stop)


@dataclass(frozen=True)
class Rules:
    """How a token is chosen, and when an answer ends."""

    how: Sampling
    ends: frozenset[int]
    stops: Stops

    def take(self, answer: Answer, token: int) -> bool:
        """Give an answer its next token; whether it is the last (an end token is none of its
        text)."""
        check_number(token)
        if token in self.ends:
            return True
        answer.tokens.append(token)
        return len(answer.tokens) >= self.how.max_new_tokens or self.stops.in_tokens(answer.tokens)


class State(Protocol):
    """The past of some rows, and the logits of their next tokens."""

    logits: Tensor

    def step(self, tokens: Tensor) -> None:
        """One token more in every row."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """These rows alone, in this order; a row may be there several times."""
        ...


# --------------------------------------------------------------------------------------------------
# causal models


class CausalState:
    """The past of the rows of a causal model, and the logits of their next tokens."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], fill: int) -> None:
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._last = (positions(model.config.get_text_config()) or 0) - 1
        ids, self.mask = padded(model, prompts, fill)
        self.lengths = [len(prompt) for prompt in prompts]  # as the host knows them
        self.cache = past(model)
        self._places = self.mask.sum(1, keepdim=True)  # of the next tokens
        self.logits = self._forward(ids, (self.mask.cumsum(1) - 1).clamp_min(0))

    def _forward(self, ids: Tensor, places: Tensor) -> Tensor:
        given = {"position_ids": places} if self._takes_positions else {}
        found = self._model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **given,
        )
        logits: Tensor = found.logits[:, -1]
        return logits

    def step(self, tokens: Tensor) -> None:
        self.mask = pad(self.mask, (0, 1), value=1)
        self.logits = self._forward(tokens.unsqueeze(1), self._places)
        self._places = self._places + 1
        if self._last > 0:  # of a row that has ended, and will be cut
            self._places = self._places.clamp_max(self._last)
        self.lengths = [length + 1 for length in self.lengths]

    def keep(self, rows: Sequence[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]
        empty = self.mask.shape[1] - max(self.lengths)  # columns that no row needs any more
        here = on_device(torch.tensor(rows), self.mask.device)
        self.mask = self.mask[here, empty:]
        self._places, self.logits = self._places[here], self.logits[here]
        for layer in self.cache.layers:
            layer.keep(here, empty)

    def join(self, other: CausalState) -> None:
        """The other's rows behind these; the shorter past is padded on the left."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_left(state.mask, width, 1) for state in (self, other)])
        self.lengths = self.lengths + other.lengths
        self._places = torch.cat([self._places, other._places])
        self.logits = torch.cat([self.logits, other.logits])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            pairs = ((mine.keys, theirs.keys), (mine.values, theirs.values))
            mine.put(*(torch.cat([_left(x, width, 2) for x in pair]) for pair in pairs))


def _left(x: Tensor, width: int, dim: int) -> Tensor:
    """Zeros in front, along one dimension, up to a width."""
    missing = width - x.shape[dim]
    return pad(x, (0, 0) * (x.dim() - 1 - dim) + (missing, 0)) if missing else x


# --------------------------------------------------------------------------------------------------
# encoder-decoders


class DecoderState:
    """The past of the rows of an encoder-decoder: its prompts are read once, and its rows all have
    the same length."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], fill: int) -> None:
        self._model = model
        ids, self.mask = padded(model, prompts, fill)
        self.read = model.get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
        self.cache = past(model)
        self.step(ids.new_full((len(prompts),), int(model.config.decoder_start_token_id)))

    def step(self, tokens: Tensor) -> None:
        found = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.read),
            attention_mask=self.mask,
            decoder_input_ids=tokens.unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits: Tensor = found.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        here = on_device(torch.tensor(rows), self.mask.device)
        self.mask, self.read, self.logits = self.mask[here], self.read[here], self.logits[here]
        for cache in (self.cache.self_attention_cache, self.cache.cross_attention_cache):
            for layer in cache.layers:
                layer.keep(here)


# --------------------------------------------------------------------------------------------------
# the loop


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rules: Rules,
    fill: int,
    batch_size: int,
    answers: Sequence[Answer],
) -> Iterator[Answer]:
    """Grow the answers to their ends, `batch_size` at a time, those of one prompt from one reading
    of it; each as it ends."""
    causal = not model.config.is_encoder_decoder
    waiting, active = list(answers), list[Answer]()
    state: Any = None
    while waiting or active:
        if waiting and (not active or (causal and len(active) <= REFILL * batch_size)):
            free = batch_size - len(active)
            fresh, waiting = waiting[:free], waiting[free:]
            new = _read(CausalState if causal else DecoderState, model, prompts, fresh, fill)
            if active:
                state.join(new)
            else:
                state = new
            active += fresh
        chosen = _grow(state, active, rules.how, LOOK if is_accelerator(model.device) else 1)
        for column in chosen.tolist():
            for answer, token in zip(active, column, strict=True):
                if not answer.done and rules.take(answer, token):
                    answer.done = True
                    yield answer
        going = [number for number, answer in enumerate(active) if not answer.done]
        if not going:
            active = []
            continue
        last = chosen[-1]
        replaced = bool(waiting) and causal and len(going) <= REFILL * batch_size
        if replaced or len(active) - len(going) >= max(1, len(active) // LEAVE):
            state.keep(going)
            last = last[on_device(torch.tensor(going), model.device)]
            active = [active[number] for number in going]
        state.step(last.clamp_min(0))  # rows that have ended may have no number


def _read(
    kind: Callable[..., State],
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    fill: int,
) -> State:
    """The state of answers that begin, each prompt read once."""
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(one.reads for one in answers))}
    state = kind(model, [prompts[prompt] for prompt in numbers], fill)
    if len(numbers) < len(answers):
        state.keep([numbers[answer.reads] for answer in answers])
    return state


def _grow(state: State, answers: Sequence[Answer], how: Sampling, most: int) -> Tensor:
    """The next tokens of the rows (steps, n), up to `most` and to the end of the longest; the last
    is not read yet. The device is not asked for any."""
    left = [how.max_new_tokens - len(answer.tokens) for answer in answers if not answer.done]
    steps = min(most, max(left))
    numbers = _numbers(answers, how, steps, state.logits.device)
    chosen: list[Tensor] = []
    for step in range(steps):
        if chosen:
            state.step(chosen[-1].clamp_min(0))
        chosen.append(how.choose(state.logits, None if numbers is None else numbers[step]))
    return torch.stack(chosen)


def _numbers(
    answers: Sequence[Answer], how: Sampling, steps: int, device: torch.device
) -> Tensor | None:
    """What the next tokens of the rows are drawn at (steps, n); of a row that has ended, or will
    have, it may be any."""
    places = torch.arange(steps)
    rows = [
        answer.numbers[(places + len(answer.tokens)).clamp_max(how.max_new_tokens - 1)]
        for answer in answers
        if answer.numbers is not None
    ]
    return on_device(torch.stack(rows, dim=1), home(device)) if rows else None
