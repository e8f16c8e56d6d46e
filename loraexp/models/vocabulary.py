"""The tokenizer of a model, and what it must know of the model and the model of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loraexp.machine import repository
from loraexp.machine.hub import SourceError, resolve
from loraexp.machine.measure import ran_out
from loraexp.machine.reach import Side, positions
from loraexp.models import tokenizer as tokenizers
from loraexp.models.place import hub, loading, unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from loraexp.config.settings import ModelSettings
    from loraexp.models.base import Base


def load_tokenizer(base: Base) -> Tokenizer:
    """The fast tokenizer of the model; a pad token is required and never invented silently.

    `model.pad_token` names a token of the tokenizer that pads, for the tokenizers that come without
    one (LLaMA, Mistral). Which one does not matter to a result: padding is masked by position
    everywhere, never by id. The `model_max_length` of a causal model's tokenizer is at most the
    model's window, and it ends no text by itself.
    """
    settings = base.settings
    tokenizer: Tokenizer
    if settings.tokenizer is not None and settings.tokenizer.startswith(tokenizers.TRAINED):
        tokenizer = tokenizers.trained(settings.tokenizer, settings.kind)
    else:
        tokenizer = padding(settings, read_tokenizer(base))
    if settings.kind == "causal":
        tokenizer = tokenizers.without_end(tokenizer)
        window = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        tokenizer.model_max_length = min(
            tokenizer.model_max_length, window or tokenizer.model_max_length
        )
    return tokenizer


def padding(settings: ModelSettings, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the pad token that the settings name; SourceError where there is none."""
    if settings.pad_token is not None:
        if settings.pad_token not in tokenizer.get_vocab():
            raise SourceError(
                f"model.pad_token={settings.pad_token}: not a token of {settings.name}'s tokenizer;"
                f" its eos is {tokenizer.eos_token}"
            )
        tokenizer.pad_token = settings.pad_token
    if tokenizer.pad_token_id is None:
        remedy = (
            "name one of its tokens, for example its end token:"
            f" 'model.pad_token=\"{tokenizer.eos_token}\"'"
        )
        raise SourceError(f"model={settings.name}: its tokenizer has no pad token; {remedy}")
    return tokenizer


def read_tokenizer(base: Base) -> Tokenizer:
    from transformers import AutoTokenizer

    settings, place = base.settings, None
    if settings.tokenizer is not None:
        place = resolve(settings.tokenizer, key="model.tokenizer")
    if isinstance(place, str):
        folder = repository.definition(hub(place, None, "model.tokenizer"))
    else:
        folder = place or base.folder
    where = place or base.place
    with loading():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # tokenizers raises no other type where its file is garbage
            if ran_out(error):
                raise
            at = folder if isinstance(where, Path) else where
            raise unreachable(settings, at, "tokenizer", error) from error
    check_words(settings, where, tokenizer)
    return tokenizer


SENTENCE = "A quick brown fox jumps over 13 lazy dogs, and 27 others."


def check_words(settings: ModelSettings, place: Path | str, tokenizer: Tokenizer) -> None:
    """The tokenizer knows something, or SourceError: of a folder without its files transformers
    makes an empty one, silently."""
    ids = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens([i for i in ids if i not in tokenizer.all_special_ids])
    # T5's empty one has the space between words
    if not any(letter.isalnum() for piece in pieces for letter in piece):
        raise SourceError(
            f"model={settings.name}: the tokenizer in {place} has {len(tokenizer.get_vocab())}"
            " tokens and knows no word: its files (tokenizer.json, vocab.txt, ...) are not there;"
            " add them, or set model.tokenizer to the one that the model was trained with"
        )


def check_vocabulary(base: Base, tokenizer: Tokenizer) -> None:
    """Every token that the tokenizer can make has a row in the model's embedding, or
    SourceError."""
    rows = base.config.get_text_config().vocab_size
    most = max(tokenizer.get_vocab().values(), default=-1)
    if most >= rows:
        raise SourceError(
            f"model={base.settings.name}: its embedding has {rows} rows and its tokenizer makes ids"
            f" up to {most}; expected ids below {rows}: set model.tokenizer to the tokenizer that"
            " the model was trained with"
        )


def check_reach(base: Base, longest: int, types: int, side: Side = "encoder") -> None:
    """Rows of `longest` tokens and of token types up to `types` are what an encoder, or a side of
    an encoder-decoder, reads; or SourceError."""
    own, name = base.config, base.settings.name
    window = positions(own, side)
    if window is not None and longest > window:
        raise SourceError(
            f"task.max_length: a row has {longest} tokens, and model={name} reads"
            f" {window}; set task.max_length={window} or less"
        )
    rows = getattr(own, "type_vocab_size", 0)
    if rows and types >= rows:
        raise SourceError(
            f"model={name}: its tokenizer gives the second text token type {types}, and"
            f" the model has {rows} (0 to {rows - 1}): set model.tokenizer to the one that the"
            " model was trained with"
        )
