"""One self-contained HTML page of every table and figure that has data, and the state of the
rest."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from loraexp.artifacts.figure import Picture
from loraexp.artifacts.table import Table
from loraexp.config import RECORD, ConfigError
from loraexp.machine.progress import notice
from loraexp.machine.words import MIB
from loraexp.records.content import content
from loraexp.records.reading import best_value, flatten, packed
from loraexp.records.sections import RunRecord
from loraexp.sweep import reading, schema
from loraexp.sweep.cells import lookup
from loraexp.sweep.schema import Sweep

STATUSES = ("finished", "failed", "running", "unreadable", "missing")


@dataclass(kw_only=True)
class Part:
    """One sweep, or one variant of it, on the page."""

    name: str  # as it is given to `loraexp sweep`
    variant: str | None
    sweep: Sweep | None = None
    counts: Counter[str] = field(default_factory=Counter)  # status → runs
    tasks: list[str] = field(default_factory=list)
    table: Table | None = None  # of one that has data
    figures: list[tuple[Picture, str]] = field(default_factory=list)  # with its SVG
    problem: str | None = None

    @property
    def key(self) -> str:
        return (
            self.sweep.key
            if self.sweep is not None
            else "-".join(word for word in (self.name, self.variant) if word)
        )

    @property
    def command(self) -> str:
        return " ".join(
            ["loraexp sweep", self.name, *(["--variant", self.variant] if self.variant else [])]
        )


def all_runs(root: Path, beside: Path) -> list[dict[str, object]]:
    """Every run under a folder, of a sweep or of none, as flat numbers and words; links as they are
    from a page in `beside`."""
    rows = []
    for path in sorted(root.glob(f"*/*/{RECORD}")):
        if path.parent.parent.name == "computed":
            continue
        found = content(path.parent)
        row: dict[str, object] = {
            "run": path.parent.name,
            "href": link(path.parent, beside),
            "status": "unreadable",
        }
        rows.append(
            row
            if found.record is None
            else row | of_record(found.record) | adapter(path.parent, beside)
        )
    return rows


def of_record(record: RunRecord) -> dict[str, object]:
    """What a reader filters, sorts and draws runs by; names as they stand in a configuration, costs
    with their unit."""
    plain, cost, parameters = (
        record["config"],
        record.get("cost") or {},
        record.get("parameters") or {},
    )
    named = {
        key: lookup(plain, key)
        for key in ("task", "model", "init", "optimizer", "lr", "rank", "seed")
    }
    metrics = flatten(record.get("metrics") or {}, separator="/")
    own = {
        "init s": cost.get("init_seconds"),
        "train s": cost.get("train_seconds"),
        "init MiB": mebibytes(cost.get("init_peak_bytes")),
        "train MiB": mebibytes(cost.get("train_peak_bytes")),
    }
    together = packed(record)  # of such a run, time and memory are those of several
    costs = {
        "best": best_value(record),
        **(own if together == 1 else {"packed": together}),
        "trainable": parameters.get("trainable"),
        "ended": record.get("ended"),
    }
    numbers = {
        key: value
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    return (
        {"status": record["status"]}
        | named
        | numbers
        | {key: value for key, value in costs.items() if value is not None}
    )


def mebibytes(count: object) -> float | None:
    return count / MIB if isinstance(count, (int, float)) else None


def adapter(folder: Path, beside: Path) -> dict[str, str]:
    return {"adapter": link(folder / "adapter", beside)} if (folder / "adapter").is_dir() else {}


def link(path: Path, beside: Path) -> str:
    """A path as a link from a page in a folder."""
    return quote(os.path.relpath(path, beside))


def parts_of(name: str, overrides: Sequence[str]) -> Iterator[Part]:
    """A sweep and its variants; one that cannot be read or expanded says so, and hides none of the
    others."""
    variants: list[str | None] = [None]
    for variant in variants:  # grows by those that the sweep itself names
        part = Part(name=name, variant=variant)
        try:
            part.sweep = opened(name, variant, overrides)
            variants += part.sweep.variants if variant is None else []
            fill(part, part.sweep)
        except ConfigError as error:
            part.problem = str(error)
            notice(f"loraexp: {part.key}: {error}")
        yield part


def opened(name: str, variant: str | None, overrides: Sequence[str]) -> Sweep:
    """A sweep with the user's overrides; of a computed one only with where its result is, for the
    keys of runs are none of its."""
    where = [word for word in overrides if schema.key_of(word) == "output_root"]
    found = reading.load(name, variant, where)
    return (
        found
        if found.compute is not None or where == list(overrides)
        else reading.load(name, variant, overrides)
    )


def fill(part: Part, wanted: Sweep) -> None:
    """Count a part's runs; gather and draw it if there may be one on disk.

    To compose the configuration of every run of every sweep takes minutes. Whether a sweep can have
    runs at all is seen from the names of its tasks and models against the folders that are there;
    only then it is gathered.
    """
    planned = [] if wanted.compute is not None else plan(wanted)
    part.tasks = sorted({name for _, named in planned if (name := named.get("task")) is not None})
    part.counts = Counter(
        missing=1 if wanted.compute is not None else sum(runs for runs, _ in planned)
    )
    if not may_have_data(wanted, planned):
        return
    from loraexp.artifacts import drawing, plots, table
    from loraexp.results import gather

    found = gather.gather(wanted)
    if wanted.compute is not None:
        statuses = [str(record.get("status")) for record in found.records.values()]
        part.counts = Counter(statuses) or part.counts
    else:
        part.counts = Counter(
            {
                run.cell.run_id: run.status for place in found.places.values() for run in place.runs
            }.values()
        )
    if all(part.counts[status] == 0 for status in STATUSES if status != "missing"):
        return
    notice(
        f"{wanted.key}: {', '.join(f'{part.counts[s]} {s}' for s in STATUSES if part.counts[s])}"
    )
    part.table = table.build(found)
    for plot in wanted.plots:
        picture = plots.make(found, plot)
        if not picture.empty:
            part.figures.append((picture, drawing.rendered(picture, ["svg"])["svg"].decode()))


def plan(wanted: Sweep) -> list[tuple[int, dict[str, str]]]:
    """(runs, overrides by key) of every place, without composing a configuration; places that share
    their runs count once."""
    found: dict[tuple[Any, ...], tuple[int, dict[str, str]]] = {}
    for row, column in wanted.trained():
        words = [*wanted.overrides_of(row, column), *wanted.overrides]
        last = {schema.key_of(word): word.partition("=")[2] for word in words}
        grid = wanted.grid_of(row, column)
        key = (*sorted(last.items()), *sorted((name, str(values)) for name, values in grid.items()))
        found[key] = (math.prod(len(values) for values in grid.values()), last)
    return list(found.values())


def may_have_data(wanted: Sweep, planned: Sequence[tuple[int, dict[str, str]]]) -> bool:
    """Whether a folder `<task>-<model>` of some place is there; a group that no override names may
    be any."""
    if wanted.compute is not None:
        from loraexp.sweep import computed

        return (computed.folder(wanted, wanted.output_root) / RECORD).exists()
    folders = {f"{named.get('task', '*')}-{named.get('model', '*')}" for _, named in planned}
    return any(
        next(wanted.output_root.glob(f"{folder}/*/record.json"), None) is not None
        for folder in folders
    )
