"""Rows of text data sets, one at a time: from files in any layout, or from the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loraexp.data.layouts import BadRow, Blank, Form, Row, form_of, read
from loraexp.data.sets import Split
from loraexp.machine import hub
from loraexp.machine.files import sha256

REMEDY = "repair the row, or set task.skip_bad=true to skip and count such rows"


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
            digest.update(bytes.fromhex(sha256(path)))
        return digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, Row | BadRow]]:
        for path in self.paths:
            yield from read(path, self.form or form_of(path), self.columns)


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


def load(records: Records, reader: Callable[[Row], Row], *, skip_bad: bool) -> Loaded:
    """Every row as `reader` puts it, for the small sets that are evaluated on; how many bad ones
    were skipped.

    Raises: ValueError naming file, row and fix of the first bad row, unless `skip_bad`.
    """
    loaded, skipped = Loaded([], [], 0), 0
    for place, row in records:
        try:
            if isinstance(row, BadRow):
                raise row
            loaded.rows.append(reader(row))
            loaded.places.append(place)
        except BadRow as error:
            if not skip_bad:
                raise refuse(place, error) from None
            skipped += 1
    return loaded._replace(skipped=skipped)
