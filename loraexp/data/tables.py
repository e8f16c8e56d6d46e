"""Labelled rows as their files hold them: reading, fingerprints, and choices that do not depend on any random state."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loraexp.data import draw
from loraexp.data.sets import Split

Problem = Literal["single_label_classification", "regression"]
Columns = list[str]
Parse = Callable[[str], float]


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts (one string each, or two for a pair) and labels (class index or score), in the order of the file."""

    texts: list[tuple[str, ...]]
    labels: NDArray[np.float64]  # (n,)
    digests: NDArray[np.uint64]  # (n, 2), a hash of each row's text
    source: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: list[tuple[str, ...]], labels: Iterable[float], source: str, *notes: str) -> Rows:
        joined = b"".join(hashlib.blake2b("\x1f".join(text).encode(), digest_size=16).digest() for text in texts)
        digests = np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)
        return cls(texts, np.fromiter(labels, dtype=np.float64, count=len(texts)), digests, source, notes)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def draw(self) -> NDArray[np.uint64]:
        """A number for each row that orders the rows at random, the same in every run, version and machine (n,).

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
        return Rows(texts, self.labels[indices], self.digests[indices], self.source, self.notes + notes)

    def limit(self, most: int | None) -> Rows:
        """The `most` rows with the lowest draw, in the order of the file; smaller limits are parts of larger ones."""
        chosen = draw.limit(self.draw, most)
        return self if chosen is None else self.take(chosen, draw.note(len(chosen), len(self), "text"))

    def split(self, rows: int) -> tuple[Rows, Rows]:
        """`(the rows with the lowest draw, the rest)`: equal texts stay on the same side."""
        first, rest = draw.divide(self.draw, rows)
        return self.take(first), self.take(rest)

    def without_duplicates(self) -> Rows:
        """The first row of every distinct text."""
        first: dict[tuple[str, ...], int] = {}
        relabelled = 0
        for index, text in enumerate(self.texts):
            relabelled += self.labels[first.setdefault(text, index)] != self.labels[index]
        dropped = len(self) - len(first)
        if not dropped:
            return self
        note = f"{dropped} duplicate texts of {len(self)} rows dropped, {relabelled} with another label than the first"
        return self.take(np.array(list(first.values()), dtype=np.intp), note)

    def noted(self, *notes: str) -> Rows:
        return replace(self, notes=self.notes + notes)


def label_parser(problem: Problem, names: Sequence[str]) -> Parse:
    """From a label as files write it (a name or its index; a number for regression) to a number."""
    if problem == "regression":
        return _score
    index = {name: float(i) for i, name in enumerate(names)} | {str(i): float(i) for i in range(len(names))}

    def parse(value: str) -> float:
        if value not in index:
            raise ValueError(f"label {value!r}, expected one of {', '.join(names)} or 0 to {len(names) - 1}")
        return index[value]

    return parse


def _score(value: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"score {value!r}, expected a number")
    return score


def read_table(
    path: Path,
    *,
    form: Literal["tsv", "csv"],
    columns: Sequence[str] | None = None,
    text: Sequence[str],
    label: str,
    parse: Parse,
    skip_bad: bool,
    without: frozenset[tuple[str, ...]] = frozenset(),
    identity: Sequence[str] = (),
) -> Rows:
    """Read a labelled table. `tsv` knows no quoting (GLUE's fields hold bare double quotes), `csv` does.

    `columns` names the columns of a file without a header line. Rows whose `identity` columns are in `without` are left
    out. Bytes that are not UTF-8 become U+FFFD and are counted in the notes; a byte-order mark is taken off.

    Raises: ValueError naming file, line, what was found and the columns expected; `skip_bad` counts such rows instead.
    """
    content = path.read_bytes().decode("utf-8-sig", errors="replace")
    records = _tsv(content) if form == "tsv" else _csv(content)
    header = list(columns) if columns is not None else next(records, (0, []))[1]
    texts_at, label_at = [_index(path, header, name) for name in text], _index(path, header, label)
    identity_at = [_index(path, header, name) for name in identity]
    texts, labels, skipped = [], [], 0
    for line, fields in records:
        try:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} columns")
            value = parse(fields[label_at])
        except ValueError as error:
            if not skip_bad:
                expected = f"expected {len(header)} columns: {', '.join(header)}"
                remedy = "repair the row, or set task.skip_bad=true to skip and count such rows"
                raise ValueError(f"{path} line {line}: {error}; {expected}; {remedy}") from None
            skipped += 1
            continue
        if not (without and tuple(fields[i] for i in identity_at) in without):
            texts.append(tuple(fields[i] for i in texts_at))
            labels.append(value)
    unreadable = sum("\ufffd" in part for row in texts for part in row) if "\ufffd" in content else 0
    notes = [f"{path.name}: {skipped} malformed rows skipped"] * (skipped > 0)
    notes += [f"{path.name}: {unreadable} texts hold U+FFFD, the mark of bytes that are not UTF-8"] * (unreadable > 0)
    return Rows.of(texts, labels, str(path), *notes)


def _tsv(content: str) -> Iterator[tuple[int, Columns]]:
    # Only "\n" ends a row: str.splitlines would also cut at U+2028 and other separators that sentences hold.
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r").split("\t")


def _csv(content: str) -> Iterator[tuple[int, Columns]]:
    reader = csv.reader(io.StringIO(content, newline=""))
    for fields in reader:
        yield reader.line_num, fields


def _index(path: Path, header: Columns, name: str) -> int:
    if name not in header:
        raise ValueError(f"{path} has no column {name!r}: its first line names {', '.join(map(repr, header))}")
    return header.index(name)


def read_hub(split: Split, *, text: Sequence[str], label: str) -> Rows:
    """The labelled rows of one split of a hub data set, or of a local folder of such a set.

    Raises: SourceError with one line: what was looked for, the client's reason, and what to type.
    """
    *texts, labels = split.columns(*text, label)
    return Rows.of(list(zip(*texts, strict=True)), labels, split.name)
