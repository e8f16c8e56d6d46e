"""Text from a live model, the same for every batch size and any number of processes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraexp.adapter.linalg import at_least_float32
from loraexp.scoring.decode import Answer, Rules, can_decode, decode, pad_left
from loraexp.scoring.sharing import Sharing, parts_of

Told = Callable[[int, int, str, int], None]
CONTEXT = 16  # tokens of a prompt that are decoded with its answer


def bare(model: nn.Module) -> Any:
    """The model inside a wrapper of `torch.nn.parallel`."""
    return getattr(model, "module", model)


def is_seq2seq(model: nn.Module) -> bool:
    return bool(bare(model).config.is_encoder_decoder)


def pad_token(tokenizer: Any) -> int:
    """What fills the left of a shorter prompt; it is masked, so its value changes nothing. Raises:
    ValueError for none."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError(
        f"{type(tokenizer).__name__} has neither a padding token nor an end token; set"
        " model.pad_token"
    )


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the checkpoint's generation
    settings name."""
    named = getattr(getattr(bare(model), "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])} - {
        None
    }
    if not ends:
        raise ValueError(
            f"{type(tokenizer).__name__} has no end token, so no answer would end; set"
            " tokenizer.eos_token"
        )
    return sorted(int(end) for end in ends)


def tokens_beyond(tokenizer: Any, prompt: str, most: int) -> int:
    """The tokens of a prompt that has more than `most` of them, else 0; what cannot have as many is
    not tokenised.

    A token of plain text holds at least a character, and special tokens come to a few.
    """
    if prompt.isascii() and len(prompt) + 8 <= most:
        return 0
    count = len(tokenizer(prompt, verbose=False)["input_ids"])
    return count if count > most else 0


def shortened(tokenizer: Any, parts: Sequence[str], most: int) -> str:
    """A prompt of at most `most` tokens, cut from its left: whole examples go first, then the
    question's beginning.

    `parts`: what stays in front (a header, or nothing), the examples in their order, the question.
    The question is cut at a space, and its end is what remains. Raises: ValueError where not one
    word of it fits.
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
        raise ValueError(
            f"its last word alone has more than the {max(most, 0)} tokens that the window leaves a"
            " prompt"
        )
    return prompt[starts[low] :]


def encode_prompts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], room: int, names: Sequence[str] = ()
) -> list[list[int]]:
    """Token ids with the tokenizer's own special tokens, as training has them.

    Raises: ValueError naming the prompt (by its name, where it has one) that, with `room` more
    tokens, does not fit the model's window, or that is empty.
    """
    window = (
        None if is_seq2seq(model) else getattr(bare(model).config, "max_position_embeddings", None)
    )
    encoded = []
    for index, prompt in enumerate(prompts):
        ids = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
        name = (names[index] if names else "") or f"prompt {index}"
        if not ids or not prompt:
            raise ValueError(
                f"{name} is empty: expected a prompt before the answer; correct the row, or set"
                " task.skip_bad=true"
            )
        if window is not None and len(ids) + room > window:
            raise ValueError(
                f"{name} has {len(ids)} tokens and {room} more are wanted, but the model's window"
                f" is {window}: shorten the row, choose a protocol with fewer new tokens, or set"
                " task.skip_bad=true"
            )
        encoded.append(ids)
    return encoded


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


# --------------------------------------------------------------------------------------------------
# generating


@dataclass(frozen=True)
class Sampling:
    """How answers are found: greedily, by beams, or drawn `samples` times at a temperature after
    top-k and top-p."""

    max_new_tokens: int
    stop: Sequence[str] = ()
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    seed: int = 0


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    batch_size: int,
    processes: Sharing | None = None,
    told: Told | None = None,
    **how: Any,
) -> list[list[str]]:
    """`samples` answers to each prompt, without the prompt, the end token, and anything from the
    first stop string on.

    Prompts are read once, the longest first, padded on the left and masked; an answer that has
    ended leaves its batch. Temperature 0 is greedy, or beam search with `beams` > 1. Otherwise the
    token at step t is the inverse of the cumulated probabilities at a uniform number that belongs
    to (seed, prompt, sample, t): neither the batch nor the order nor the other rows change what is
    drawn. Several `processes` take whole batches in turn, and all get all answers.

    `how`: the fields of `Sampling`. `told(prompt, sample, text, of)` hears each answer as it ends,
    `of` how many there will be here.

    Raises: ValueError for settings that exclude each other, an empty prompt, or one that does not
    fit the window; FloatingPointError where a logit is NaN.
    """
    given = Sampling(**how)
    _check(given, batch_size)
    encoded = encode_prompts(model, tokenizer, prompts, given.max_new_tokens)
    seeds = _seeds(prompts, given.samples, given.seed)
    own = given.beams == 1 and can_decode(bare(model))
    parts = batched(encoded, given.samples, batch_size, joined=own)
    mine = parts_of(processes, model, len(parts))
    count = sum(map(len, (parts[number] for number in mine)))
    texts: dict[tuple[int, int], str] = {}

    def finished(prompt: int, sample: int, new: Sequence[int]) -> None:
        before: Sequence[int] = [] if is_seq2seq(model) else encoded[prompt]
        text = texts[prompt, sample] = cut(continuation(tokenizer, before, new), given.stop)
        if told is not None:
            told(prompt, sample, text, count)

    with evaluating(model):
        for number in mine:
            if own:
                _decoded(
                    model, tokenizer, encoded, parts[number], seeds, given, batch_size, finished
                )
            else:
                _transformers(model, tokenizer, encoded, parts[number], seeds, given, finished)
    if processes is not None and len(mine) < len(parts):
        for part in processes.gather(texts):
            texts |= part
    return [
        [texts[prompt, sample] for sample in range(given.samples)] for prompt in range(len(prompts))
    ]


Part = list[tuple[int, int]]  # (prompt, sample) of the answers that are grown together


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
    return [everything[start : start + size] for start in range(0, len(everything), size)]


def _first_equal(encoded: Sequence[Sequence[int]]) -> list[int]:
    """Of each prompt the number of the first that is equal to it."""
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(ids), number) for number, ids in enumerate(encoded)]


def _decoded(
    model: nn.Module,
    tokenizer: Any,
    encoded: Sequence[Sequence[int]],
    part: Part,
    seeds: Sequence[int],
    given: Sampling,
    batch_size: int,
    finished: Callable[[int, int, Sequence[int]], None],
) -> None:
    """A part by our own loop."""
    warp = Warp(given.temperature, given.top_k, given.top_p) if given.temperature > 0 else None
    stops = Stops(tokenizer, given.stop) if given.stop else None

    def choose(logits: Tensor, answers: Sequence[Answer]) -> Tensor:
        refuse_nan(logits)
        if warp is None:
            return logits.argmax(-1)
        uniform = [one.uniform[len(one.tokens) - one.done] for one in answers]  # type: ignore[index]
        return warp.draw(logits, torch.stack(uniform))

    rules = Rules(
        given.max_new_tokens,
        frozenset(end_tokens(model, tokenizer)),
        choose,
        stops.in_tokens if stops else None,
    )
    first = _first_equal(encoded)
    answers = [Answer(prompt, sample, first[prompt]) for prompt, sample in part]
    if warp is not None:
        for answer in answers:
            answer.uniform = uniform(
                seeds[answer.prompt * given.samples + answer.sample], given.max_new_tokens
            )
    decode(
        bare(model),
        encoded,
        answers,
        rules,
        pad=pad_token(tokenizer),
        batch_size=batch_size,
        finished=lambda answer: finished(answer.prompt, answer.sample, answer.tokens),
    )


def _check(given: Sampling, batch_size: int) -> None:
    counts = {
        "max_new_tokens": given.max_new_tokens,
        "batch_size": batch_size,
        "beams": given.beams,
        "samples": given.samples,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    temperature, top_p, top_k = given.temperature, given.top_p, given.top_k
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(
            f"temperature={temperature} top_p={top_p} top_k={top_k}: expected T at least 0, top_p"
            " in (0, 1], top_k at least 0"
        )
    if given.beams > 1 and temperature > 0:
        raise ValueError(
            f"beams={given.beams} with temperature={temperature}: expected beam search (temperature"
            " 0) or sampling (beams 1)"
        )
    if given.samples > 1 and temperature == 0:
        raise ValueError(
            f"samples={given.samples} at temperature 0 would all be the same answer: expected"
            " samples=1, or a temperature"
        )
    if any(not text for text in given.stop):
        raise ValueError("stop: an empty string ends every answer at once; expected text")


def _seeds(prompts: Sequence[str], samples: int, seed: int) -> list[int]:
    """One seed for each answer, of its prompt's text, so that a limit or another order draws the
    same; repeats differ."""
    seen: dict[str, int] = {}
    seeds = []
    for prompt in prompts:
        for _ in range(samples):
            nth = seen[prompt] = seen.get(prompt, -1) + 1
            digest = hashlib.sha256(f"{seed}\0{nth}\0{prompt}".encode()).digest()
            seeds.append(int.from_bytes(digest[:7], "big"))
    return seeds


def uniform(seed: int, steps: int) -> Tensor:
    """The numbers in [0, 1) that the tokens of one answer are drawn at (steps,)."""
    return torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _transformers(
    model: nn.Module,
    tokenizer: Any,
    encoded: Sequence[Sequence[int]],
    part: Part,
    seeds: Sequence[int],
    given: Sampling,
    finished: Callable[[int, int, Sequence[int]], None],
) -> None:
    """A part by `transformers.generate`: beam search, and models whose past is no cache of keys and
    values."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    inner = bare(model)
    ids, mask = pad_left(
        [encoded[prompt] for prompt, _ in part], pad_token(tokenizer), inner.device
    )
    before, ends = 1 if is_seq2seq(model) else ids.shape[1], end_tokens(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=given.max_new_tokens,
        num_beams=given.beams,
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
        eos_token_id=ends,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=getattr(inner.config, "decoder_start_token_id", None),
    )
    processors: list[Any] = [lambda _, scores: refuse_nan(scores)]
    if given.temperature > 0:
        numbers = [
            uniform(seeds[prompt * given.samples + sample], given.max_new_tokens)
            for prompt, sample in part
        ]
        processors.append(
            Draw(torch.stack(numbers), before, Warp(given.temperature, given.top_k, given.top_p))
        )
    made = inner.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList(
            [Stops(tokenizer, given.stop, before)] if given.stop else []
        ),
    )
    for (prompt, sample), row in zip(part, made, strict=True):
        new = row[before:].tolist()
        finished(
            prompt,
            sample,
            new[: next((place for place, token in enumerate(new) if token in ends), len(new))],
        )


def continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that the new tokens add to the prompt's.

    Decoded together with the prompt's last tokens: a decoder such as LLaMA's drops a space at the
    start of what it is given, which alone would be the first space of an answer, and a line of a
    program would lose its indentation.
    """
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = list(prompt[-CONTEXT:])
    told, whole = tokenizer.decode(before, **how), tokenizer.decode([*before, *new], **how)
    return whole[len(told) :] if whole.startswith(told) else tokenizer.decode(list(new), **how)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[
        : min((position for position in map(text.find, stop) if position >= 0), default=len(text))
    ]


class Stops:
    """A row is done as soon as its new text holds a stop string (looked for in the last few tokens
    of it)."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], before: int = 0) -> None:
        self._tokenizer, self._stop, self._before = tokenizer, tuple(stop), before
        # A token has at least one byte; a few more tokens for markers that decode to nothing.
        self._tail = max(len(text.encode()) for text in stop) + 8

    def in_tokens(self, tokens: Sequence[int]) -> bool:
        text = self._tokenizer.decode(list(tokens[-self._tail :]), skip_special_tokens=True)
        return any(word in text for word in self._stop)

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Tensor:
        done = [self.in_tokens(row[self._before :].tolist()) for row in input_ids]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def refuse_nan(scores: Tensor) -> Tensor:
    """The logits as they are. Raises: FloatingPointError where one is NaN: an arg max would still
    find a token."""
    if scores.isnan().any():
        raise FloatingPointError(
            "the model's logits are not finite, so it generates nothing: it diverged, lower lr or"
            " use precision=fp32"
        )
    return scores


class Warp:
    """The distribution that tokens are drawn from: divided by the temperature, then top-k, then
    top-p (the smallest set of the most probable tokens that reaches p)."""

    def __init__(self, temperature: float, top_k: int, top_p: float) -> None:
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        self._temperature = temperature
        self._warpers = ([TopKLogitsWarper(top_k)] if top_k else []) + (
            [TopPLogitsWarper(top_p)] if top_p < 1 else []
        )

    def draw(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """The first token (n,) whose cumulated probability exceeds its row's number u ~ U(0, 1)
        (n,)."""
        warped = at_least_float32(logits) / self._temperature
        for warper in self._warpers:
            warped = warper(None, warped)
        on_host = warped.double().softmax(-1).cpu()  # float64 is not to be had on every accelerator
        cumulated = on_host.cumsum(-1)
        drawn = torch.searchsorted(cumulated, numbers.unsqueeze(-1) * cumulated[:, -1:], right=True)
        return drawn.squeeze(-1).clamp_max(logits.shape[-1] - 1).to(logits.device)


class Draw:
    """Sampling as a choice that is made before the arg max: all logits but the drawn token's become
    −∞."""

    def __init__(self, numbers: Tensor, before: int, warp: Warp) -> None:
        self._numbers, self._before, self._warp = numbers, before, warp

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = self._warp.draw(scores, self._numbers[:, input_ids.shape[1] - self._before])
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn.unsqueeze(-1), 0.0)
