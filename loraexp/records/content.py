"""The one reader of `record.json` and `metrics.jsonl`: what of them can be used, and of the rest,
why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraexp.config import RECORD, Plain
from loraexp.machine.files import Damaged, finite
from loraexp.machine.notation import parsed
from loraexp.records.sections import Line, RunRecord

SCHEMA = 1  # of record.json: a change that a reader of before would misread takes the next number
METRICS = "metrics.jsonl"  # beside it: what was logged on the way
SEAL = "seal"  # the key of the digest of all other keys
CHANGED = "was changed by hand since loraexp wrote it"
STATUSES = ("running", "finished", "failed", "interrupted")
SECTIONS: dict[str, type] = {
    "cost": dict,
    "parameters": dict,
    "data": dict,
    "environment": dict,
    "metrics": dict,
    "evaluations": list,
}


@dataclass(frozen=True, kw_only=True)
class Content:
    """A record, or why there is none that can be used; both None where there is no file."""

    record: RunRecord | None = None
    error: str | None = None
    # a newer version of this program wrote it: nothing but that version may replace it
    newer: bool = False
    # its content is not the one that its digest was made of: readable, and not what was measured
    changed: bool = False

    @property
    def finished(self) -> bool:
        return self.record is not None and self.record["status"] == "finished"


def content(folder: Path) -> Content:
    """The record of a run folder. Raises nothing: whatever is wrong with the file is `error`, in
    one line."""
    path = folder / RECORD
    try:
        record = parsed(path.read_bytes())
    except FileNotFoundError:
        return Content()
    except (OSError, Damaged) as problem:
        why = " ".join(str(problem).split())[:200] or type(problem).__name__
        return Content(error=f"cannot be read ({why}); running it again writes it anew")
    error = fault(record)
    if error is not None:
        return Content(error=error, newer=is_newer(record))
    seal = record.pop(SEAL, None)  # an older version wrote none
    return Content(record=record, changed=seal is not None and seal != digest(record))


def digest(record: Mapping[str, object]) -> str:
    """Of a record's content, whatever the order and the spacing of its keys."""
    text = json.dumps(finite(record), sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(record: Mapping[str, object], changed: bool = False) -> Plain:
    """A record as it is written: with the digest of its content, or with a word in its place that
    goes on saying that it was changed by hand."""
    return {**record, SEAL: "changed by hand" if changed else digest(record)}


def is_newer(record: object) -> bool:
    schema = record.get("schema") if isinstance(record, dict) else None
    return isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA


def fault(record: object) -> str | None:
    """Why a record cannot be used, or None."""
    if not isinstance(record, dict):
        return (
            f"is not a record: it holds a {type(record).__name__}; running it again writes it anew"
        )
    if is_newer(record):
        return (
            f"schema {record['schema']}, expected {SCHEMA}: a newer loraexp wrote it; update this"
            " one, or run it again with force=true"
        )
    if record.get("schema") != SCHEMA or isinstance(record.get("schema"), bool):
        return f"schema {record.get('schema')}, expected {SCHEMA}; run it again with force=true"
    wrong = misshapen(record)
    return f"{wrong}; run it again with force=true" if wrong else None


def misshapen(record: Plain) -> str | None:
    """The first part of a record that does not have its shape, or None."""
    for key, expected in {"config": dict, "status": str}.items():
        if not isinstance(record.get(key), expected):
            return f"has no {key}"
    if record["status"] not in STATUSES:
        return f"has status {record['status']!r}, expected {', '.join(STATUSES)}"
    for key, kind in SECTIONS.items():
        if key in record and not isinstance(record[key], kind):
            return f"has {key} that is a {type(record[key]).__name__}, expected a {kind.__name__}"
    if not isinstance(record.get("best") or {}, dict):
        return f"has best that is a {type(record['best']).__name__}, expected a dict"
    for split, values in record.get("metrics", {}).items():
        if not isinstance(values, dict) or not all(map(is_value, values.values())):
            return f"has metrics of {split} that are not numbers by name"
    return None


def is_value(value: object) -> bool:
    """A metric as it stands in a record: a number, nothing, or one for each seed."""
    if isinstance(value, list):
        return all(map(is_value, value))
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def sound_lines(logged: bytes) -> tuple[list[Line], int]:
    """The lines of a metrics.jsonl that can be read, and how many cannot; one that ends early, at
    the end, is no damage."""
    lines, bad = [], 0
    rows = logged.split(b"\n")
    for number, row in enumerate(rows, start=1):
        try:
            line = parsed(row)
        except Damaged:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif row.strip() and number < len(rows):
            bad += 1
    return lines, bad
