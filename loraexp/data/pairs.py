"""Pairs of a prompt and its response as tokens: read and tokenised once, row by row, and mapped
into memory."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loraexp.data import draw
from loraexp.data.layouts import BadRow, Blank, Row
from loraexp.data.rows import Records, refuse
from loraexp.data.tokens import (
    Arrays,
    cached,
    said_of_unknown,
    tokenizer_fingerprint,
    unknown_share,
)
from loraexp.machine.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYOUT = 3  # of the arrays in a cache entry
BATCH = 512  # pairs that the tokenizer sees at once
Kind = Literal["causal", "seq2seq"]
Long = Literal["leave_out", "cut", "cut_prompt"]


class Pair(NamedTuple):
    prompt: str
    response: str


@dataclass(frozen=True, eq=False)
class TextExamples:
    """Rows of tokens, prompt then response, row `i` at `starts[i]:ends[i]`, its first `prompts[i]`
    tokens the prompt."""

    tokens: NDArray[np.int32]  # (T,), of all rows that the file gave; mapped
    starts: NDArray[np.int64]  # (n,)
    ends: NDArray[np.int64]  # (n,)
    prompts: NDArray[np.int32]  # (n,)
    digests: NDArray[np.uint64]  # (n, 2): of the prompt, of the response
    source: str
    notes: tuple[str, ...] = ()
    skipped: int = 0  # malformed rows of the file
    left_out: int = 0  # rows of the file that are too long
    cut: int = 0  # rows of the file whose prompt or response is cut
    unknown: float = 0.0  # share of the file's tokens that the vocabulary does not know
    labels: NDArray[Any] | None = None  # (n,) classes, where the responses stand for some

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, prompt and response (n,)."""
        return self.ends - self.starts

    @property
    def fingerprint(self) -> str:
        """sha256 over the texts of the rows and their order."""
        return hashlib.sha256(self.digests.astype(">u8").tobytes()).hexdigest()

    def take(self, indices: NDArray[np.intp], *notes: str) -> TextExamples:
        """Some of the rows, over the same tokens: nothing is copied but a few numbers a row."""
        rows = {
            name: getattr(self, name)[indices] for name in ("starts", "ends", "prompts", "digests")
        }
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, **rows, labels=labels, notes=self.notes + notes)

    def limit(self, most: int | None) -> TextExamples:
        """The `most` rows with the lowest hash of their prompt, in the order of the file; smaller
        limits are parts of larger."""
        chosen = draw.limit(self.digests[:, 0], most)
        return (
            self
            if chosen is None
            else self.take(chosen, draw.note(len(chosen), len(self), "prompt"))
        )

    def split(self, rows: int) -> tuple[TextExamples, TextExamples]:
        """`(the rows with the lowest hash of their prompt, the rest)`; equal prompts stay on the
        same side."""
        first, rest = draw.divide(self.digests[:, 0], min(rows, len(self) - 1))
        return self.take(first), self.take(rest)


@dataclass(frozen=True)
class Reading:
    """How rows become examples; everything in it is part of the cache key, but for `pair`, which
    `name` and `version` tell.

    `pair(row)`: its prompt and response; None leaves the row out; BadRow says what is wrong with
    it. `below`: rows with as many tokens or more are left out before `rows` are taken, in the order
    of the file. A causal row longer than `max_length` is cut on the right, in the response, which
    then has no end token; an encoder-decoder has that length for the prompt and for the response. A
    prompt that leaves no room for a response, by `long`: "leave_out" leaves the row out; "cut" cuts
    the row there, so that nothing of its response is left (for a protocol that learns the prompt);
    "cut_prompt" cuts the prompt on the right, its last token (T5's end) kept. All are counted in
    the notes.
    """

    name: str
    version: int
    pair: Callable[[Row], Pair | None]
    kind: Kind
    max_length: int
    below: int | None = None
    rows: int | None = None
    skip_bad: bool = False
    long: Long = "leave_out"


def encode_pairs(
    records: Records,
    how: Reading,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_root: Path,
    progress: Progress | None = None,
) -> TextExamples:
    """The examples of a set of rows, from the cache where the same content was read the same way
    before.

    Prompt and response are tokenised apart, so that training sees the very prompt tokens that
    generation is given: the prompt with the tokenizer's own special tokens, the response without,
    and the end token after it.

    Raises: ValueError naming file, row and fix of a bad row, or a set without a usable row.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no end token: give model.tokenizer one with an"
            " eos_token"
        )
    folder = cache_root.expanduser() / "tokens" / _key(records, how, tokenizer)
    arrays = cached(folder, lambda: _Writer(how, tokenizer, progress).arrays(records))
    offsets, counts = arrays["offsets"], Counts(*arrays["counts"].tolist())
    notes = counts.notes(how)
    if len(offsets) == 1:
        raise ValueError(
            f"{records.name}: no row is left to train on"
            f" ({'; '.join(notes) or 'the file is empty'}); give other rows"
        )
    unknown = unknown_share(arrays["tokens"], tokenizer)
    empty = float((np.diff(offsets) - arrays["prompts"] == 1).mean())  # the end token alone
    return TextExamples(
        tokens=arrays["tokens"],
        starts=offsets[:-1],
        ends=offsets[1:],
        prompts=arrays["prompts"],
        digests=arrays["digests"],
        source=records.name,
        notes=(*notes, *said_of_unknown(unknown, empty, tokenizer, records.name)),
        skipped=counts.skipped + counts.blank,
        left_out=counts.long + counts.no_room,
        cut=counts.cut + counts.cut_prompts,
        unknown=unknown,
    )


def _key(records: Records, how: Reading, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokens of these rows, read this way, are found under."""
    recipe = [
        how.name,
        how.version,
        how.kind,
        how.max_length,
        how.below,
        how.rows,
        how.skip_bad,
        how.long,
    ]
    words = [tokenizer_fingerprint(tokenizer), tokenizer.eos_token_id]
    key = json.dumps(["pairs", LAYOUT, records.identity(), *words, recipe])
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass
class Counts:
    """Rows of the file that are not as they were written, by what became of them."""

    skipped: int = 0
    blank: int = 0
    left_out: int = 0
    long: int = 0
    cut: int = 0
    cut_prompts: int = 0
    no_room: int = 0

    def notes(self, how: Reading) -> list[str]:
        """A line for each kind that occurs."""
        said = {
            "malformed rows skipped": self.skipped,
            "rows without a prompt or an answer skipped": self.blank,
            f"rows are not of the kind that {how.name} trains on": self.left_out,
            f"rows of {how.below} tokens or more left out": self.long,
            (
                f"rows left out: their prompt leaves no room in {how.max_length} tokens"
            ): self.no_room,
            f"prompts cut at {how.max_length} tokens": self.cut_prompts,
            f"responses cut at {how.max_length} tokens": self.cut,
        }
        return [f"{count} {what}" for what, count in said.items() if count]


class _Writer:
    """Tokenises rows in batches into arrays that grow: a row is text only until its batch is
    done."""

    def __init__(
        self, how: Reading, tokenizer: PreTrainedTokenizerBase, progress: Progress | None
    ) -> None:
        self.how, self.tokenizer, self.progress = how, tokenizer, progress
        self.tokens, self.offsets, self.prompts, self.digests = (
            array("i"),
            array("q", [0]),
            array("i"),
            array("Q"),
        )
        self.counts = Counts()

    def arrays(self, records: Records) -> Arrays:
        pairs, seen = self._pairs(records), 0
        with threads():
            while not self.full and (batch := list(islice(pairs, BATCH))):
                self._add(batch)
                seen += len(batch)
                if self.progress is not None:
                    self.progress(seen, max(seen, self.how.rows or 0))
        return {
            "tokens": (
                np.frombuffer(self.tokens, dtype=np.int32) if self.tokens else np.empty(0, np.int32)
            ),
            "offsets": np.array(self.offsets, dtype=np.int64),
            "prompts": np.array(self.prompts, dtype=np.int32),
            "digests": np.array(self.digests, dtype=np.uint64).reshape(-1, 2),
            "counts": np.array(astuple(self.counts), dtype=np.int64),
        }

    @property
    def full(self) -> bool:
        return self.how.rows is not None and len(self.prompts) >= self.how.rows

    def _pairs(self, records: Records) -> Iterator[tuple[str, Pair]]:
        for place, row in records:
            try:
                if isinstance(row, BadRow):
                    raise row
                pair = self.how.pair(row)
            except BadRow as error:
                self._bad(place, error)
                continue
            if pair is None:
                self.counts.left_out += 1
            else:
                yield place, pair

    def _bad(self, place: str, error: BadRow) -> None:
        if isinstance(error, Blank):
            self.counts.blank += 1
            return
        if not self.how.skip_bad:
            raise refuse(place, error) from None
        self.counts.skipped += 1

    def _add(self, batch: list[tuple[str, Pair]]) -> None:
        prompts = self.tokenizer(
            [pair.prompt for _, pair in batch], truncation=False, verbose=False
        )["input_ids"]
        texts = [pair.response for _, pair in batch]
        responses = self.tokenizer(
            texts, truncation=False, add_special_tokens=False, verbose=False
        )["input_ids"]
        for (_, pair), prompt, response in zip(batch, prompts, responses, strict=True):
            if self.full:
                return
            response = [*response, self.tokenizer.eos_token_id]
            if self.how.below is not None and len(prompt) + len(response) >= self.how.below:
                self.counts.long += 1
                continue
            # a causal row holds both, a response has a token
            room = self.how.max_length - (self.how.kind == "causal")
            if len(prompt) > room:
                if self.how.long == "leave_out":
                    self.counts.no_room += 1
                    continue
                whole = self.how.long == "cut" and self.how.kind == "causal"
                prompt = (
                    prompt[: self.how.max_length] if whole else [*prompt[: room - 1], prompt[-1]]
                )
                self.counts.cut_prompts += 1
            self._keep(pair, prompt, response)

    def _keep(self, pair: Pair, prompt: list[int], response: list[int]) -> None:
        room = self.how.max_length - (len(prompt) if self.how.kind == "causal" else 0)
        self.counts.cut += 0 < room < len(response)
        self.tokens.extend(prompt)
        self.tokens.extend(response[:room])
        self.offsets.append(len(self.tokens))
        self.prompts.append(len(prompt))
        for text in pair:
            self.digests.append(draw.number(text))


@contextmanager
def threads() -> Iterator[None]:
    """Within: the tokenizer works on all cores; it is off elsewhere, because processes that fork
    would complain."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
