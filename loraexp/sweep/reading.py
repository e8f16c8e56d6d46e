"""Files of `sweeps/`, and of the user's own: read, patched by a variant, checked; every mistake is
one line."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from loraexp import config
from loraexp.config import ConfigError, boundary, search
from loraexp.machine.files import Damaged
from loraexp.machine.notation import read_yaml
from loraexp.sweep.schema import (
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


def names() -> list[str]:
    return sorted({path.stem for place in search.sweeps() for path in place.glob("*.yaml")})


def file_of(name: str) -> Path:
    """The yaml of a sweep by its name; a path that is not there where there is none."""
    paths = [place / f"{name}.yaml" for place in search.sweeps()]
    return next((path for path in paths if path.is_file()), paths[0])


def about(name: str) -> str:
    """The first comment of a sweep: what it is, in one line."""
    lines = file_of(name).read_text().splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")


def load(name: str, variant: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep `sweeps/NAME.yaml`, or of a yaml file of the user's own; raises ConfigError naming
    file and place."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else file_of(name)
    if not path.is_file():
        raise ConfigError(
            f"{name}: there is no sweep of that name and no such file;"
            f" {config.nearest(name, names(), 'sweeps')}"
        )
    try:
        content = read_yaml(path, dict)
    except Damaged as error:
        raise ConfigError(f"{error}; expected keys such as title, rows and columns") from error
    try:
        return read(content, path, variant, list(overrides))
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


# Where results go and who else is told: keys that concern no number, which a sweep without runs
# takes as every other does.
ALL_TAKE = (
    "output_root",
    "cache_root",
    "wandb.mode",
    "wandb.project",
    "wandb.entity",
    "wandb.group",
)
FILE_KEYS = {f.name for f in dataclasses.fields(Sweep)} - {
    "name",
    "variant",
    "means",
    "path",
    "overrides",
    "extend",
    "chosen",
}


def read(content: dict[str, Any], path: Path, variant: str | None, overrides: list[str]) -> Sweep:
    boundary.refuse_unsafe(content, path.name)
    for key in content:
        if key not in FILE_KEYS:
            raise ConfigError(f"{key}: there is no such key; {config.nearest(str(key), FILE_KEYS)}")
    for key in ("title", "paper", "artifact", "kind"):
        if not isinstance(content.get(key), str):
            raise ConfigError(f"{key}: missing; expected a word")
    content = copy.deepcopy(content)
    variants = {
        name: config.build(Variant, patch, f"variants.{name}")
        for name, patch in (content.pop("variants", None) or {}).items()
    }
    own: list[str] = []
    if variant is not None:
        if variant not in variants:
            there_are = config.nearest(variant, variants) if variants else "it has none"
            raise ConfigError(f"variant {variant}: there is no such variant; {there_are}")
        own = apply(variants[variant], content)
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
        base=content.get("base") or [],
        overrides=own + overrides,
        grid=listed(
            {key: values for key, values in (content.get("grid") or {}).items() if key != "extend"}
        ),
        extend=extension(content.get("grid") or {}),
        rows=each(Row, content, "rows"),
        columns=each(Column, content, "columns"),
        cells=several(Special, content, "cells"),
        select=selection(content.get("select") or {}, own + overrides),
        report=config.build(Report, content.get("report") or {}, "report"),
        published=content.get("published") or {},
        settings=content.get("settings") or {},
        deviations=content.get("deviations") or [],
        hours=config.build(Hours, content["hours"], "hours") if content.get("hours") else None,
        plots=several(Plot, content, "plots"),
        claims=several(Claim, content, "claims"),
        compute=patched(content.get("compute"), overrides),
        variants=list(variants),
    )
    check(sweep)
    return sweep


def selection(content: dict[str, Any], overrides: list[str]) -> Select:
    """`select`; an axis that an override makes one value has none left that could choose."""
    select: Select = config.build(Select, content, "select")
    fixed = {key_of(word) for word in overrides}
    judges = {key: values for key, values in select.judges.items() if key not in fixed}
    return dataclasses.replace(select, judges=judges)


def extension(grid: dict[str, Any]) -> dict[str, int]:
    """`grid.extend`: keys of the grid with how many values more they may get."""
    found = grid.get("extend") or {}
    for key, most in found.items() if isinstance(found, dict) else [("", None)]:
        if key not in grid or not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise ConfigError(
                f"grid.extend: {found}: expected keys of the grid with whole numbers, such as"
                " {lr: 3}"
            )
    return dict(found)


def patched(compute: dict[str, Any] | None, overrides: list[str]) -> dict[str, Any] | None:
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


def each(kind: type, content: dict[str, Any], key: str) -> dict[str, Any]:
    return {
        str(name): config.build(kind, values or {}, f"{key}.{name}")
        for name, values in (content.get(key) or {}).items()
    }


def several(kind: type, content: dict[str, Any], key: str) -> list[Any]:
    return [
        config.build(kind, values or {}, f"{key}[{i}]")
        for i, values in enumerate(content.get(key) or [])
    ]


def apply(variant: Variant, content: dict[str, Any]) -> list[str]:
    """Patch a sweep's content; returns the variant's last overrides."""
    content["base"] = (content.get("base") or []) + variant.base
    content["grid"] = (content.get("grid") or {}) | variant.grid
    gone: dict[str, set[str]] = {}
    for key, keep, patch in (
        ("rows", variant.keep_rows, variant.rows),
        ("columns", variant.keep_columns, variant.columns),
    ):
        found = content.get(key) or {}
        for name in keep or []:
            if name not in found:
                raise ConfigError(
                    f"variants: keep_{key}: {name}: there is no such name;"
                    f" {config.nearest(name, found)}"
                )
        kept = {name: found[name] for name in (found if keep is None else keep)}
        content[key] = kept | {
            name: (kept.get(name) or {}) | values for name, values in patch.items()
        }
        gone[key] = set(found) - set(content[key])
    if variant.compute:
        content["compute"] = (content.get("compute") or {}) | variant.compute
    content["cells"] = [*narrowed(content), *variant.cells]
    content["report"] = (content.get("report") or {}) | variant.report
    content["select"] = (content.get("select") or {}) | variant.select
    content["hours"] = variant.hours
    content["deviations"] = (content.get("deviations") or []) + variant.deviations
    published = (content.get("published") or {}) if variant.published else {}
    content["published"] = {
        row: {column: value for column, value in values.items() if column in content["columns"]}
        for row, values in published.items()
        if row in content["rows"]
    }
    for claim in list(content.get("claims") or []):
        named = [claim.get(k) for k in ("value", "minus", "over") if claim.get(k)]
        if any(
            row in gone["rows"] or column in gone["columns"]
            for row, column, *_ in (f"{name}/".split("/") for name in named)
        ):
            content["claims"].remove(claim)
    content["claims"] = [*(content.get("claims") or []), *variant.claims]
    for plot in content.get("plots") or []:
        for key in ("rows", "columns"):
            if plot.get(key):
                plot[key] = [name for name in plot[key] if name in content[key]]
    return variant.overrides


def narrowed(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The exceptions of a sweep whose rows or columns a variant has left out: for what remains of
    them."""
    kept = []
    for exception in content.get("cells") or []:
        left = {
            key: (
                None
                if exception.get(key) is None
                else [name for name in exception[key] if name in content[key]]
            )
            for key in ("rows", "columns")
        }
        if all(names is None or names for names in left.values()):
            kept.append(exception | left)
    return kept


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
    for (row, column), (key, values) in itertools.product(
        sweep.trained(), listed(sweep.select.judges).items()
    ):
        axis = [] if key in sweep.select.over else sweep.grid_of(row, column).get(key, [])
        if not set(values) & set(axis):
            raise ConfigError(
                f"select.judges: {sweep.select.judges}: {row}/{column} has {key}: {axis}; expected"
                " values of an axis of the grid that nothing chooses over, such as {seed: [0]}"
            )
    for i, claim in enumerate(sweep.claims):
        if (claim.above is None) == (claim.below is None):
            raise ConfigError(f"claims[{i}]: expected either above or below")


def references(sweep: Sweep) -> Iterator[tuple[str, Iterable[str], Mapping[str, Any]]]:
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


def known_name(where: str, name: str, choices: Any, what: str) -> None:
    if name not in choices:
        raise ConfigError(
            f"{where}: {name}: there is no such {what}; {config.nearest(name, choices)}"
        )


# --------------------------------------------------------------------------------------------------
# comparing


EQUAL = "equal_conditions"


def comparison(
    mine: Sequence[str],
    against: Sequence[str],
    overrides: Sequence[str],
    variant: str | None = None,
) -> Sweep:
    """`sweeps/equal_conditions.yaml` with rows of one's own first, beside those named (none: all of
    its rows).

    A row of one's own is an initializer, a method, or `KEY=VALUE` words joined by commas
    (`init=mine,optimizer=p_lora`). Raises: ConfigError for a name that is none.
    """
    path = config.folder("sweeps") / f"{EQUAL}.yaml"
    content: dict[str, Any] = read_yaml(path, dict)
    rows = content["rows"]
    for name in against:
        known_name("--against", name, rows, "row")
    kept = {name: rows[name] for name in against} if against else dict(rows)
    own = {
        name.replace("=", "_").replace(",", "-"): {"label": name, "overrides": own_words(name)}
        for name in mine
    }
    content["rows"] = own | {name: row for name, row in kept.items() if name not in own}
    words = {key_of(word): word for word in overrides}
    for patch in content["variants"].values():
        if patch.get("keep_rows") is not None:
            patch["keep_rows"] = list(content["rows"]) if against else [*own, *patch["keep_rows"]]
    if "task" in words:
        task, first = words["task"].partition("=")[2], next(iter(content["columns"]))
        content["columns"] = columns_of(content["columns"], task)
        content["plots"] = plots_of(content.get("plots") or [], content["columns"], first, task)
        for patch in content["variants"].values():
            kept_columns = [
                name.replace(first, task, 1) for name in patch.get("keep_columns") or []
            ]
            if kept_columns:
                patch["keep_columns"] = [
                    name for name in kept_columns if name in content["columns"]
                ]
    return read(content, path, variant, list(overrides))


def own_words(name: str) -> list[str]:
    if "=" in name:
        return name.split(",")
    for group in ("init", "method"):
        if name in config.names(group):
            return [f"{group}={name}"]
    near = config.nearest(name, [*config.names("init"), *config.names("method")])
    raise ConfigError(f"compare {name}: there is no initializer and no method of that name; {near}")


def columns_of(columns: dict[str, Any], task: str) -> dict[str, Any]:
    """The columns of a task; of one that the file has none for, those of its first task, read of
    this one."""
    own = {
        name: column for name, column in columns.items() if f"task={task}" in column["overrides"]
    }
    if own:
        return own
    key, first = next(iter(columns.items()))
    word = next(word for word in first["overrides"] if word.startswith("task="))
    found = {}
    for name, column in columns.items():
        if word in column["overrides"]:
            others = [f"task={task}", *(other for other in column["overrides"] if other != word)]
            label = column["label"].replace(first["label"], task)
            found[name.replace(key, task, 1)] = {**column, "label": label, "overrides": others}
    return found


def plots_of(
    plots: list[dict[str, Any]], columns: dict[str, Any], first: str, task: str
) -> list[dict[str, Any]]:
    """The plots of what is left of the columns; those of the first task, of this one in its
    place."""

    def here(name: str) -> str:
        return name if name in columns else name.replace(first, task, 1)

    kept = []
    for plot in plots:
        drawn = plot | {
            key: here(plot[key])
            for key in ("x", "y")
            if plot.get("kind") == "scatter" and key in plot
        }
        left = [here(name) for name in plot.get("columns") or []]
        left = list(dict.fromkeys(name for name in left if name in columns))
        ends = [drawn[key] for key in ("x", "y") if drawn.get("kind") == "scatter" and key in drawn]
        if (left or not plot.get("columns")) and all(
            "/" in name or name in columns for name in ends
        ):
            kept.append(drawn | ({"columns": left} if left else {}))
    return kept
