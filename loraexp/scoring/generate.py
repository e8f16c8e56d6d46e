"""Text and likelihoods from a live model, the same for every batch size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loraexp.adapter.linalg import at_least_float32

Progress = Callable[[int, int], None]
CONTEXT = 16  # tokens of a prompt that are decoded with its answer


def bare(model: nn.Module) -> Any:
    """The model inside a wrapper of `torch.nn.parallel`."""
    return getattr(model, "module", model)


def is_seq2seq(model: nn.Module) -> bool:
    return bool(bare(model).config.is_encoder_decoder)


def pad_token(tokenizer: Any) -> int:
    """What fills the left of a shorter prompt; it is masked, so its value changes nothing. Raises: ValueError for none."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError(f"{type(tokenizer).__name__} has neither a padding token nor an end token; set model.pad_token")


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the checkpoint's generation settings name."""
    named = getattr(getattr(bare(model), "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])} - {None}
    if not ends:
        raise ValueError(f"{type(tokenizer).__name__} has no end token, so no answer would end; set tokenizer.eos_token")
    return sorted(int(end) for end in ends)


def tokens_beyond(tokenizer: Any, prompt: str, most: int) -> int:
    """The tokens of a prompt that has more than `most` of them, else 0; what cannot have as many is not tokenised.

    A token of plain text holds at least a character, and special tokens come to a few.
    """
    if prompt.isascii() and len(prompt) + 8 <= most:
        return 0
    count = len(tokenizer(prompt, verbose=False)["input_ids"])
    return count if count > most else 0


def shortened(tokenizer: Any, parts: Sequence[str], most: int) -> str:
    """A prompt of at most `most` tokens, cut from its left: whole examples go first, then the question's beginning.

    `parts`: what stays in front (a header, or nothing), the examples in their order, the question. The question is cut
    at a space, and its end is what remains. Raises: ValueError where not one word of it fits.
    """
    head, *examples, question = parts
    while examples and tokens_beyond(tokenizer, "".join([head, *examples, question]), most):
        del examples[0]
    prompt = "".join([head, *examples, question])
    if not tokens_beyond(tokenizer, prompt, most):
        return prompt
    starts = [found.end() for found in re.finditer(r"\s+", prompt) if found.end() < len(prompt)]
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if tokens_beyond(tokenizer, prompt[starts[middle] :], most):
            low = middle + 1
        else:
            high = middle
    if low == len(starts):
        raise ValueError(f"its last word alone has more than the {max(most, 0)} tokens that the window leaves a prompt")
    return prompt[starts[low] :]


def encode_prompts(model: nn.Module, tokenizer: Any, prompts: Sequence[str], room: int, names: Sequence[str] = ()) -> list[list[int]]:
    """Token ids with the tokenizer's own special tokens, as training has them.

    Raises: ValueError naming the prompt (by its name, where it has one) that, with `room` more tokens, does not fit the
    model's window, or that is empty.
    """
    window = None if is_seq2seq(model) else getattr(bare(model).config, "max_position_embeddings", None)
    encoded = []
    for index, prompt in enumerate(prompts):
        ids = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
        name = (names[index] if names else "") or f"prompt {index}"
        if not ids or not prompt:
            raise ValueError(f"{name} is empty: expected a prompt before the answer; correct the row, or set task.skip_bad=true")
        if window is not None and len(ids) + room > window:
            raise ValueError(
                f"{name} has {len(ids)} tokens and {room} more are wanted, but the model's window is {window}: "
                "shorten the row, choose a protocol with fewer new tokens, or set task.skip_bad=true"
            )
        encoded.append(ids)
    return encoded


def pad_left(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one batch that ends together, and its mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[value] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients, and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


# ---------------------------------------------------------------------------------------------------- generating


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str] = (),
    beams: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    samples: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[list[str]]:
    """`samples` answers to each prompt, without the prompt, the end token, and anything from the first stop string on.

    Prompts are padded on the left and masked, longest first. Temperature 0 is greedy, or beam search with `beams` > 1.
    Otherwise the token at step t is the inverse of the cumulated probabilities at a uniform number that belongs to
    (seed, prompt, sample, t): neither the batch nor the order nor the other rows change what is drawn.

    Raises: ValueError for settings that exclude each other, an empty prompt, or one that does not fit the window;
    FloatingPointError where a logit is NaN.
    """
    _check(max_new_tokens, batch_size, beams, temperature, top_p, top_k, samples, stop)
    encoded = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    seeds = _seeds(prompts, samples, seed) if temperature > 0 else [0] * len(prompts) * samples
    work = sorted(range(len(prompts) * samples), key=lambda i: (-len(encoded[i // samples]), i))
    found: list[str] = [""] * len(work)
    with evaluating(model):
        for start in range(0, len(work), batch_size):
            mine = work[start : start + batch_size]
            drawn = [seeds[i] for i in mine] if temperature > 0 else None
            rows = [encoded[i // samples] for i in mine]
            texts = _batch(model, tokenizer, rows, max_new_tokens, stop, beams, drawn, (temperature, top_k, top_p))
            for i, text in zip(mine, texts, strict=True):
                found[i] = text
            if progress is not None:
                progress(min(start + batch_size, len(work)), len(work))
    return [found[i * samples : (i + 1) * samples] for i in range(len(prompts))]


def _check(new: int, batch_size: int, beams: int, temperature: float, top_p: float, top_k: int, samples: int, stop: Sequence[str]) -> None:
    for name, value, least in (("max_new_tokens", new, 1), ("batch_size", batch_size, 1), ("beams", beams, 1), ("samples", samples, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: expected at least {least}")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(f"temperature={temperature} top_p={top_p} top_k={top_k}: expected T at least 0, top_p in (0, 1], top_k at least 0")
    if beams > 1 and temperature > 0:
        raise ValueError(f"beams={beams} with temperature={temperature}: expected beam search (temperature 0) or sampling (beams 1)")
    if samples > 1 and temperature == 0:
        raise ValueError(f"samples={samples} at temperature 0 would all be the same answer: expected samples=1, or a temperature")
    if any(not text for text in stop):
        raise ValueError("stop: an empty string ends every answer at once; expected text")


def _seeds(prompts: Sequence[str], samples: int, seed: int) -> list[int]:
    """One seed for each answer, of its prompt's text, so that a limit or another order draws the same; repeats differ."""
    seen: dict[str, int] = {}
    seeds = []
    for prompt in prompts:
        for _ in range(samples):
            nth = seen[prompt] = seen.get(prompt, -1) + 1
            digest = hashlib.sha256(f"{seed}\0{nth}\0{prompt}".encode()).digest()
            seeds.append(int.from_bytes(digest[:7], "big"))
    return seeds


def _batch(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    beams: int,
    seeds: Sequence[int] | None,
    warp: tuple[float, int, float],
) -> list[str]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    inner = bare(model)
    ids, mask = pad_left(rows, pad_token(tokenizer), inner.device)
    before = 1 if is_seq2seq(model) else ids.shape[1]
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        do_sample=False,
        use_cache=True,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        early_stopping=False,
        pad_token_id=pad_token(tokenizer),
        eos_token_id=end_tokens(model, tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=getattr(inner.config, "decoder_start_token_id", None),
    )
    made = inner.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList([refuse_nan] + ([] if seeds is None else [Draw(seeds, max_new_tokens, before, *warp)])),
        stopping_criteria=StoppingCriteriaList([Stops(tokenizer, stop, before)] if stop else []),
    )
    prompts = [[]] * len(rows) if is_seq2seq(model) else rows
    return [cut(continuation(tokenizer, prompt, row[before:].tolist()), stop) for prompt, row in zip(prompts, made, strict=True)]


def continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that the new tokens add to the prompt's.

    Decoded together with the prompt's last tokens: a decoder such as LLaMA's drops a space at the start of what it is
    given, which alone would be the first space of an answer, and a line of a program would lose its indentation.
    """
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = list(prompt[-CONTEXT:])
    told, whole = tokenizer.decode(before, **how), tokenizer.decode([*before, *new], **how)
    return whole[len(told) :] if whole.startswith(told) else tokenizer.decode(list(new), **how)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((position for position in map(text.find, stop) if position >= 0), default=len(text))]


class Stops:
    """A row is done as soon as its new text holds a stop string (looked for in the last few tokens of it)."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], before: int) -> None:
        self._tokenizer, self._stop, self._before = tokenizer, tuple(stop), before
        # A token has at least one byte; a few more tokens for markers that decode to nothing.
        self._tail = max(len(text.encode()) for text in stop) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Tensor:
        tails = input_ids[:, max(self._before, input_ids.shape[1] - self._tail) :]
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=True)
        done = [any(word in text for word in self._stop) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def refuse_nan(input_ids: Tensor, scores: Tensor) -> Tensor:
    """The logits as they are. Raises: FloatingPointError where one is NaN: an arg max would still find a token."""
    if scores.isnan().any():
        raise FloatingPointError("the model's logits are not finite, so it generates nothing: it diverged, lower lr or use precision=fp32")
    return scores


class Draw:
    """Sampling as a choice that is made before the arg max: all logits but the drawn token's become −∞.

    u ~ U(0, 1) of the row's own generator; the token is the first whose cumulated probability exceeds u, after division
    by the temperature, then top-k, then top-p (the smallest set of the most probable tokens that reaches p).
    """

    def __init__(self, seeds: Sequence[int], steps: int, before: int, temperature: float, top_k: int, top_p: float) -> None:
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        numbers = [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        self._uniform, self._before, self._temperature = torch.stack(numbers), before, temperature
        self._warpers = ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        warped = at_least_float32(scores) / self._temperature
        for warper in self._warpers:
            warped = warper(input_ids, warped)
        on_host = warped.double().softmax(-1).cpu()  # float64 is not to be had on every accelerator
        cumulated = on_host.cumsum(-1)
        uniform = self._uniform[:, input_ids.shape[1] - self._before].unsqueeze(-1) * cumulated[:, -1:]
        drawn = torch.searchsorted(cumulated, uniform, right=True).clamp_max(scores.shape[-1] - 1).to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn, 0.0)


# ---------------------------------------------------------------------------------------------------- likelihoods


def score_choices(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    choices: Sequence[str],
    *,
    batch_size: int,
    alone: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """log p(choice | prompt), (n, C): the sum over the tokens of " choice" after the prompt (of the whole label in T5).

    `alone`: the one token that the choice by itself ends in, as the released MMLU scripts score it. One forward pass
    gives every choice that is one token.
    """
    continued = [_continuations(model, tokenizer, prompt, choices, alone) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(continued[i][0]))
    scores = np.zeros((len(prompts), len(choices)))
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            mine = order[start : start + batch_size]
            scores[mine] = _score_batch(model, tokenizer, [continued[i] for i in mine])
            if progress is not None:
                progress(min(start + batch_size, len(order)), len(order))
    if not np.isfinite(scores).all():
        raise FloatingPointError("a choice has a log-probability that is not finite: the model diverged, lower lr or use precision=fp32")
    return scores


def _continuations(model: nn.Module, tokenizer: Any, prompt: str, choices: Sequence[str], alone: bool) -> tuple[list[int], list[list[int]]]:
    """The prompt's tokens and each choice's; where joining them changes the prompt's last token, the choice starts there."""
    context = encode_prompts(model, tokenizer, [prompt], 0)[0]
    if alone:
        return context, [tokenizer(choice, add_special_tokens=False)["input_ids"][-1:] for choice in choices]
    if is_seq2seq(model):
        return context, [list(tokenizer(choice)["input_ids"]) for choice in choices]
    joined = [encode_prompts(model, tokenizer, [f"{prompt} {choice}"], 0)[0] for choice in choices]
    shared = min(next((i for i, (a, b) in enumerate(zip(context, ids, strict=False)) if a != b), len(context)) for ids in joined)
    return context[:shared], [ids[shared:] for ids in joined]


def _score_batch(model: nn.Module, tokenizer: Any, rows: Sequence[tuple[list[int], list[list[int]]]]) -> np.ndarray:
    inner, pad = bare(model), pad_token(tokenizer)
    if is_seq2seq(model):
        return _score_seq2seq(inner, pad, rows)
    if all(len(choice) == 1 for _, choices in rows for choice in choices):
        ids, mask = pad_left([context for context, _ in rows], pad, inner.device)
        logits = inner(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=1).logits[:, -1]
        wanted = torch.tensor([[choice[0] for choice in choices] for _, choices in rows], device=inner.device)
        return at_least_float32(logits).log_softmax(-1).gather(1, wanted).double().cpu().numpy()
    count = len(rows[0][1])
    flat = [(context, choice) for context, choices in rows for choice in choices]
    longest = max(len(choice) for _, choice in flat)
    ids, mask = pad_left([context + choice for context, choice in flat], pad, inner.device)
    logits = inner(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=longest + 1).logits[:, :-1]
    losses = at_least_float32(logits).log_softmax(-1).gather(2, ids[:, -longest:].unsqueeze(-1)).squeeze(-1)
    own = torch.tensor([[position >= longest - len(choice) for position in range(longest)] for _, choice in flat], device=ids.device)
    return losses.where(own, 0.0).double().sum(1).view(-1, count).cpu().numpy()


def _score_seq2seq(inner: Any, pad: int, rows: Sequence[tuple[list[int], list[list[int]]]]) -> np.ndarray:
    from transformers.modeling_outputs import BaseModelOutput

    ids, mask = pad_left([context for context, _ in rows], pad, inner.device)
    hidden = inner.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    columns = []
    for choice in range(len(rows[0][1])):
        labels = torch.tensor([row[1][choice] for row in rows], device=ids.device)  # every row has the same labels
        start = labels.new_full((len(rows), 1), int(inner.config.decoder_start_token_id))
        reads = torch.cat([start, labels[:, :-1]], dim=1)
        logits = inner(encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask, decoder_input_ids=reads).logits
        columns.append(at_least_float32(logits).log_softmax(-1).gather(2, labels.unsqueeze(-1)).squeeze(-1).double().sum(1))
    return torch.stack(columns, dim=1).cpu().numpy()


def _positions(mask: Tensor) -> Tensor:
    """Positions that start at each row's first real token."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
