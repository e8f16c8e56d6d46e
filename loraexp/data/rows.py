"""Rows of text data sets as their files hold them, one at a time: JSON, CSV, TSV (plain or .gz),
Parquet, or the hub."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TextIO

from loraexp.data.sets import Split
from loraexp.machine import hub
from loraexp.machine.files import Damaged
from loraexp.machine.notation import encodable, parsed

Row = Mapping[str, Any]
Form = Literal["csv", "tsv", "json", "parquet"]
CHUNK = 1 << 20  # characters of a JSON array that are read at a time
REMEDY = "repair the row, or set task.skip_bad=true to skip and count such rows"


class BadRow(ValueError):
    """A row that cannot be used: the message says what is wrong with it, and whoever reads it adds
    the place."""


class Blank(BadRow):
    """A row without its text: public sets are known to have a few, so training skips and counts
    them."""


def refuse(place: str, error: Exception) -> ValueError:
    return ValueError(f"{place}: {error}; {REMEDY}")


class Records(Protocol):
    """A set of rows that can be read again and again."""

    @property
    def name(self) -> str:
        """For the record and messages."""
        ...

    def identity(self) -> str:
        """A digest of the content, without reading the rows."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Row | BadRow]]:
        """`(file and row number, the row)`; in place of a row that cannot be read, why."""
        ...


class Source(Records, Protocol):
    """Rows of columns, as files or the hub have them."""

    @property
    def short(self) -> str:
        """The name without its folder, for notes."""
        ...

    def lacks(self, names: Sequence[str], row: Row) -> Exception:
        """What to say where columns are not there."""
        ...

    def classes(self, column: str) -> Sequence[str] | None:
        """The names of a column that holds indices of classes, where the set itself tells them."""
        ...


@dataclass(frozen=True)
class Files:
    """The rows of local files, one file after another, in their order. Never holds more than one
    row and a chunk."""

    paths: tuple[Path, ...]
    columns: tuple[str, ...] = ()  # of a CSV or TSV file without a header line
    form: Form | None = None  # None: as the file's name ends

    @property
    def name(self) -> str:
        return ", ".join(map(str, self.paths))

    @property
    def short(self) -> str:
        return ", ".join(path.name for path in self.paths)

    def lacks(self, names: Sequence[str], row: Row) -> ValueError:
        delimited = (self.form or form_of(self.paths[0])) in ("csv", "tsv")
        heading = "its first line names" if delimited else "its first row has"
        there = ", ".join(map(repr, row))
        return ValueError(
            f"{self.name} has no column {', '.join(map(repr, names))}: {heading} {there}"
        )

    def classes(self, column: str) -> None:
        return None  # a file has none

    def identity(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, Row | BadRow]]:
        for path in self.paths:
            form = self.form or form_of(path)
            if form == "parquet":
                yield from _parquet(path)
                continue
            with _open(path, "\n" if form == "tsv" else "") as stream:
                if form == "json":
                    yield from _json(path, stream)
                else:
                    yield from _delimited(
                        path, _tsv(stream) if form == "tsv" else _csv(stream), self.columns
                    )


class Hub(Split):
    """The rows of one split of a hub data set, mapped from its cache on disk."""

    @property
    def short(self) -> str:
        return self.name

    def lacks(self, names: Sequence[str], row: Row) -> hub.SourceError:
        said = f"no column {', '.join(names)}; its columns are {', '.join(row)}"
        return hub.SourceError(f"{self.name}: {said}: correct task.text or task.source")

    def identity(self) -> str:
        content = self.table._fingerprint if isinstance(self.located, Path) else ""
        return hashlib.sha256(f"{self.name} {content}".encode()).hexdigest()

    def __iter__(self) -> Iterator[tuple[str, Row | BadRow]]:
        name, number = self.name, 0
        for batch in self.table.iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield f"{name} row {number}", dict(zip(batch, values, strict=True))


def find(
    directory: str | Path, names: Sequence[str], *, key: str, what: str, other: str | None = None
) -> Path:
    """The first of `names` (paths or patterns inside `directory`) that is there; `other`: what else
    one can do.

    Raises: SourceError where none is there, or where a pattern fits several files: which one is
    meant is not guessed.
    """
    folder = Path(directory).expanduser()
    for name in names:
        found = sorted(path for path in folder.glob(name) if path.is_file())
        if len(found) > 1:
            several = ", ".join(path.name for path in found[:5])
            raise hub.SourceError(
                f"{key}={directory}: {several} are all there; give a folder with one of them, or"
                f" rename it to {names[0]}"
            )
        if found:
            return found[0]
    raise hub.SourceError(
        f"{key}={directory}: none of {', '.join(names)} is there; give the folder of {what}, or"
        f" {other or f'set {key}=null for the hub'}"
    )


def column(row: Row, name: str) -> Any:
    """A column of a row; BadRow names it and those that are there."""
    if name not in row:
        raise BadRow(f"no column {name!r}; its columns are {', '.join(map(str, row))}")
    return row[name]


def text(row: Row, name: str, *, empty: bool = False) -> str:
    """A column that must hold text, not blank unless `empty`; null is blank."""
    value = column(row, name)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise BadRow(f"column {name!r} holds {type(value).__name__}, expected text")
    if not empty and not value.strip():
        raise Blank(f"column {name!r} is empty, expected text")
    return value


def choice(row: Row, name: str, choices: Iterable[str]) -> str:
    """A column that must hold one of `choices`."""
    value, expected = str(column(row, name)), list(choices)
    if value not in expected:
        raise BadRow(f"column {name!r} holds {value!r}, expected one of {', '.join(expected)}")
    return value


class Loaded(NamedTuple):
    rows: list[Row]
    places: list[str]  # file and row of each
    skipped: int


def load(records: Records, read: Callable[[Row], Row], *, skip_bad: bool) -> Loaded:
    """Every row as `read` puts it, for the small sets that are evaluated on, and how many bad ones
    were skipped.

    Raises: ValueError naming file, row and fix of the first bad row, unless `skip_bad`.
    """
    loaded, skipped = Loaded([], [], 0), 0
    for place, row in records:
        try:
            if isinstance(row, BadRow):
                raise row
            loaded.rows.append(read(row))
            loaded.places.append(place)
        except BadRow as error:
            if not skip_bad:
                raise refuse(place, error) from None
            skipped += 1
    return loaded._replace(skipped=skipped)


def form_of(path: Path) -> Form:
    """The form of a file by the end of its name; JSON, an array or lines, where it tells
    nothing."""
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    return {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}.get(suffix, "json")  # type: ignore[return-value]


def _open(path: Path, newline: str = "") -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(
            gzip.open(path), encoding="utf-8-sig", errors="replace", newline=newline
        )
    return path.open(encoding="utf-8-sig", errors="replace", newline=newline)


def _json(path: Path, stream: TextIO) -> Iterator[tuple[str, Row | BadRow]]:
    start = stream.read(CHUNK)
    if start.lstrip()[:1] == "[":
        yield from _array(path, stream, start)
    else:
        yield from _lines(path, stream, start)


def _delimited(
    path: Path, lines: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[tuple[str, Row | BadRow]]:
    header = list(columns) or next(lines, (0, []))[1]
    for number, fields in lines:
        place = f"{path} line {number}"
        if len(fields) != len(header):
            yield (
                place,
                BadRow(
                    f"{len(fields)} columns; expected {len(header)} columns: {', '.join(header)}"
                ),
            )
        else:
            yield place, dict(zip(header, fields, strict=True))


def _csv(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(stream)
    for fields in reader:
        if fields:  # not an empty line
            yield reader.line_num, fields


def _tsv(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    # No quoting: fields hold bare double quotes. Only "\n" ends a row: sentences hold U+2028 and
    # other separators.
    for number, line in enumerate(stream, start=1):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def _parquet(path: Path) -> Iterator[tuple[str, Row | BadRow]]:
    from pyarrow import ArrowException, parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path} row {number}", row
    except ArrowException as error:
        raise ValueError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _lines(path: Path, stream: TextIO, start: str) -> Iterator[tuple[str, Row | BadRow]]:
    # Only "\n" ends a row: U+2028 and its kind are inside JSON strings.
    rest, number = start, 0
    while True:
        *whole, rest = rest.split("\n")
        more = stream.read(CHUNK)
        for line in whole if more or not rest else [*whole, rest]:
            number += 1
            if line.strip():
                yield f"{path} line {number}", _object(line)
        if not more:
            return
        rest += more


def _object(line: str) -> Row | BadRow:
    try:
        value = parsed(line, constants=True)
    except Damaged as error:
        return BadRow(f"{str(error).removeprefix('line 1: ')}, expected one object a line")
    return _row(value)


def _row(value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(f"holds {type(value).__name__}, expected a JSON object")
    return value


def _array(path: Path, stream: TextIO, start: str) -> Iterator[tuple[str, Row | BadRow]]:
    """The objects of a JSON array, decoded one after another from a window of the file.

    Raises: ValueError where the text stops being JSON: nothing after that place can be told apart,
    so it is never skipped.
    """
    decoder, window, at, number = json.JSONDecoder(), start, start.index("[") + 1, 0
    while True:
        at = _skip(window, at)
        if at >= len(window) - 1 and (more := stream.read(CHUNK)):
            window, at = window[at:] + more, 0
            continue
        if window[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(window, at)
        except json.JSONDecodeError as error:
            more = stream.read(max(CHUNK, len(window) - at))  # the row goes on behind the window
            if not more:
                raise ValueError(
                    f"{path} row {number + 1}: not JSON ({error.msg}); repair the file, which"
                    " cannot be read on"
                ) from None
            window, at = window[at:] + more, 0
            continue
        except (ValueError, RecursionError) as error:
            why = "brackets nested too deeply"
            if not isinstance(error, RecursionError):
                why = "a number of thousands of digits"
            raise ValueError(f"{path} row {number + 1}: {why}; repair the file") from None
        number += 1
        whole = encodable(value)
        yield (
            f"{path} row {number}",
            _row(value) if whole else BadRow("has half of a surrogate pair, no character"),
        )


def _skip(window: str, at: int) -> int:
    while at < len(window) and window[at] in " \t\r\n,":
        at += 1
    return at
