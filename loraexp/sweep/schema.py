"""`sweeps/*.yaml`: one table or figure of a paper as data, read, checked and expanded to runs.

A sweep says what is run (base, rows, columns, grid: all of them overrides of the configuration), which value is read from a run's
record, which grid value is chosen and by what, what the paper printed and stated, and what is drawn and claimed. Variants are
the same artifact under other means: `smoke` is a tiny model on a few rows. A sweep with `compute` is an experiment
without runs: one function whose values and curves take the place of the records.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from loraexp import config
from loraexp.config import ConfigError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same reader in C, several times faster


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a number is printed: records hold fractions and SI units, tables print what the paper prints."""

    unit: str = "percent"  # percent | fraction | seconds | minutes | hours | MiB | GiB | count | million | ratio | any other word, as it is
    digits: int = 2
    goal: Literal["max", "min", "none"] = "max"  # which is the best of a column
    spread: Literal["std", "none"] = "std"


@dataclass(frozen=True, kw_only=True)
class Row:
    label: str
    group: str | None = None  # a heading that several rows share: a model, a rank
    overrides: list[str] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)  # in place of the sweep's values, key by key
    settings: dict[str, Any] = field(default_factory=dict)  # what the paper states of this row alone
    skip: str | None = None  # why nothing is run: a row that the paper quotes from elsewhere
    value: str | None = None  # in place of the column's, where a row reads another value
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    label: str
    overrides: list[str] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    value: str | None = None  # `split/metric`, `cost/init_seconds`, `parameters/trainable`: a path into the record, or `A + B`
    epoch: float | None = None  # the value as it was logged at the end of this epoch, instead of the end of the run
    mean_of: list[str] | None = None  # the mean of other columns of the row, seed by seed
    unit: str | None = None  # in place of the report's
    digits: int | None = None
    goal: Literal["max", "min", "none"] | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Special:
    """Overrides, another grid or a reason to skip, for the cells of some rows and columns (null: all of them)."""

    rows: list[str] | None = None
    columns: list[str] | None = None
    overrides: list[str] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)
    skip: str | None = None


@dataclass(frozen=True, kw_only=True)
class Select:
    """Which point of the grid is reported: the best by a validation value, averaged over the other axes."""

    over: list[str] = field(default_factory=lambda: ["lr"])
    by: str = "best/value"
    goal: Literal["max", "min"] = "max"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture. `curve`: a logged value against step or epoch, with a band over seeds · `against`: the cells' values
    against a grid key · `bar` · `scatter`: one value against another · `histogram` · `series`, `surface`: what a computed
    sweep returned, by panel."""

    name: str
    kind: Literal["curve", "against", "bar", "scatter", "histogram", "series", "surface"]
    x: str | None = None  # step | epoch | a grid key | a value's path
    y: str | None = None  # loss | a value's path
    rows: list[str] | None = None
    columns: list[str] | None = None  # a panel each
    panels: list[str] | None = None  # of a computed sweep, in order; null: all
    x_label: str | None = None
    y_label: str | None = None
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    band: Literal["std", "ci95", "none"] = "std"
    smooth: int = 1  # a running mean over so many logged values
    best_only: bool = True  # curves of the chosen grid point alone
    title: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper as a number: `value [− minus] [/ over]` against a threshold.

    Names are those of a computed sweep's values, or of a cell: `row/column` (mean over seeds at the chosen point),
    `row/column/mean_over_lr`, `row/column/worst_over_lr`, `row/column/std` (any grid key for lr).
    """

    text: str
    value: str
    minus: str | None = None
    over: str | None = None
    above: float | None = None
    below: float | None = None
    source: str | None = None  # where the paper says it


@dataclass(frozen=True, kw_only=True)
class Hours:
    hardware: str  # one named accelerator, or 2 CPU cores
    hours: float
    how: str  # where the figure comes from


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A patch: what it keeps, adds and replaces."""

    about: str
    base: list[str] = field(default_factory=list)  # after the sweep's base
    overrides: list[str] = field(default_factory=list)  # after everything else of the sweep
    grid: dict[str, Any] = field(default_factory=dict)
    keep_rows: list[str] | None = None
    keep_columns: list[str] | None = None
    rows: dict[str, Any] = field(default_factory=dict)  # new rows, or keys of old ones
    columns: dict[str, Any] = field(default_factory=dict)
    cells: list[Any] = field(default_factory=list)
    compute: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    select: dict[str, Any] = field(default_factory=dict)
    hours: dict[str, Any] | None = None
    deviations: list[str] = field(default_factory=list)
    published: bool = True  # false: the paper's numbers are not comparable, and are not printed beside ours


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One artifact, checked: every name that it refers to exists."""

    name: str
    variant: str | None
    means: str | None  # the variant's `about`: under which other means
    path: Path
    title: str
    paper: str
    artifact: str
    kind: Literal["table", "figure"]
    base: list[str]
    overrides: list[str]  # the variant's and the user's, after everything else
    grid: dict[str, list[Any]]
    rows: dict[str, Row]
    columns: dict[str, Column]
    cells: list[Special]
    select: Select
    report: Report
    published: dict[str, dict[str, Any]]  # row → column → number, or [mean, std]
    settings: dict[str, Any]  # what the paper states, by configuration key
    deviations: list[str]
    hours: Hours | None
    plots: list[Plot]
    claims: list[Claim]
    compute: dict[str, Any] | None
    variants: list[str]

    @property
    def key(self) -> str:
        """What a result of this sweep is filed under: `cg_lora_table1`, `cg_lora_table1-smoke`."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def words(self) -> str:
        """What it is called on the command line: `cg_lora_table1 --variant smoke`, or the path of a file of the user's own."""
        name = self.name if self.path.parent == config.folder("sweeps") else str(self.path)
        return f"{name} --variant {self.variant}" if self.variant else name

    @property
    def place(self) -> str:
        """Where it stands in its paper, and under which other means: `cg_lora table1, variant smoke: a tiny model`."""
        return f"{self.paper} {self.artifact}" + (f", variant {self.variant}: {self.means}" if self.variant else "")

    @property
    def output_root(self) -> Path:
        """Where its results are: the user's `output_root=DIR`, or outputs."""
        said = [word.partition("=")[2] for word in self.overrides if key_of(word) == "output_root"]
        return Path(said[-1] if said else "outputs").expanduser().absolute()

    def report_of(self, column: str) -> Report:
        own = {k: getattr(self.columns[column], k) for k in ("unit", "digits", "goal")}
        return dataclasses.replace(self.report, **{k: v for k, v in own.items() if v is not None})

    def skipped(self, row: str, column: str) -> str | None:
        """Why a cell is not run, or None."""
        reasons = [self.rows[row].skip, *(e.skip for e in self.exceptions(row, column))]
        return next((reason for reason in reasons if reason is not None), None)

    def exceptions(self, row: str, column: str) -> Iterator[Special]:
        for exception in self.cells:
            if row in (exception.rows or self.rows) and column in (exception.columns or self.columns):
                yield exception

    def stated(self, row: str, column: str) -> dict[str, Any]:
        """What the paper states of a cell, by configuration key."""
        return self.settings | self.columns[column].settings | self.rows[row].settings

    def grid_of(self, row: str, column: str) -> dict[str, list[Any]]:
        grid = self.grid | listed(self.columns[column].grid) | listed(self.rows[row].grid)
        for exception in self.exceptions(row, column):
            grid = grid | listed(exception.grid)
        return grid

    def overrides_of(self, row: str, column: str) -> list[str]:
        """What a place is, before its grid and `overrides`: base, row, column, exceptions; of one key the last counts."""
        words = [*self.base, *self.rows[row].overrides, *self.columns[column].overrides]
        return words + [word for exception in self.exceptions(row, column) for word in exception.overrides]

    def trained(self) -> Iterator[tuple[str, str]]:
        """The (row, column) that runs make: neither skipped nor a mean of others."""
        for row, column in itertools.product(self.rows, self.columns):
            if self.columns[column].mean_of is None and self.skipped(row, column) is None:
                yield row, column


# ---------------------------------------------------------------------------------------------------- reading


def names() -> list[str]:
    return sorted(path.stem for path in config.folder("sweeps").glob("*.yaml"))


def about(name: str) -> str:
    """The first comment of a sweep: what it is, in one line."""
    lines = (config.folder("sweeps") / f"{name}.yaml").read_text().splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")


def load(name: str, variant: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep `sweeps/NAME.yaml`, or of a yaml file of the user's own; raises ConfigError naming file and place."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else config.folder("sweeps") / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{name}: there is no sweep of that name and no such file; {config.nearest(name, names())}")
    try:
        content = yaml.load(path.read_text(), Loader=LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not a yaml file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: expected keys such as title, rows and columns")
    try:
        return read(content, path, variant, list(overrides))
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


FILE_KEYS = {f.name for f in dataclasses.fields(Sweep)} - {"name", "variant", "means", "path", "overrides"}


def read(content: dict[str, Any], path: Path, variant: str | None, overrides: list[str]) -> Sweep:
    for key in content:
        if key not in FILE_KEYS:
            raise ConfigError(f"{key}: there is no such key; {config.nearest(str(key), FILE_KEYS)}")
    for key in ("title", "paper", "artifact", "kind"):
        if not isinstance(content.get(key), str):
            raise ConfigError(f"{key}: missing; expected a word")
    content = copy.deepcopy(content)
    variants = {name: config.build(Variant, patch, f"variants.{name}") for name, patch in (content.pop("variants", None) or {}).items()}
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
        grid=listed(content.get("grid") or {}),
        rows=each(Row, content, "rows"),
        columns=each(Column, content, "columns"),
        cells=several(Special, content, "cells"),
        select=config.build(Select, content.get("select") or {}, "select"),
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


def patched(compute: dict[str, Any] | None, overrides: list[str]) -> dict[str, Any] | None:
    """The keywords of a computed sweep with the user's `compute.KEY=VALUE` put in; other keys but output_root are not its."""
    if compute is None:
        return None
    compute = dict(compute)
    for word in overrides:
        key, equals, value = word.partition("=")
        if key == "output_root":
            continue
        if not equals or not key.startswith("compute."):
            raise ConfigError(f"{word}: expected compute.KEY=VALUE or output_root=DIR: this sweep is computed, it has no runs")
        compute[key.removeprefix("compute.")] = yaml.safe_load(value)
    return compute


def listed(grid: dict[str, Any]) -> dict[str, list[Any]]:
    """Every axis as a list: one value is a list of one."""
    return {key: value if isinstance(value, list) else [value] for key, value in grid.items()}


def each(kind: type, content: dict[str, Any], key: str) -> dict[str, Any]:
    return {str(name): config.build(kind, values or {}, f"{key}.{name}") for name, values in (content.get(key) or {}).items()}


def several(kind: type, content: dict[str, Any], key: str) -> list[Any]:
    return [config.build(kind, values or {}, f"{key}[{i}]") for i, values in enumerate(content.get(key) or [])]


def apply(variant: Variant, content: dict[str, Any]) -> list[str]:
    """Patch a sweep's content; returns the variant's last overrides."""
    content["base"] = (content.get("base") or []) + variant.base
    content["grid"] = (content.get("grid") or {}) | variant.grid
    gone: dict[str, set[str]] = {}
    for key, keep, patch in (("rows", variant.keep_rows, variant.rows), ("columns", variant.keep_columns, variant.columns)):
        found = content.get(key) or {}
        for name in keep or []:
            if name not in found:
                raise ConfigError(f"variants: keep_{key}: {name}: there is no such name; {config.nearest(name, found)}")
        kept = {name: found[name] for name in (found if keep is None else keep)}
        content[key] = kept | {name: (kept.get(name) or {}) | values for name, values in patch.items()}
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
        if any(row in gone["rows"] or column in gone["columns"] for row, column, *_ in (f"{name}/".split("/") for name in named)):
            content["claims"].remove(claim)
    for plot in content.get("plots") or []:
        for key in ("rows", "columns"):
            if plot.get(key):
                plot[key] = [name for name in plot[key] if name in content[key]]
    return variant.overrides


def narrowed(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The exceptions of a sweep whose rows or columns a variant has left out: for what remains of them."""
    kept = []
    for exception in content.get("cells") or []:
        left = {
            key: None if exception.get(key) is None else [name for name in exception[key] if name in content[key]]
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
    for row, values in sweep.published.items():
        known_name("published", row, sweep.rows, "row")
        for name in values:
            known_name(f"published.{row}", name, sweep.columns, "column")
    for i, exception in enumerate(sweep.cells):
        for row in exception.rows or []:
            known_name(f"cells[{i}].rows", row, sweep.rows, "row")
        for name in exception.columns or []:
            known_name(f"cells[{i}].columns", name, sweep.columns, "column")
    for name, column in sweep.columns.items():
        for other in column.mean_of or []:
            known_name(f"columns.{name}.mean_of", other, sweep.columns, "column")
        if sweep.compute is None and column.value is None and column.mean_of is None and any(r.value is None for r in sweep.rows.values()):
            raise ConfigError(f"columns.{name}.value: missing; expected a path into the record, such as dev/accuracy")
    for i, plot in enumerate(sweep.plots):
        for key, choices in (("rows", sweep.rows), ("columns", sweep.columns)):
            for name in getattr(plot, key) or []:
                known_name(f"plots[{i}].{key}", name, choices, key.removesuffix("s"))
    for i, claim in enumerate(sweep.claims):
        if (claim.above is None) == (claim.below is None):
            raise ConfigError(f"claims[{i}]: expected either above or below")


def known_name(where: str, name: str, choices: Any, what: str) -> None:
    if name not in choices:
        raise ConfigError(f"{where}: {name}: there is no such {what}; {config.nearest(name, choices)}")


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
