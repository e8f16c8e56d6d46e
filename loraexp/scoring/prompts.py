"""What a model is asked, in its tokens: prompts within its window, and batches of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from loraexp.machine.device import on_device
from loraexp.machine.reach import positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tokenizer(Protocol):
    """What is asked of a tokenizer here."""

    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> Mapping[str, list[int]]: ...

    def decode(
        self,
        token_ids: list[int],
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool = False,
    ) -> str: ...

    def save_pretrained(self, folder: Path, /) -> object: ...


class Asked(Protocol):
    """What is known of a row that is answered: lm-eval's request, or as much of one."""

    doc: dict[str, Any]
    doc_id: int | None


# --------------------------------------------------------------------------------------------------
# the model


def bare(model: nn.Module) -> PreTrainedModel:
    """The model inside a wrapper of `torch.nn.parallel`."""
    return cast("PreTrainedModel", getattr(model, "module", model))


def is_seq2seq(model: nn.Module) -> bool:
    return bool(bare(model).config.is_encoder_decoder)


# --------------------------------------------------------------------------------------------------
# tokens


def pad_token(tokenizer: Tokenizer) -> int:
    """What fills up a shorter prompt; it is masked, so its value changes nothing. Raises:
    ValueError for none."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError(
        f"{type(tokenizer).__name__} has neither a padding token nor an end token; set"
        " model.pad_token"
    )


def end_tokens(model: nn.Module, tokenizer: Tokenizer) -> list[int]:
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


def padded(model: nn.Module, rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one batch on the model's device, and its mask.

    Those of a causal model end together, where their answers begin. What an encoder reads begins
    together: BART and Pegasus count their positions from the first column, whatever is masked.
    """
    width, left = max(map(len, rows)), not is_seq2seq(model)

    def filled(row: Sequence[int], real: Sequence[int], fill: int) -> list[int]:
        rest = [fill] * (width - len(row))
        return [*rest, *real] if left else [*real, *rest]

    ids = torch.tensor([filled(row, row, value) for row in rows])
    mask = torch.tensor([filled(row, [1] * len(row), 0) for row in rows])
    device = bare(model).device
    return on_device(ids, device), on_device(mask, device)


# --------------------------------------------------------------------------------------------------
# the window


def tokens_beyond(tokenizer: Tokenizer, prompt: str, most: int) -> int:
    """The tokens of a prompt that has more than `most` of them, else 0; what cannot have as many is
    not tokenised.

    A token of plain text holds at least a character, and special tokens come to a few.
    """
    if prompt.isascii() and len(prompt) + 8 <= most:
        return 0
    count = len(tokenizer(prompt, verbose=False)["input_ids"])
    return count if count > most else 0


def shortened(tokenizer: Tokenizer, parts: Sequence[str], most: int) -> str:
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
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    room: int,
    names: Sequence[str] = (),
) -> list[list[int]]:
    """Token ids with the tokenizer's own special tokens, as training has them.

    Raises: ValueError naming the prompt (by its name, where it has one) that does not fit the
    model's window, with `room` more tokens where one window holds both, or that is empty; and for
    more room than a decoder has positions for.
    """
    own, apart = bare(model).config, is_seq2seq(model)
    window, behind = positions(own), 0 if apart else room
    check_room(room, positions(own, "decoder") if apart else None)
    encoded = []
    for index, prompt in enumerate(prompts):
        ids = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
        name = (names[index] if names else "") or f"prompt {index}"
        if not ids or not prompt:
            raise ValueError(
                f"{name} is empty: expected a prompt before the answer; correct the row, or set"
                " task.skip_bad=true"
            )
        if window is not None and len(ids) + behind > window:
            wanted = f" and {behind} more are wanted" if behind else ""
            remedy = ", choose a protocol with fewer new tokens" if behind else ""
            raise ValueError(
                f"{name} has {len(ids)} tokens{wanted}, but the model's window is {window}: shorten"
                f" the row{remedy}, or set task.skip_bad=true"
            )
        encoded.append(ids)
    return encoded


def check_room(room: int, window: int | None) -> None:
    """Raises: ValueError where an answer may have more tokens than a decoder has positions for."""
    if window is not None and room > window:
        raise ValueError(
            f"answers of up to {room} tokens are wanted, but the model's decoder has {window}"
            " positions: choose a protocol with fewer new tokens, or a model with more positions"
        )
