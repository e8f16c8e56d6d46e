"""Under which conditions a table's numbers were made: protocol, deviations from what the paper
states, commits and hardware."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from loraexp.config import Plain
from loraexp.machine.words import spoken
from loraexp.records.reading import packed, run_seconds
from loraexp.records.sections import RunRecord
from loraexp.results.gather import Results
from loraexp.results.matching import Run
from loraexp.results.places import Place
from loraexp.sweep import computed
from loraexp.sweep.cells import lookup
from loraexp.sweep.schema import Sweep

ABSENT = object()


def in_words(
    sweep: Sweep, places: Iterable[tuple[str, str]], universe: Iterable[tuple[str, str]]
) -> str:
    """Places of the table, as short as they can be said: all, some rows, some columns, or one by
    one."""
    found, every = set(places), set(universe)
    rows = [row for row in sweep.rows if any((row, column) in found for column in sweep.columns)]
    columns = [
        column for column in sweep.columns if any((row, column) in found for row in sweep.rows)
    ]
    if found == every:
        return "all"
    if found == {place for place in every if place[0] in rows}:
        return ", ".join(sweep.label_of(row) for row in rows)
    if found == {place for place in every if place[1] in columns}:
        return ", ".join(sweep.columns[column].label for column in columns)
    alike: dict[str, list[str]] = {}
    for row in rows:
        where = ", ".join(
            sweep.columns[column].label for column in columns if (row, column) in found
        )
        alike.setdefault(where, []).append(sweep.label_of(row))
    return "; ".join(f"{', '.join(names)} ({where})" for where, names in alike.items())


def grouped(sweep: Sweep, said: dict[tuple[str, str], str]) -> list[str]:
    """`what (where)` for every different thing said of places, in the order of the table."""
    return [
        f"{what} ({in_words(sweep, (p for p, other in said.items() if other == what), said)})"
        for what in dict.fromkeys(said.values())
    ]


def protocol(results: Results) -> list[str]:
    """What is reported, what chooses, on which splits, and of how many rows."""
    sweep = results.sweep
    places = {key: place for key, place in results.places.items() if place.runs}
    lines = []
    for title, said in (
        ("reported", {key: reported(place) for key, place in places.items()}),
        ("chosen", {key: chooser(place) for key, place in places.items()}),
        ("best/value", {key: best_of(place) for key, place in places.items()}),
        ("task.protocol", {key: setting(place, "task.protocol") for key, place in places.items()}),
        (
            "weights",
            {
                key: f"train.select={setting(place, 'train.select')}"
                for key, place in places.items()
            },
        ),
        ("rows", {key: sizes(place) for key, place in places.items()}),
    ):
        told = {key: what for key, what in said.items() if what}
        if told:
            lines.append(f"{title}: {'; '.join(grouped(sweep, told))}")
    return lines


def reported(place: Place) -> str:
    return (
        f"{place.path} at the end of epoch {place.epoch:g}"
        if place.epoch is not None
        else str(place.path)
    )


def keys_of(place: Place) -> list[str]:
    """The keys of the grid that have several values to choose from."""
    return [
        key
        for key in place.select.over
        if len({str(run.cell.point.get(key)) for run in place.runs}) > 1
    ]


def chooser(place: Place) -> str:
    """Which keys of the grid are chosen, and by which value."""
    keys = keys_of(place)
    return (
        f"{', '.join(keys)} by the {place.select.goal}imum of {place.select.by}"
        if keys
        else "nothing to choose"
    )


def best_of(place: Place) -> str:
    """What validation's value is a value of, as far as a record tells."""
    best = next(
        (
            run.record["best"]
            for run in place.runs
            if run.record is not None and run.record.get("best")
        ),
        None,
    )
    return f"{best['split']}/{best['metric']}" if best is not None else ""


def setting(place: Place, key: str) -> str:
    """What the runs of a place have for a configuration key."""
    found = dict.fromkeys(
        worded(value) for run in place.runs if (value := lookup(run.cell.plain, key)) is not None
    )
    return " | ".join(found)


def sizes(place: Place) -> str:
    """Rows of every split that the runs read, and how many of them were cut, skipped or left out
    beside them."""
    data: Plain = next(
        (
            run.record["data"]
            for run in place.runs
            if run.record is not None and run.record.get("data")
        ),
        {},
    )
    counted = {
        split: part for split, part in data.items() if isinstance(part, dict) and "rows" in part
    }
    return ", ".join(f"{split} {part['rows']:,}{less(part)}" for split, part in counted.items())


def less(part: Plain) -> str:
    """What a split's rows have lost by their length or form, in brackets; the tokeniser counts it
    over the whole file, before a part of it is taken."""
    words = {"cut": "cut", "left_out": "too long and left out", "skipped": "malformed and skipped"}
    told = [
        f"{part[key]:,} {word}"
        for key, word in words.items()
        if isinstance(part.get(key), int) and part[key]
    ]
    told = [f"of the file's rows {', '.join(told)}"] if told else []
    asked = {"cut": "prompts shortened", "skipped": "prompts too long and not asked"}
    # of a benchmark: what each protocol had to leave out
    for split, counts in (part.get("protocols") or {}).items():
        told += [
            f"{counts[key]:,} {word} under {split}"
            for key, word in asked.items()
            if counts.get(key)
        ]
    return f" ({', '.join(told)})" if told else ""


# --------------------------------------------------------------------------------------------------
# deviations


def deviations(results: Results) -> list[str]:
    """Where the runs' configuration is not what the paper states, grouped: `model: minilm instead
    of roberta-base (all)`."""
    sweep = results.sweep
    if sweep.compute is not None:
        return deviations_of_computed(sweep)
    said: dict[str, dict[tuple[str, str], str]] = {}
    universe = [key for key, place in results.places.items() if place.runs]
    for key in universe:
        for name, expected in sweep.stated(*key).items():
            found = has(results.places[key], name, expected)
            if found is not None:
                said.setdefault(name, {})[key] = f"{found} instead of {worded(expected)}"
    lines = []
    for name, where in said.items():
        for what in dict.fromkeys(where.values()):
            places = [key for key, other in where.items() if other == what]
            lines.append(f"{name}: {what} ({in_words(sweep, places, universe)})")
    return lines


def deviations_of_computed(sweep: Sweep) -> list[str]:
    """Where the keywords of a computed sweep, or the configuration of its runs, are not what the
    paper states."""
    lines = []
    for name, expected in sweep.settings.items():
        value = computed.value_of(sweep, name, ABSENT)
        if value is ABSENT:
            lines.append(f"{name}: no such key instead of {worded(expected)}")
        elif comparable(value) != comparable(expected):
            lines.append(f"{name}: {worded(value)} instead of {worded(expected)}")
    return lines


def has(place: Place, name: str, expected: Any) -> str | None:
    """What the runs of a place have for a key, if it is not what is expected; of a grid key all its
    values."""
    values: list[object] = []
    for run in place.runs:
        value = lookup(run.cell.plain, name, ABSENT)
        if value not in values:
            values.append(value)
    if values == [ABSENT]:
        return "no such key"
    over_grid = isinstance(expected, list) and not any(isinstance(value, list) for value in values)
    if over_grid and sorted(map(comparable, values)) == sorted(map(comparable, expected)):
        return None
    if not over_grid and all(comparable(value) == comparable(expected) for value in values):
        return None
    return ", ".join(worded(value) for value in values)


def comparable(value: object) -> str:
    """8 and 8.0 are one value, and so are the same words in another order."""
    if isinstance(value, list):
        return str(sorted(comparable(v) for v in value))
    return (
        f"{value:.12g}"
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else str(value)
    )


def worded(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(worded(v) for v in value)
    return (
        {None: "none", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else (f"{value:g}" if isinstance(value, float) else str(value))
    )


# --------------------------------------------------------------------------------------------------
# runs


def unique(results: Results) -> list[Run]:
    """The runs of all places, each once."""
    runs = itertools.chain.from_iterable(place.runs for place in results.places.values())
    return list({run.cell.run_id: run for run in runs}.values())


def environments(results: Results) -> list[str]:
    """How many runs there are, and from which commits, on what hardware, with which versions they
    come."""
    runs = unique(results)
    lines = []
    if runs:
        counted = Counter(run.status for run in runs)
        states = [
            f"{counted[s]} {s}"
            for s in ("failed", "running", "unreadable", "missing")
            if counted[s]
        ]
        lines.append(", ".join([f"{counted['finished']} of {len(runs)} runs finished", *states]))
    records = [record for record in results.records.values() if record.get("status") == "finished"]
    for title, words in (
        ("commit", [commit(record) for record in records]),
        ("hardware", [hardware(record) for record in records]),
        ("versions", [versions(record) for record in records]),
    ):
        told = Counter(word for word in words if word)
        several = len(told) > 1
        if told:
            shown = (f"{word} ({n} runs)" if several else word for word, n in told.items())
            lines.append(f"{title}: {'; '.join(shown)}")
    together = [count for record in records if (count := packed(record)) > 1]
    if together:
        lines.append(
            f"{len(together)} runs trained together with others, up to {max(together)} at once"
            " (sweep.pack); of their time each has its share"
        )
    seconds = sum(run_seconds(record) for record in records)
    if seconds:
        lines.append(f"time: {spoken(seconds)} in all")
    return lines


def commit(record: RunRecord) -> str:
    environment = record.get("environment") or {}
    if not environment.get("commit"):
        version = (environment.get("versions") or {}).get("loraexp")
        return f"loraexp {version}, not from a checkout" if version else ""
    return str(environment["commit"])[:10] + (" with changes" if environment.get("dirty") else "")


def hardware(record: RunRecord) -> str:
    environment = record.get("environment") or {}
    found = environment.get("hardware") or {}
    gpus = found.get("gpus") or []
    if gpus and (record.get("config") or {}).get("device") != "cpu":
        return " + ".join(f"{n} × {name}" for name, n in Counter(gpus).items())
    return (
        f"{found['cpu']}, {environment.get('threads', '?')} of {found.get('cores', '?')} cores"
        if found.get("cpu")
        else ""
    )


def versions(record: RunRecord) -> str:
    found = (record.get("environment") or {}).get("versions") or {}
    return ", ".join(
        f"{name} {found[name]}" for name in ("python", "torch", "transformers") if found.get(name)
    )
