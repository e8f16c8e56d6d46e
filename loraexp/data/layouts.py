"""The layouts that files of rows have, read one row at a time: JSON, CSV, TSV (plain or .gz),
Parquet."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from loraexp.machine.files import Damaged
from loraexp.machine.notation import csv_lines, encodable, parsed
from loraexp.machine.words import first_line

Row = Mapping[str, Any]
Form = Literal["csv", "tsv", "json", "parquet"]
CHUNK = 1 << 20  # characters of a JSON array that are read at a time


class BadRow(ValueError):
    """A row that cannot be used: the message says what is wrong with it, and whoever reads it adds
    the place."""


class Blank(BadRow):
    """A row without its text: public sets are known to have a few, so training skips and counts
    them."""


def form_of(path: Path) -> Form:
    """The form of a file by the end of its name; JSON, an array or lines, where it tells
    nothing."""
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    forms: dict[str, Form] = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
    return forms.get(suffix, "json")


def read(path: Path, form: Form, columns: Sequence[str]) -> Iterator[tuple[str, Row | BadRow]]:
    """`(file and row number, the row)` of a file; `columns` of one without a header line."""
    if form == "parquet":
        yield from _parquet(path)
        return
    with _open(path, "\n" if form == "tsv" else "") as stream:
        if form == "json":
            yield from _json(path, stream)
        else:
            yield from _delimited(
                path, _tsv(stream) if form == "tsv" else csv_lines(stream), columns
            )


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
        raise ValueError(f"{path}: not a Parquet file ({first_line(error)})") from None


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


def _row(value: object) -> Row | BadRow:
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
