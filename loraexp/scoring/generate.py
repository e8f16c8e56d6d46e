"""Text from a live model, the same for every batch size and any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from loraexp.scoring import beams
from loraexp.scoring.cache import can_decode
from loraexp.scoring.decode import Answer, Rules, Stops, decode
from loraexp.scoring.passes import Sharing, in_batches, over
from loraexp.scoring.prompts import (
    Tokenizer,
    bare,
    encode_prompts,
    end_tokens,
    is_seq2seq,
    pad_token,
)
from loraexp.scoring.sampling import Sampling

Told = Callable[[int, int, str, int], None]
CONTEXT = 16  # tokens of a prompt that are decoded with its answer


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    batch_size: int,
    processes: Sharing | None = None,
    told: Told | None = None,
    **how: Any,
) -> list[list[str]]:
    """`samples` answers to each prompt, without the prompt, the end token, and anything from the
    first stop string on.

    Prompts are read once, the longest first, padded and masked; an answer that has ended leaves its
    batch. Temperature 0 is greedy, or beam search with `beams` > 1. Otherwise the token at step t
    is the inverse of the cumulated probabilities at a uniform number that belongs to (seed, prompt,
    sample, t): neither the batch nor the order nor the other rows change what is drawn. Several
    `processes` take whole batches in turn, and all get all answers.

    `how`: the fields of `Sampling`. `told(prompt, sample, text, of)` hears each answer as it ends,
    `of` how many there will be here.

    Raises: ValueError for settings that exclude each other, an empty prompt, or one that does not
    fit the window; FloatingPointError where a logit is NaN.
    """
    sampling = Sampling(**how)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    encoded = encode_prompts(model, tokenizer, prompts, sampling.max_new_tokens)
    own = sampling.beams == 1 and can_decode(bare(model))
    grow = _grower(model, tokenizer, encoded, sampling, batch_size if own else None)
    seeds, first = sampling.seeds(prompts), _first_equal(encoded)

    def answered(_: int, part: Part) -> Iterator[tuple[tuple[int, int], str]]:
        for answer in grow(_answers(part, first, sampling, seeds)):
            before = [] if is_seq2seq(model) else encoded[answer.prompt]
            text = cut(continuation(tokenizer, before, answer.tokens), sampling.stop)
            yield (answer.prompt, answer.sample), text

    def heard(answer: tuple[int, int], text: str, of: int) -> None:
        if told is not None:
            told(*answer, text, of)

    parts = batched(encoded, sampling.samples, batch_size, joined=own)
    whole = over(model, parts, answered, processes=processes, told=heard)
    samples = range(sampling.samples)
    return [[whole[prompt, sample] for sample in samples] for prompt in range(len(prompts))]


Part = list[tuple[int, int]]  # (prompt, sample) of the answers that are grown together


def _grower(
    model: nn.Module,
    tokenizer: Tokenizer,
    encoded: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int | None,
) -> Callable[[list[Answer]], Iterator[Answer]]:
    """What grows answers to their ends: our own loop, `batch_size` at a time, or (None) that of
    transformers, all at once."""
    ends, stops = frozenset(end_tokens(model, tokenizer)), Stops(tokenizer, sampling.stop)
    rules, inner = Rules(sampling, ends, stops), bare(model)
    if batch_size is None:
        return partial(beams.decode, inner, tokenizer, encoded, rules)
    fill = pad_token(tokenizer)
    return partial(decode, inner, encoded, rules, fill, batch_size)


def _answers(
    part: Part, first: Sequence[int], sampling: Sampling, seeds: Sequence[int]
) -> list[Answer]:
    """The answers of a part before their first token; `first`: of each prompt its equal."""
    answers = [Answer(prompt, sample, first[prompt]) for prompt, sample in part]
    for answer in answers if sampling.temperature > 0 else ():
        seed = seeds[answer.prompt * sampling.samples + answer.sample]
        answer.numbers = sampling.numbers(seed)
    return answers


def batched(
    encoded: Sequence[Sequence[int]], samples: int, batch_size: int, joined: bool
) -> list[Part]:
    """All answers, the longest prompts first, in parts that no other part changes.

    A part of answers that leave and join is up to four batches, and no more than an eighth of all,
    so that processes have something to share.
    """
    first = _first_equal(encoded)
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), first[i], i))
    everything = [(prompt, sample) for prompt in order for sample in range(samples)]
    size = max(batch_size, min(4 * batch_size, -(-len(everything) // 8))) if joined else batch_size
    return in_batches(everything, size)


def _first_equal(encoded: Sequence[Sequence[int]]) -> list[int]:
    """Of each prompt the number of the first that is equal to it."""
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(ids), number) for number, ids in enumerate(encoded)]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that the new tokens add to the prompt's.

    Decoded together with the prompt's last tokens: a decoder such as LLaMA's drops a space at the
    start of what it is given, which alone would be the first space of an answer, and a line of a
    program would lose its indentation.
    """

    def text(tokens: list[int]) -> str:
        return tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    before = list(prompt[-CONTEXT:])
    told, whole = text(before), text([*before, *new])
    return whole[len(told) :] if whole.startswith(told) else text(list(new))


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[
        : min((position for position in map(text.find, stop) if position >= 0), default=len(text))
    ]
