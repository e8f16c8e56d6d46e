"""Labelled rows as their files hold them: reading, fingerprints, and choices that do not depend on
any random state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loraexp.data import draw
from loraexp.data.layouts import BadRow
from loraexp.data.rows import Source, column, refuse, text

Problem = Literal["single_label_classification", "regression"]
Parse = Callable[[Any], float]


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts (one string each, or two for a pair) and labels (class index or score), in the order of
    the file."""

    texts: list[tuple[str, ...]]
    labels: NDArray[np.float64]  # (n,)
    digests: NDArray[np.uint64]  # (n, 2), a hash of each row's text
    source: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, texts: list[tuple[str, ...]], labels: Iterable[float], source: str, *notes: str
    ) -> Rows:
        joined = b"".join(
            hashlib.blake2b("\x1f".join(text).encode(), digest_size=16).digest() for text in texts
        )
        digests = np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)
        return cls(
            texts, np.fromiter(labels, dtype=np.float64, count=len(texts)), digests, source, notes
        )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def draw(self) -> NDArray[np.uint64]:
        """A number for each row that orders the rows at random, the same in every run, version and
        machine (n,).

        It is a hash of the text alone: neither the run's seed nor a library's generator moves it.
        """
        return self.digests[:, 0]

    def fingerprint(self) -> str:
        """sha256 over texts, labels and their order."""
        content = hashlib.sha256(self.digests.astype(">u8").tobytes())
        content.update(self.labels.astype("<f8").tobytes())
        content.update(str(len(self.texts[0]) if self.texts else 0).encode())
        return content.hexdigest()

    def take(self, indices: NDArray[np.intp], *notes: str) -> Rows:
        texts = [self.texts[i] for i in indices.tolist()]
        return Rows(
            texts, self.labels[indices], self.digests[indices], self.source, self.notes + notes
        )

    def limit(self, most: int | None) -> Rows:
        """The `most` rows with the lowest draw, in the order of the file; smaller limits are parts
        of larger ones."""
        chosen = draw.limit(self.draw, most)
        return (
            self if chosen is None else self.take(chosen, draw.note(len(chosen), len(self), "text"))
        )

    def split(self, rows: int) -> tuple[Rows, Rows]:
        """`(the rows with the lowest draw, the rest)`: equal texts stay on the same side."""
        first, rest = draw.divide(self.draw, rows)
        return self.take(first), self.take(rest)

    def without_duplicates(self) -> Rows:
        """The first row of every distinct text."""
        first: dict[tuple[str, ...], int] = {}
        relabelled = 0
        for index, words in enumerate(self.texts):
            relabelled += self.labels[first.setdefault(words, index)] != self.labels[index]
        dropped = len(self) - len(first)
        if not dropped:
            return self
        note = (
            f"{dropped} duplicate texts of {len(self)} rows dropped, {relabelled} with another"
            " label than the first"
        )
        return self.take(np.array(list(first.values()), dtype=np.intp), note)

    def noted(self, *notes: str) -> Rows:
        return replace(self, notes=self.notes + notes)


def label_parser(problem: Problem, names: Sequence[str], also: Mapping[str, str] = {}) -> Parse:  # noqa: B006
    """From a label as the data has it (a name, or its index; a number for regression) to a number.

    Names win: where one of them looks like an index, an index is none. `also`: other words of the
    data for some names.
    """
    if problem == "regression":
        return _score
    numeric = any(name.lstrip("+-").isdigit() for name in names)
    index = {} if numeric else {str(i): float(i) for i in range(len(names))}
    index |= {name: float(i) for i, name in enumerate(names)}
    index |= {
        word: index[name] for word, name in also.items() if name in index and word not in index
    }

    def parse(value: object) -> float:
        word = plain(value)
        if word not in index:
            indices = "" if numeric else f" or 0 to {len(names) - 1}"
            raise ValueError(f"label {word!r}, expected one of {', '.join(names)}{indices}")
        return index[word]

    return parse


def plain(label: object) -> str:
    """A label as text: 3 and 3.0 are one, and true is true."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def by_name(parse: Parse, names: Sequence[str] | None) -> Parse:
    """The same for a column that holds indices into `names` of its own: they are read by name, in
    whatever order.

    Raises (when a row is read): ValueError for an index that is none of them, such as −1 of rows
    without a label.
    """
    if names is None:
        return parse

    def parsed(value: object) -> float:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < len(names):
                raise ValueError(
                    f"label {value}, expected 0 to {len(names) - 1} for {', '.join(names)}"
                )
            return parse(names[value])
        return parse(value)

    return parsed


def _score(value: Any) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"score {value!r}, expected a number")
    return score


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold the texts and the label, and how a label is read.

    Rows whose `identity` columns are in `without` are left out.
    """

    text: Sequence[str]
    label: str
    parse: Parse
    skip_bad: bool = False
    identity: Sequence[str] = ()
    without: frozenset[tuple[str, ...]] = frozenset()

    @property
    def needed(self) -> tuple[str, ...]:
        return (*self.text, self.label, *self.identity)


def labelled(records: Source, columns: Columns) -> Rows:
    """The labelled rows of files or of the hub.

    Bytes that are not UTF-8 are U+FFFD and are counted in the notes.

    Raises: ValueError naming file, line and what was found; `skip_bad` counts such rows instead.
    """
    parse = by_name(columns.parse, records.classes(columns.label))
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    skipped, first = 0, True
    for place, row in records:
        try:
            if isinstance(row, BadRow):
                raise row
            if first:
                first = False
                if missing := [name for name in columns.needed if name not in row]:
                    raise records.lacks(missing, row)
            if (
                columns.without
                and tuple(str(column(row, name)) for name in columns.identity) in columns.without
            ):
                continue
            read = tuple(text(row, name, empty=True) for name in columns.text)
            label = _label(parse, column(row, columns.label))
        except BadRow as error:
            if not columns.skip_bad:
                raise refuse(place, error) from None
            skipped += 1
            continue
        texts.append(read)
        labels.append(label)
    unreadable = sum("\ufffd" in part for row in texts for part in row)
    notes = [f"{records.short}: {skipped} malformed rows skipped"] * (skipped > 0)
    mark = f"{records.short}: {unreadable} texts hold U+FFFD, the mark of bytes that are not UTF-8"
    return Rows.of(texts, labels, records.name, *notes, *([mark] if unreadable else []))


def _label(parse: Parse, value: object) -> float:
    try:
        return parse(value)
    except ValueError as error:
        raise BadRow(str(error)) from None
