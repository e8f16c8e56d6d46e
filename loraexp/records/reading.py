"""Records as they are found: each with the place it was read from, the numbers in them, and all as
one tidy table."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from loraexp.config import RECORD, STORED, ConfigError, Plain, match_key
from loraexp.machine.files import Damaged
from loraexp.machine.notation import read_yaml
from loraexp.machine.notes import Notes, code, hashed
from loraexp.machine.words import first_line
from loraexp.records import tracking
from loraexp.records.content import CHANGED, METRICS, SCHEMA, content, fault, sound_lines
from loraexp.records.sections import Line, RunRecord

if TYPE_CHECKING:
    import pandas

Lines = list[Line]
# of a record; every other path is `split/metric`
SECTIONS = ("best", "cost", "parameters", "data", "environment")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A record and where it was read; one that cannot be used has `error` instead of `record`."""

    where: str  # a run folder, or a run of W&B
    run_id: str
    match: str | None  # `match_key` of its configuration
    record: RunRecord | None
    lines: Callable[[], Lines]  # what was logged on the way
    folder: Path | None = None
    error: str | None = None
    note: str | None = None  # what a reader must know of a record that can be used

    @property
    def status(self) -> str:
        return "unreadable" if self.record is None else str(self.record["status"])

    @property
    def ended(self) -> str:
        """When it ended, as text that sorts by time; empty where it has not."""
        return str((self.record or {}).get("ended") or "")


def on_disk(parents: Iterable[Path]) -> Iterator[Found]:
    """Every record in the folders `<output_root>/<task>-<model>`, readable or not."""
    for parent in sorted(set(parents)):
        for path in sorted(parent.glob(f"*/{RECORD}")):
            yield read(path.parent)


def read(folder: Path) -> Found:
    """The record of a run folder; one that cannot be used is said, with what the folder still
    tells.

    A record that has not changed since it was read is not read again: a report asks for it once for
    every sweep.
    """
    path = folder / RECORD
    try:
        seen = path.stat()
    except OSError:
        return read_at(folder, 0, 0)
    return read_at(folder, seen.st_mtime_ns, seen.st_size)


@functools.lru_cache(maxsize=50_000)
def read_at(folder: Path, changed: int, size: int) -> Found:
    """The record of a run folder as it was at a time; do not change what it holds."""
    path = folder / RECORD
    found = content(folder)
    config = found.record["config"] if found.record is not None else stored_config(folder)
    return Found(
        where=str(folder),
        run_id=folder.name.rpartition("-")[2],
        match=matched(config),
        record=found.record,
        lines=lambda: logged(folder / METRICS),
        folder=folder,
        error=found.error and f"{path}: {found.error}",
        note=f"{path} {CHANGED}" if found.changed else None,
    )


def matched(config: Mapping[str, object] | None) -> str | None:
    """`match_key` of a configuration as it was found; None where it is not one."""
    try:
        return match_key(config) if config is not None else None
    except (AttributeError, TypeError, ValueError, KeyError, RecursionError):
        return None


def from_wandb(source: str) -> Iterator[Found]:
    """The records that W&B has of a project, or in the folders of offline runs."""
    for copied in tracking.read(source):
        record: RunRecord = {"schema": SCHEMA, "run_id": copied.run_id, "status": "running"}
        if copied.record is not None:
            record = copied.record
        elif copied.state != "running":
            message = f"W&B has state {copied.state} and no record in its summary"
            record |= {"status": "failed", "error": {"type": "NoRecord", "message": message}}
        record = record | {"config": copied.config}
        error = fault(record)
        yield Found(
            where=copied.where,
            run_id=copied.run_id,
            match=matched(copied.config),
            record=record if error is None else None,
            lines=copied.lines,
            error=error and f"{copied.where}: {error}",
        )


def stored_config(folder: Path) -> Plain | None:
    """The configuration beside a record that cannot be used: it tells which cell the record was
    of."""
    try:
        return read_yaml(folder / STORED, dict)
    except (OSError, Damaged):
        return None


def logged(path: Path) -> Lines:
    """The lines of a metrics.jsonl that can be read; a warning says how many cannot."""
    try:
        lines, bad = sound_lines(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        warnings.warn(f"{path}: cannot be read ({error.strerror})", stacklevel=2)
        return []
    if bad:
        warnings.warn(f"{path}: {bad} damaged lines are left out", stacklevel=2)
    return lines


# --------------------------------------------------------------------------------------------------
# numbers in records


def value_at(record: RunRecord, path: str) -> float | None:
    """The number at `split/metric`, or at a path into the record such as `cost/init_seconds`; None
    where there is none."""
    section, *parts = path.split("/")
    if section not in SECTIONS:
        split, _, name = path.rpartition("/")
        section, parts = "metrics", [split, name]
    node: object = record.get(section)
    for part in parts:
        node = node.get(part) if isinstance(node, dict) else None
    if node is None and section == "metrics":
        node = under_another_protocol(record, *parts)
    return number(node)


# what a run costs, whatever else the process does
COUNTED = ("cost/adapter_bytes", "cost/init_forward_sweeps")


def measured(path: str) -> bool:
    """Whether a path reads time or memory of a run, which are not its own where others trained with
    it (`packed` in the record)."""
    terms = path.split(" + ")
    return any(t == "seconds" or (t.startswith("cost/") and t not in COUNTED) for t in terms)


def initialising(path: str) -> bool:
    """Whether a path reads what initialising took."""
    return any(term.startswith("cost/init_") for term in path.split(" + "))


def packed(record: RunRecord) -> int:
    """How many runs trained together with this one, itself among them."""
    return record.get("packed") or 1


# Keys of a re-score that change neither the rows nor what an answer is worth, besides the protocols
# and benchmarks.
SAME_ROWS = (
    "task.protocol",
    "task.benchmarks",
    "train.eval_batch_size",
    "device",
    "cache_root",
    "evaluate.",
)


def under_another_protocol(record: RunRecord, split: str, name: str) -> object:
    """A metric that the run itself does not have, from a re-score of the same rows."""
    for evaluation in reversed(record.get("evaluations") or ()):
        same = all(word.startswith(SAME_ROWS) for word in evaluation["overrides"])
        if same and name in (evaluation["metrics"].get(split) or {}):
            return evaluation["metrics"][split][name]
    return None


def best_value(record: RunRecord) -> float | None:
    """What the evaluation came to whose weights are reported; None where nothing selects."""
    best = record.get("best")
    return best.get("value") if best else None


def failure(record: RunRecord) -> str:
    """Type and first line of the error that a failed record holds."""
    error = record.get("error") or {}
    return f"{error.get('type', 'error')}: {first_line(error.get('message', ''))}"


def number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def run_seconds(record: RunRecord) -> float:
    """How long a run took: by its clock, or by the sum of its parts where that is more (it went on
    after a break); its share of the passes where others trained with it."""
    cost = record.get("cost") or {}
    parts = sum(
        cost.get(name) or 0.0
        for name in ("init_seconds", "train_seconds", "eval_seconds", "seconds")
    )
    started, ended = record.get("started"), record.get("ended")
    if not started or not ended or packed(record) > 1:  # whose clock ran for all of them
        return parts
    clock = datetime.fromisoformat(ended) - datetime.fromisoformat(started)
    return max(parts, clock.total_seconds())


# --------------------------------------------------------------------------------------------------
# for notebooks


def load_records(root: str | Path = "outputs") -> pandas.DataFrame:
    """One row for each run under `root`: what it was, how it ended, `split/metric` values and
    `cost/…`.

    The configuration is flattened to dotted columns (`init.name`, `lr`, `train.batch_size`, …). A
    record that cannot be read is a row with status "unreadable", and one that lacks a section has
    no values there: both are shown, never dropped. What `loraexp eval` found is
    `evaluations/KEY/SPLIT/METRIC`, never in the place of the run's own `SPLIT/METRIC`. Rows of many
    records are noted in `root/.records-index` by the time and size of their files; it may be
    deleted at any time.

    Raises: ConfigError where there is no such folder, or no run in it; it names those below that
    have some.
    """
    import pandas

    root = Path(root)
    paths = sorted(root.glob(f"*/*/{RECORD}"))
    if not paths:
        raise no_runs(root)
    index = Notes(root / INDEX, longest=LONGEST)
    rows = [row_of(path.parent, index) for path in paths]
    if len(index.new) >= WORTH:
        index.keep(whole=True)
    return pandas.DataFrame(rows)


INDEX = ".records-index"  # beside the records: the rows of those that have not changed since
WORTH = 500  # new rows below which a file is not worth it
LONGEST = 2**30  # bytes of the index
SETTLED = 2.0  # seconds: a file may be written twice within one tick of its clock


def row_of(folder: Path, index: Notes) -> Plain:
    """One row of `load_records`: from the index where the record is the same file, of the same time
    and size, as when it was read."""
    path = folder / RECORD
    try:
        seen = path.stat()
    except OSError:
        return row_anew(folder)
    state = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
    key = hashed(code(), folder.parent.name, folder.name, state)
    known = index.get(key)
    if isinstance(known, dict):
        return {"folder": str(folder)} | known
    row = row_anew(folder)
    if row["status"] != "unreadable" and time.time() - seen.st_mtime > SETTLED:
        index.add(key, {name: value for name, value in row.items() if name != "folder"})
    return row


def row_anew(folder: Path) -> Plain:
    found = content(folder)
    row: Plain = {"folder": str(folder)}
    if found.record is None:
        why = found.error and f"{folder / RECORD}: {found.error}"
        return row | {"status": "unreadable", "error": why}
    record = found.record
    row |= {key: record.get(key) for key in ("run_id", "status", "started", "ended")}
    row |= flatten(record["config"])
    row |= flatten(record.get("metrics") or {}, separator="/")
    row |= {
        f"cost/{name}": value
        for name, value in (record.get("cost") or {}).items()
        if not isinstance(value, dict)
    }
    row |= {f"parameters/{name}": value for name, value in (record.get("parameters") or {}).items()}
    for evaluation in record.get("evaluations") or ():
        row |= tracking.flattened(evaluation)
        row |= {
            f"evaluations/{evaluation['key']}/{split}/rows": n
            for split, n in evaluation["rows"].items()
        }
    row["best/value"] = best_value(record)
    row["packed"], row["seconds"] = packed(record), run_seconds(record)
    row["error"] = (record.get("error") or {}).get("message")
    row["note"] = f"record.json {CHANGED}" if found.changed else None
    return row


def roots(folder: Path) -> list[Path]:
    """Every folder of results in a folder: itself, or one below, such as that of
    experiment=debug."""
    return sorted({path.parent.parent.parent for path in folder.glob(f"**/{RECORD}")})


def no_runs(root: Path) -> ConfigError:
    """What is wrong with a folder that holds no run."""
    if not root.is_dir():
        return ConfigError(f"{root}: there is no such folder; give the output_root of your runs")
    below = ", ".join(str(path) for path in roots(root))
    remedy = f"there are some in {below}" if below else "give the output_root of your runs"
    return ConfigError(f"{root}: no run in it; {remedy}")


def flatten(node: Mapping[str, object], prefix: str = "", separator: str = ".") -> Plain:
    """Nested keys as dotted ones; lists stay as they are."""
    flat: Plain = {}
    for key, value in node.items():
        flat |= (
            flatten(value, f"{prefix}{key}{separator}", separator)
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat
