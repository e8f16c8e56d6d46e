"""What the runs of a sweep were made with and its paper does not state: every setting that can
change a number, grouped.

The source is the resolved configuration itself, so that no setting can be left out: a key is stated
by the paper (`settings` of the sweep, a row or a column), follows from a stated or printed name,
cannot change a number, or is printed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

from loraexp import config
from loraexp.config import ConfigError, Plain
from loraexp.config.identity import NOT_IDENTITY
from loraexp.records.reading import flatten
from loraexp.results.gather import Results
from loraexp.results.places import Place
from loraexp.results.provenance import comparable, in_words, worded
from loraexp.sweep import computed
from loraexp.sweep.schema import Sweep

# What cannot change a number: how and where a run happens, what is checked or written on the way,
# and how often.
WITHOUT_EFFECT = NOT_IDENTITY | {
    "model.sha256",
    "task.data_dir",
    "task.eval_data_dir",
    "task.version",
    "train.keep_factors_every",
    "train.report_during",
}
PLUMBING = ("_target_", "_partial_")  # the code behind a name, which is printed itself
# What a model or a task is: said by its name, as long as the value is the one of the file of that
# name.
BY_NAME = {
    "model": ("config", "kind", "pad_token", "path", "revision", "tokenizer", "weights_seed"),
    "task": (
        "benchmark",
        "benchmarks",
        "columns",
        "config",
        "eval_files",
        "files",
        "file_columns",
        "file_label",
        "file_text",
        "folder",
        "format",
        "full_train",
        "full_train_ids",
        "full_train_without",
        "label_names",
        "problem",
        "revision",
        "source",
        "text",
        "training_set",
    ),
}
GROUPS = {
    "model": "Model",
    "task": "Data and scoring",
    "init": "Initialisation",
    "optimizer": "Optimizer",
    "adapter": "Adapter",
    "rank": "Adapter",
    "alpha": "Adapter",
    "train": "Training",
    "lr": "Training",
    "seed": "Training",
    "evaluate": "Evaluation",
}
REST = "Other"


def assumptions(results: Results) -> dict[str, list[str]]:
    """By group, `key=value` of all that the paper does not state; where places differ, each value
    with its places."""
    if results.sweep.compute is not None:
        return of_computed(results.sweep)
    values: dict[str, dict[tuple[str, str], str]] = {}
    places = {key: place for key, place in results.places.items() if place.runs}
    for where, place in places.items():
        for key, value in unstated(place, results.sweep.stated(*where)).items():
            values.setdefault(key, {})[where] = value
    return grouped(results.sweep, values, list(places))


def unstated(place: Place, stated: Mapping[str, object]) -> dict[str, str]:
    """The keys of a place's runs that are not stated and can change a number, as text; of a grid's
    key all values."""
    found: dict[str, dict[str, None]] = {}
    first = place.runs[0].cell.plain
    for key, value in settings(first, stated):
        found.setdefault(key, {})[worded(value)] = None
    for run in place.runs[1:]:  # points of a grid share the parts that they do not differ in
        own = {key: value for key, value in run.cell.plain.items() if value is not first.get(key)}
        for key, value in settings(run.cell.plain, stated, only=own):
            found.setdefault(key, {})[worded(value)] = None
    return {key: " | ".join(values) for key, values in found.items()}


def settings(
    plain: Plain, stated: Mapping[str, object], only: Mapping[str, object] | None = None
) -> Iterator[tuple[str, object]]:
    """(key, value) of everything in a resolved configuration that is neither stated, nor said by a
    name, nor without effect."""
    for key, value in flatten(dict(plain if only is None else only)).items():
        group, _, name = key.partition(".")
        first = f"{group}.{name.partition('.')[0]}"
        if (
            name in PLUMBING
            or key in stated
            or first in stated
            or not WITHOUT_EFFECT.isdisjoint((group, first, key))
        ):
            continue
        if name == "name":
            if group not in stated:
                yield group, value
        elif not said_by_name(plain, group, name):
            yield key, value


def said_by_name(plain: Plain, group: str, name: str) -> bool:
    """Whether a value only says what the model or the task of that name is: the one of its file, or
    of the base configuration."""
    parts = name.split(".")
    if parts[0] not in BY_NAME.get(group, ()):
        return False
    usual = file_of(group, str(plain[group].get("name")))
    return parts[0] in usual and comparable(plain[group].get(parts[0])) == comparable(
        usual[parts[0]]
    )


@functools.cache
def file_of(group: str, name: str) -> Plain:
    """The keys of `conf/<group>/<name>.yaml` over those that the base configuration has for the
    group; of no file, nothing."""
    try:
        return {**config.base().get(group, {}), **config.read_yaml(group, name)}
    except (OSError, ConfigError):
        return {}


def grouped(
    sweep: Sweep,
    values: Mapping[str, Mapping[tuple[str, str], str]],
    every: Sequence[tuple[str, str]],
) -> dict[str, list[str]]:
    """Keys that say one thing of the same places share a line; then come the keys whose value
    depends on the place."""
    alike: dict[str, dict[tuple[tuple[str, str], ...], list[str]]] = {}
    differing: dict[str, list[str]] = {}
    for key in sorted(values):
        where, group = values[key], GROUPS.get(key.partition(".")[0], REST)
        if len(set(where.values())) == 1:
            words = f"{key}={next(iter(where.values()))}"
            alike.setdefault(group, {}).setdefault(tuple(where), []).append(words)
            continue
        parts = []
        for value in dict.fromkeys(where.values()):
            places = [at for at, other in where.items() if other == value]
            parts.append(f"{value} ({in_words(sweep, places, every)})")
        differing.setdefault(group, []).append(f"{key}: {', '.join(parts)}")
    found = {}
    for group in [*dict.fromkeys(GROUPS.values()), REST]:
        lines = [
            "; ".join(words)
            + ("" if len(places) == len(every) else f" ({in_words(sweep, places, every)})")
            for places, words in sorted(
                alike.get(group, {}).items(), key=lambda item: -len(item[0])
            )
        ]
        if lines or group in differing:
            found[group] = [*lines, *differing.get(group, [])]
    return found


# --------------------------------------------------------------------------------------------------
# computed sweeps


def of_computed(sweep: Sweep) -> dict[str, list[str]]:
    """The keywords of a computed sweep, and the configuration of the runs that it makes itself."""
    keywords, plain = computed.configuration(sweep)
    kept = [
        f"{key}={worded(value)}"
        for key, value in flatten(keywords).items()
        if not stated_keyword(sweep, key)
    ]
    found = {"Computed": ["; ".join(kept)]} if kept else {}
    values = (
        {key: {("", ""): worded(value)} for key, value in settings(plain, sweep.settings)}
        if plain
        else {}
    )
    return found | grouped(sweep, values, [("", "")])


def stated_keyword(sweep: Sweep, key: str) -> bool:
    """Whether the paper states a keyword, by its name or as `compute.KEY`; `overrides` are printed
    key by key, resolved."""
    return any(name in sweep.settings for name in (key, f"compute.{key}", key.partition(".")[0]))
