"""How likely a model finds given continuations, the same for every batch size and any number of
processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from loraexp.adapter.linalg import at_least_float32
from loraexp.machine.device import on_device
from loraexp.scoring.passes import Sharing, in_batches, over
from loraexp.scoring.prompts import (
    Tokenizer,
    bare,
    encode_prompts,
    is_seq2seq,
    pad_token,
    padded,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Told = Callable[[int, list[float], int], None]
Choices = tuple[list[int], list[list[int]]]  # the prompt's tokens, and each choice's


def score_choices(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    choices: Sequence[str],
    *,
    batch_size: int,
    alone: bool = False,
    processes: Sharing | None = None,
    told: Told | None = None,
) -> np.ndarray:
    """log p(choice | prompt), (n, C): the sum over the tokens of " choice" after the prompt (of the
    whole label in T5).

    `alone`: the one token that the choice by itself ends in, as the released MMLU scripts score it.
    One forward pass gives every choice that is one token. Several `processes` take the batches in
    turn, and all get all scores.
    """
    continued = [continuations(model, tokenizer, prompt, choices, alone) for prompt in prompts]
    return np.array(
        score_rows(
            model, tokenizer, continued, batch_size=batch_size, processes=processes, told=told
        )
    )


def score_rows(
    model: nn.Module,
    tokenizer: Tokenizer,
    rows: Sequence[Choices],
    *,
    batch_size: int,
    processes: Sharing | None = None,
    told: Told | None = None,
) -> list[list[float]]:
    """The log-probability of each row's choices, which are as many and as long as they are.

    The host waits for the device once a batch. `told(row, scores, of)` hears of each row as it is
    scored, `of` how many there will be here.

    Raises: FloatingPointError where one is not finite.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][1]), -len(rows[i][0]), i))
    score, fill = _seq2seq if is_seq2seq(model) else _causal, pad_token(tokenizer)

    def scored(_: int, batch: list[int]) -> Iterator[tuple[int, list[float]]]:
        parts = _same_number([rows[i] for i in batch], batch)
        logs = [score(bare(model), fill, [rows[i] for i in part]) for part in parts]
        values = torch.cat([x.flatten() for x in logs]).cpu().double()
        values = values.split([x.numel() for x in logs])
        for part, x, value in zip(parts, logs, values, strict=True):
            yield from zip(part, value.view(x.shape).sum(-1).tolist(), strict=True)

    whole = over(model, in_batches(order, batch_size), scored, processes=processes, told=told)
    scores = [whole[i] for i in range(len(rows))]
    if not all(np.isfinite(row).all() for row in scores):
        raise FloatingPointError(
            "a choice has a log-probability that is not finite: the model diverged, lower lr or use"
            " precision=fp32"
        )
    return scores


def _same_number(rows: Sequence[Choices], numbers: Sequence[int]) -> list[list[int]]:
    """The numbers in parts whose rows have as many choices."""
    parts: dict[int, list[int]] = {}
    for (_, choices), number in zip(rows, numbers, strict=True):
        parts.setdefault(len(choices), []).append(number)
    return list(parts.values())


def continuations(
    model: nn.Module, tokenizer: Tokenizer, prompt: str, choices: Sequence[str], alone: bool
) -> Choices:
    """The prompt's tokens and each choice's; where joining them changes the prompt's last token,
    the choice starts there."""
    context = encode_prompts(model, tokenizer, [prompt], 0)[0]
    if alone:
        return context, [
            tokenizer(choice, add_special_tokens=False)["input_ids"][-1:] for choice in choices
        ]
    if is_seq2seq(model):
        return context, [list(tokenizer(choice)["input_ids"]) for choice in choices]
    joined = [encode_prompts(model, tokenizer, [f"{prompt} {choice}"], 0)[0] for choice in choices]
    shared = min(
        next(
            (i for i, (a, b) in enumerate(zip(context, ids, strict=False)) if a != b), len(context)
        )
        for ids in joined
    )
    return context[:shared], [ids[shared:] for ids in joined]


# --------------------------------------------------------------------------------------------------
# log-probabilities of the tokens of the rows' choices (n, C, L), 0 behind the end of a shorter one


def _causal(model: PreTrainedModel, fill: int, rows: Sequence[Choices]) -> Tensor:
    count = len(rows[0][1])
    if all(len(choice) == 1 for _, choices in rows for choice in choices):
        logits = _causal_logits(model, *padded(model, [context for context, _ in rows], fill), 1)
        wanted = torch.tensor([[choice[0] for choice in choices] for _, choices in rows])
        return _taken(logits, on_device(wanted, model.device)).unsqueeze(-1)
    flat = [(context, choice) for context, choices in rows for choice in choices]
    longest = max(len(choice) for _, choice in flat)
    ids, mask = padded(model, [context + choice for context, choice in flat], fill)
    logs = _taken(
        _causal_logits(model, ids, mask, longest + 1)[:, :-1], ids[:, ids.shape[1] - longest :]
    )
    behind = torch.tensor([[longest - len(choice)] for _, choice in flat])
    own = torch.arange(longest, device=model.device) >= on_device(behind, model.device)
    return logs.where(own, 0.0).view(len(rows), count, longest)


def _causal_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, keep: int) -> Tensor:
    """The last logits; positions start at each row's first real token."""
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
        use_cache=False,
        logits_to_keep=keep,
    ).logits
    return logits


def _seq2seq(model: PreTrainedModel, fill: int, rows: Sequence[Choices]) -> Tensor:
    from transformers.modeling_outputs import BaseModelOutput

    ids, mask = padded(model, [context for context, _ in rows], fill)
    hidden = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    longest = max(len(choice) for _, choices in rows for choice in choices)
    columns = []
    for choices in zip(*(choices for _, choices in rows), strict=True):
        # padding behind a label changes nothing before it
        labels, own = (on_device(x, model.device) for x in _behind(choices, fill, longest))
        start = labels.new_full((len(rows), 1), int(model.config.decoder_start_token_id))
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1),
            use_cache=False,
        ).logits
        columns.append(_taken(logits, labels).where(own, 0.0))
    return torch.stack(columns, dim=1)


def _behind(rows: Sequence[Sequence[int]], fill: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, and where they are not."""
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
    return ids, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


def _taken(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-probabilities of tokens (..., L) under logits (..., L, V), or of several under one's
    (..., 1, V)."""
    logs = at_least_float32(logits).log_softmax(-1)
    return logs.expand(*tokens.shape, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
