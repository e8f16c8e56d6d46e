"""The test sets that generation is scored on, a file of `conf/benchmark` each: where their rows
are, and how a row is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from loraexp import config
from loraexp.data import draw
from loraexp.data.layouts import BadRow, Row
from loraexp.data.rows import Files, Hub, column, find, load, text
from loraexp.data.tables import plain
from loraexp.machine.hub import SourceError

HERE = "task.eval_data_dir"  # the key of a folder for the benchmarks alone
OTHER = {  # what else to do where a folder has no file of a benchmark
    "task.data_dir": (
        f"set {HERE}=DIR to the folder that has it, or {HERE}=hub; the training rows stay where"
        " they are"
    ),
    HERE: (f"set {HERE}=hub to read it there, or {HERE}=null for the folder of the training rows"),
}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A file of `conf/benchmark`: the set's rows in local files or on the hub, and how one is
    read."""

    name: str
    files: list[str]  # paths inside the folder of the data, tried in this order
    source: str | None = None  # on the hub
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    # what protocols read: the column that it is in
    columns: dict[str, str] = field(default_factory=dict)
    target: str | None = None  # or a function, row by row
    reader: str | None = None  # or a function for the whole set

    @property
    def row(self) -> Callable[[Row], Row]:
        """Checks a row and puts it into the columns that protocols read."""
        if self.target is not None:
            function: Callable[[Row], Row] = _function(self.target, self.name)
            return function
        return lambda row: {name: _word(row, of) for name, of in self.columns.items()}

    def hub(self, split: str | None = None) -> Hub:
        """The rows of the hub's copy."""
        if self.source is None:
            raise SourceError(f"benchmark {self.name}: it has no copy on the hub; set {HERE}=DIR")
        return Hub(self.source, self.config, split or self.split, self.revision, HERE)


def _word(row: Row, name: str) -> str:
    value = column(row, name)
    return text(row, name) if value is None or isinstance(value, str) else plain(value)


def _function(path: str, name: str) -> Any:
    return config.target({"_target_": path}, f"benchmark {name}")


def names() -> list[str]:
    """Every benchmark there is, ours and the user's."""
    return config.names("benchmark")


def named(name: str) -> Benchmark:
    """The benchmark of a file. Raises: ValueError for a name or a key that is none."""
    if name not in names():
        raise ValueError(f"task.benchmarks=['{name}']: expected some of {', '.join(names())}")
    keys = config.read_yaml("benchmark", name)
    keys.pop("facts", None)
    if "_target_" in keys:
        keys["target"] = keys.pop("_target_")
    known = [f.name for f in fields(Benchmark)]
    unknown = sorted(set(keys) - set(known))
    ways = [way for way in ("columns", "target", "reader") if keys.get(way)]
    if unknown or len(ways) != 1 or "files" not in keys:
        said = f"has no key {unknown[0]}" if unknown else "needs files, and columns or _target_"
        raise ValueError(
            f"{config.file_of('benchmark', name)}: a benchmark {said}; expected some of"
            f" {', '.join(known).replace('target', '_target_')}"
        )
    return Benchmark(**keys | {"name": name})


@dataclass(frozen=True)
class Questions:
    """The rows of one benchmark, ready to be asked; `places` name each one's file and row."""

    rows: list[Row]
    places: list[str]
    source: str
    notes: tuple[str, ...] = ()
    skipped: int = 0  # malformed rows

    def fingerprint(self) -> str:
        return hashlib.sha256(
            json.dumps(self.rows, sort_keys=True, default=str).encode()
        ).hexdigest()

    def limit(self, most: int | None) -> Questions:
        """`most` rows, drawn by a hash of their content, in the order of the file."""
        numbers = [draw.number(json.dumps(row, sort_keys=True, default=str)) for row in self.rows]
        chosen = draw.limit(np.array(numbers, dtype=np.uint64), most)
        if chosen is None:
            return self
        rows, places = [self.rows[i] for i in chosen], [self.places[i] for i in chosen]
        note = draw.note(len(rows), len(self.rows), "content")
        return replace(self, rows=rows, places=places, notes=(*self.notes, note))


def gsm8k_answer(row: Row) -> tuple[str, str]:
    """The working and the final number of GSM8K's answer, which ends in `#### 72`.

    A row of Cobbe et al. 2021: `question: Natalia sold clips to 48 of her friends …`, `answer:
    Natalia sold 48/2 = … #### 72`.
    """
    working, mark, number = text(row, "answer").rpartition("####")
    if not mark or not number.strip():
        raise BadRow("column 'answer' does not end in '#### NUMBER'")
    return working.rstrip(), number.strip()


def gsm8k(row: Row) -> Row:
    """`question`, `answer`, e.g. `Natalia sold clips to 48 …` → `Natalia sold 48/2 = … #### 72`."""
    gsm8k_answer(row)  # an answer without its number is refused here
    return {"question": text(row, "question"), "answer": text(row, "answer")}


def read(
    names: list[str], *, directory: str | None, key: str, limit: int | None, skip_bad: bool
) -> tuple[dict[str, Questions], tuple[str, ...]]:
    """The benchmarks' rows, from the original files in `directory` or from the hub, and notes on
    those not there.

    Of several, those that `directory` has are read, and the notes name the others.

    Raises: SourceError where none is there, or one has no copy on the hub; ValueError naming file,
    row and fix.
    """
    asked = [named(name) for name in names]
    found: dict[str, Questions] = {}
    missing: list[str] = []
    reason: SourceError | None = None
    for benchmark in asked:
        whole = _function(benchmark.reader, benchmark.name) if benchmark.reader else read_rows
        try:
            questions = whole(benchmark, directory, key, skip_bad)
        except SourceError as error:
            if directory is None:
                raise
            missing, reason = [*missing, benchmark.name], error
            continue
        found[benchmark.name] = questions.limit(limit)
    if not found and reason is not None:
        raise reason
    return found, (
        (f"not reported, because not in {directory}: {', '.join(missing)}",) if missing else ()
    )


def read_rows(benchmark: Benchmark, directory: str | None, key: str, skip_bad: bool) -> Questions:
    """A set whose rows stand alone, from its file or from the hub."""
    records: Any = benchmark.hub() if directory is None else None
    if directory is not None:
        what = f"the original files of {benchmark.name}"
        path = find(directory, benchmark.files, key=key, what=what, other=OTHER.get(key))
        records = Files((path,))
    found = load(records, benchmark.row, skip_bad=skip_bad)
    if not found.rows:
        raise ValueError(f"{records.name}: no row to evaluate on; give a file with rows")
    return Questions(*found[:2], records.name, skipped=found.skipped)


def average(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of the benchmarks' accuracies, each counted once whatever its size, as the papers'
    tables have it."""
    return {"accuracy": float(np.mean([values["accuracy"] for values in metrics.values()]))}
