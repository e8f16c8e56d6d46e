"""How likely a model finds given continuations, the same for every batch size and any number of
processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loraexp.adapter.linalg import at_least_float32
from loraexp.scoring.decode import pad_left
from loraexp.scoring.generate import bare, encode_prompts, evaluating, is_seq2seq, pad_token
from loraexp.scoring.sharing import Sharing, parts_of

Told = Callable[[int, list[float], int], None]
Choices = tuple[list[int], list[list[int]]]  # the prompt's tokens, and each choice's


def score_choices(
    model: nn.Module,
    tokenizer: Any,
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
    tokenizer: Any,
    rows: Sequence[Choices],
    *,
    batch_size: int,
    processes: Sharing | None = None,
    told: Told | None = None,
) -> list[list[float]]:
    """The log-probability of each row's choices, which are as many and as long as they are.

    `told(row, scores, of)` hears of each row as it is scored, `of` how many there will be here.

    Raises: FloatingPointError where one is not finite.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][1]), -len(rows[i][0]), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine = parts_of(processes, model, len(batches))
    count = sum(len(batches[number]) for number in mine)
    found: dict[int, list[float]] = {}
    with evaluating(model):
        for batch in (batches[number] for number in mine):
            for part in _same_number([rows[i] for i in batch], batch):
                made = _score_batch(model, tokenizer, [rows[i] for i in part]).tolist()
                found |= dict(zip(part, made, strict=True))
            for i in batch if told is not None else ():
                told(i, found[i], count)  # type: ignore[misc]
    if processes is not None and len(mine) < len(batches):
        for part in processes.gather(found):
            found |= part
    scores = [found[i] for i in range(len(rows))]
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
    model: nn.Module, tokenizer: Any, prompt: str, choices: Sequence[str], alone: bool
) -> tuple[list[int], list[list[int]]]:
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


def _score_batch(
    model: nn.Module, tokenizer: Any, rows: Sequence[tuple[list[int], list[list[int]]]]
) -> np.ndarray:
    inner, pad = bare(model), pad_token(tokenizer)
    if is_seq2seq(model):
        return _score_seq2seq(inner, pad, rows)
    if all(len(choice) == 1 for _, choices in rows for choice in choices):
        ids, mask = pad_left([context for context, _ in rows], pad, inner.device)
        logits = inner(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=1
        ).logits[:, -1]
        wanted = torch.tensor(
            [[choice[0] for choice in choices] for _, choices in rows], device=inner.device
        )
        return at_least_float32(logits).log_softmax(-1).gather(1, wanted).double().cpu().numpy()
    count = len(rows[0][1])
    flat = [(context, choice) for context, choices in rows for choice in choices]
    longest = max(len(choice) for _, choice in flat)
    ids, mask = pad_left([context + choice for context, choice in flat], pad, inner.device)
    logits = inner(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    losses = (
        at_least_float32(logits)
        .log_softmax(-1)
        .gather(2, ids[:, -longest:].unsqueeze(-1))
        .squeeze(-1)
    )
    own = torch.tensor(
        [[position >= longest - len(choice) for position in range(longest)] for _, choice in flat],
        device=ids.device,
    )
    return losses.where(own, 0.0).double().sum(1).view(-1, count).cpu().numpy()


def _score_seq2seq(
    inner: Any, pad: int, rows: Sequence[tuple[list[int], list[list[int]]]]
) -> np.ndarray:
    from transformers.modeling_outputs import BaseModelOutput

    ids, mask = pad_left([context for context, _ in rows], pad, inner.device)
    hidden = inner.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    columns = []
    for choice in range(len(rows[0][1])):
        # every row has the same labels
        labels = torch.tensor([row[1][choice] for row in rows], device=ids.device)
        start = labels.new_full((len(rows), 1), int(inner.config.decoder_start_token_id))
        reads = torch.cat([start, labels[:, :-1]], dim=1)
        logits = inner(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=reads,
        ).logits
        columns.append(
            at_least_float32(logits)
            .log_softmax(-1)
            .gather(2, labels.unsqueeze(-1))
            .squeeze(-1)
            .double()
            .sum(1)
        )
    return torch.stack(columns, dim=1).cpu().numpy()


def _positions(mask: Tensor) -> Tensor:
    """Positions that start at each row's first real token."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
