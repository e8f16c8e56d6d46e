"""Files of `sweeps/`, and of the user's own: read, patched by a variant, checked; every mistake is
one line."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import yaml

from loraexp import config
from loraexp.config import ConfigError, Plain, boundary, search
from loraexp.machine.files import Damaged
from loraexp.machine.notation import read_yaml
from loraexp.sweep.schema import (
    OF_RUNS,
    Claim,
    Column,
    Hours,
    Plot,
    Report,
    Row,
    Select,
    Special,
    Sweep,
    Variant,
    key_of,
    listed,
)
from loraexp.sweep.variants import apply

Part = TypeVar("Part", bound="Row | Column | Special | Plot | Claim | Variant")


def names() -> list[str]:
    return search.names(search.sweeps())


def file_of(name: str) -> Path:
    """The yaml of a sweep by its name; a path that is not there where there is none."""
    return search.file_of(search.sweeps(), name)


def about(name: str) -> str:
    """The first comment of a sweep: what it is, in one line."""
    return search.about(file_of(name))


def place(name: str) -> Path:
    """The yaml that a name or a path means; raises ConfigError where there is none."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else file_of(name)
    if not path.is_file():
        raise ConfigError(
            f"{name}: there is no sweep of that name and no such file;"
            f" {config.nearest(name, names(), 'sweeps')}"
        )
    return path


def load(name: str, variant: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep `sweeps/NAME.yaml`, or of a yaml file of the user's own; raises ConfigError naming
    file and place."""
    path = place(name)
    try:
        content = read_yaml(path, dict)
    except Damaged as error:
        raise ConfigError(f"{error}; expected keys such as title, rows and columns") from error
    try:
        return read(content, path, variant, list(overrides))
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


# What a sweep without runs takes as every other does.
ALL_TAKE = ("output_root", *OF_RUNS)
FILE_KEYS = {f.name for f in dataclasses.fields(Sweep)} - {
    "name",
    "variant",
    "means",
    "path",
    "overrides",
    "typed",
    "extend",
    "chosen",
}


def read(content: Plain, path: Path, variant: str | None, overrides: list[str]) -> Sweep:
    boundary.refuse_unsafe(content, path.name)
    for key in content:
        if key not in FILE_KEYS:
            raise ConfigError(f"{key}: there is no such key; {config.nearest(str(key), FILE_KEYS)}")
    for key in ("title", "paper", "artifact", "kind"):
        if not isinstance(content.get(key), str):
            raise ConfigError(f"{key}: missing; expected a word")
    content = copy.deepcopy(content)
    variants = each(Variant, content, "variants")
    own: list[str] = []
    if variant is not None:
        if variant not in variants:
            there_are = config.nearest(variant, variants) if variants else "it has none"
            raise ConfigError(f"variant {variant}: there is no such variant; {there_are}")
        own = apply(variants[variant], content)
    grid = content.get("grid") or {}
    if content["kind"] not in ("table", "figure"):
        raise ConfigError(f"kind: {content['kind']}: expected table or figure")
    sweep = Sweep(
        name=path.stem,
        variant=variant,
        means=variants[variant].about if variant else None,
        path=path,
        title=content["title"],
        paper=content["paper"],
        artifact=content["artifact"],
        kind=content["kind"],
        base=texts(content, "base"),
        overrides=own + overrides,
        typed=overrides,
        grid=listed({key: values for key, values in grid.items() if key != "extend"}),
        extend=extension(grid),
        rows=each(Row, content, "rows"),
        columns=each(Column, content, "columns"),
        cells=several(Special, content, "cells"),
        select=selection(content.get("select") or {}, own + overrides),
        report=config.build(Report, content.get("report") or {}, "report"),
        published=content.get("published") or {},
        settings=content.get("settings") or {},
        deviations=texts(content, "deviations"),
        hours=config.build(Hours, content["hours"], "hours") if content.get("hours") else None,
        plots=several(Plot, content, "plots"),
        claims=several(Claim, content, "claims"),
        compute=patched(content.get("compute"), overrides),
        variants=list(variants),
    )
    check(sweep)
    return sweep


def texts(content: Plain, key: str) -> list[str]:
    """A list of the file; raises ConfigError where an item is not a text."""
    return cast(list[str], config.fit(key, content.get(key) or [], list[str]))


def selection(content: Plain, overrides: list[str]) -> Select:
    """`select`; an axis that an override makes one value has none left that could choose."""
    select = config.build(Select, content, "select")
    fixed = {key_of(word) for word in overrides}
    judges = {key: values for key, values in select.judges.items() if key not in fixed}
    return dataclasses.replace(select, judges=judges)


def extension(grid: Plain) -> dict[str, int]:
    """`grid.extend`: keys of the grid with how many values more they may get."""
    found = grid.get("extend") or {}
    for key, most in found.items() if isinstance(found, dict) else [("", None)]:
        if key not in grid or not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise ConfigError(
                f"grid.extend: {found}: expected keys of the grid with whole numbers, such as"
                " {lr: 3}"
            )
    return dict(found)


def patched(compute: Plain | None, overrides: list[str]) -> Plain | None:
    """The keywords of a computed sweep with the user's `compute.KEY=VALUE` put in.

    Of a run's keys it takes those that say where and how (`ALL_TAKE`), as every sweep does; others
    would say nothing to it.
    """
    if compute is None:
        return None
    compute, common = dict(compute), []
    for word in overrides:
        key, equals, value = word.partition("=")
        if equals and key.startswith("compute."):
            compute[key.removeprefix("compute.")] = yaml.safe_load(value)
        elif equals and key in ALL_TAKE:
            common.append(word)
        else:
            also = ", ".join(ALL_TAKE)
            raise ConfigError(
                f"{word}: expected compute.KEY=VALUE, or one of {also}: this sweep is computed, it"
                " has no runs"
            )
    if common:
        config.check(config.compose(common))
    return compute


def each(kind: type[Part], content: Plain, key: str) -> dict[str, Part]:
    return {
        str(name): config.build(kind, values or {}, f"{key}.{name}")
        for name, values in (content.get(key) or {}).items()
    }


def several(kind: type[Part], content: Plain, key: str) -> list[Part]:
    return [
        config.build(kind, values or {}, f"{key}[{i}]")
        for i, values in enumerate(content.get(key) or [])
    ]


def check(sweep: Sweep) -> None:
    """Every row, column, grid and claim that is referred to is there."""
    if sweep.compute is not None:
        if not isinstance(sweep.compute.get("_target_"), str):
            raise ConfigError("compute._target_: missing; expected the dotted path of a function")
    elif not sweep.rows or not sweep.columns:
        raise ConfigError("rows, columns: missing; a sweep without `compute` has both")
    for where, names, choices in references(sweep):
        for name in names:
            known_name(where, name, choices, "row" if choices is sweep.rows else "column")
    whole = sweep.compute is not None or all(row.value is not None for row in sweep.rows.values())
    for name, column in sweep.columns.items():
        if not whole and column.value is None and column.mean_of is None:
            raise ConfigError(
                f"columns.{name}.value: missing; expected a path into the record, such as"
                " dev/accuracy"
            )
    for (row, at), (key, values) in itertools.product(
        sweep.trained(), listed(sweep.select.judges).items()
    ):
        axis = [] if key in sweep.select.over else sweep.grid_of(row, at).get(key, [])
        if not set(values) & set(axis):
            raise ConfigError(
                f"select.judges: {sweep.select.judges}: {row}/{at} has {key}: {axis}; expected"
                " values of an axis of the grid that nothing chooses over, such as {seed: [0]}"
            )
    for i, claim in enumerate(sweep.claims):
        if (claim.above is None) == (claim.below is None):
            raise ConfigError(f"claims[{i}]: expected either above or below")


def references(sweep: Sweep) -> Iterator[tuple[str, Iterable[str], Mapping[str, object]]]:
    """(the key, the names that stand there, what they are names of): rows or columns."""
    yield "published", sweep.published, sweep.rows
    for row, values in sweep.published.items():
        yield f"published.{row}", values, sweep.columns
    for i, exception in enumerate(sweep.cells):
        yield f"cells[{i}].rows", exception.rows or [], sweep.rows
        yield f"cells[{i}].columns", exception.columns or [], sweep.columns
    for name, column in sweep.columns.items():
        yield f"columns.{name}.mean_of", column.mean_of or [], sweep.columns
    for i, plot in enumerate(sweep.plots):
        yield f"plots[{i}].rows", plot.rows or [], sweep.rows
        yield f"plots[{i}].columns", plot.columns or [], sweep.columns


def known_name(where: str, name: str, choices: Iterable[str], what: str) -> None:
    if name not in choices:
        raise ConfigError(
            f"{where}: {name}: there is no such {what}; {config.nearest(name, choices)}"
        )
