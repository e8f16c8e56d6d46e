"""One table or figure of a paper as data: what a file of `sweeps/` may hold, and what follows from
it.

A sweep says what is run (base, rows, columns, grid: all of them overrides of the configuration),
which value is read from a run's record, which grid value is chosen and by what, what the paper
printed and stated, and what is drawn and claimed. Variants are the same artifact under other means:
`smoke` is a tiny model on a few rows. A sweep with `compute` is an experiment without runs: one
function whose values and curves take the place of the records.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from loraexp import config
from loraexp.config import Plain
from loraexp.config.paths import unquoted
from loraexp.sweep import composition

Grid: TypeAlias = dict[str, list[Any]]  # key → the values that it takes
# Who else is told, and what is kept: keys of a run that concern no number.
OF_RUNS = ("cache_root", "wandb.mode", "wandb.project", "wandb.entity", "wandb.group")


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a number is printed: records hold fractions and SI units, tables print what the paper
    prints."""

    # percent | fraction | seconds | minutes | hours | MiB | GiB | count | million | ratio | any
    # other word, as it is
    unit: str = "percent"
    digits: int = 2
    goal: Literal["max", "min", "none"] = "max"  # which is the best of a column
    spread: Literal["std", "none"] = "std"


@dataclass(frozen=True, kw_only=True)
class Row:
    label: str
    group: str | None = None  # a heading that several rows share: a model, a rank
    overrides: list[str] = field(default_factory=list)
    grid: Plain = field(default_factory=dict)  # in place of the sweep's values, key by key
    # what the paper states of this row alone
    settings: Plain = field(default_factory=dict)
    skip: str | None = None  # why nothing is run: a row that the paper quotes from elsewhere
    value: str | None = None  # in place of the column's, where a row reads another value
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    label: str
    overrides: list[str] = field(default_factory=list)
    grid: Plain = field(default_factory=dict)
    settings: Plain = field(default_factory=dict)
    # `split/metric`, `cost/init_seconds`, `parameters/trainable`: a path into the record, or `A +
    # B`
    value: str | None = None
    # the value as it was logged at the end of this epoch, instead of the end of the run
    epoch: float | None = None
    mean_of: list[str] | None = None  # the mean of other columns of the row, seed by seed
    unit: str | None = None  # in place of the report's
    digits: int | None = None
    goal: Literal["max", "min", "none"] | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Special:
    """Overrides, another grid or a reason to skip, for the cells of some rows and columns (null:
    all of them)."""

    rows: list[str] | None = None
    columns: list[str] | None = None
    overrides: list[str] = field(default_factory=list)
    grid: Plain = field(default_factory=dict)
    skip: str | None = None
    widens: bool = False  # not of a file: a grid that grew beyond an edge (grid.extend)


@dataclass(frozen=True, kw_only=True)
class Select:
    """Which point of the grid is reported: the best by a validation value, averaged over the other
    axes."""

    over: list[str] = field(default_factory=lambda: ["lr"])
    by: str = "best/value"
    goal: Literal["max", "min"] = "max"
    # values of other axes that alone choose, such as {seed: [0]}: the rest run at the chosen point
    # only; null: all of them choose
    judges: Plain = field(default_factory=dict)

    def chooses(self, point: Mapping[str, object]) -> bool:
        """Whether a run at this point of the grid is one of those that choose."""
        return all(point.get(key) in values for key, values in listed(self.judges).items())


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture. `curve`: a logged value against step or epoch, with a band over seeds ·
    `against`: the cells' values against a grid key · `bar` · `scatter`: one value against another ·
    `histogram` · `series`, `surface`: what a computed sweep returned, by panel."""

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

    Names are those of a computed sweep's values, or of a cell: `row/column` (mean over seeds at the
    chosen point), `row/column/mean_over_lr`, `row/column/worst_over_lr`, `row/column/std` (any grid
    key for lr).
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
    grid: Plain = field(default_factory=dict)
    keep_rows: list[str] | None = None
    keep_columns: list[str] | None = None
    rows: Plain = field(default_factory=dict)  # new rows, or keys of old ones
    columns: Plain = field(default_factory=dict)
    cells: list[Plain] = field(default_factory=list)
    compute: Plain = field(default_factory=dict)
    report: Plain = field(default_factory=dict)
    select: Plain = field(default_factory=dict)
    claims: list[Plain] = field(default_factory=list)  # more of them
    plots: list[Plain] = field(default_factory=list)  # more of them, or others of the same names
    hours: Plain | None = None
    deviations: list[str] = field(default_factory=list)
    # false: the paper's numbers are not comparable, and are not printed beside ours
    published: bool = True


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
    typed: list[str]  # of these the user's
    grid: Grid
    # key of the grid → how many values a place may get beyond its edges (`grid.extend`)
    extend: dict[str, int]
    rows: dict[str, Row]
    columns: dict[str, Column]
    cells: list[Special]
    select: Select
    report: Report
    published: dict[str, Plain]  # row → column → number, or [mean, std]
    settings: Plain  # what the paper states, by configuration key
    deviations: list[str]
    hours: Hours | None
    plots: list[Plot]
    claims: list[Claim]
    compute: Plain | None
    variants: list[str]
    # what `select.judges` has chosen so far, by row and column
    chosen: dict[tuple[str, str], Plain] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What a result of this sweep is filed under: `cg_lora_table1`, `cg_lora_table1-smoke`."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def words(self) -> str:
        """What it is called on the command line: `cg_lora_table1 --variant smoke`, or the path of a
        file of the user's own, and what was typed behind it."""
        name = self.name if self.path.parent in config.search.sweeps() else str(self.path)
        variant = ["--variant", self.variant] if self.variant else []
        return shlex.join([name, *variant, *self.typed])

    @property
    def place(self) -> str:
        """Where it stands in its paper, and under which other means: `cg_lora table1, variant
        smoke: a tiny model`."""
        return f"{self.paper} {self.artifact}" + (
            f", variant {self.variant}: {self.means}" if self.variant else ""
        )

    @property
    def heading(self) -> str:
        """What its table shows: a variant's is headed by its own means, for the artifact's title
        names another model or task."""
        means = self.means or ""
        return (
            f"{means[:1].upper()}{means[1:]} (in place of: {self.title})" if means else self.title
        )

    @cached_property
    def output_root(self) -> Path:
        """Where its results are: the user's `output_root=DIR`, or where its runs go by their
        experiment."""
        words = [*self.base, *self.overrides]
        return root_of(words) or absolute(composition.usual(words, "output_root"))

    def label_of(self, row: str) -> str:
        """A row's label, with its group where another row has the same label."""
        own = self.rows[row]
        alone = [other.label for other in self.rows.values()].count(own.label) == 1
        return own.label if alone or not own.group else f"{own.label} [{own.group}]"

    def report_of(self, column: str) -> Report:
        own = {k: getattr(self.columns[column], k) for k in ("unit", "digits", "goal")}
        return dataclasses.replace(self.report, **{k: v for k, v in own.items() if v is not None})

    def skipped(self, row: str, column: str) -> str | None:
        """Why a cell is not run, or None."""
        reasons = [self.rows[row].skip, *(e.skip for e in self.exceptions(row, column))]
        return next((reason for reason in reasons if reason is not None), None)

    def exceptions(self, row: str, column: str) -> Iterator[Special]:
        for exception in self.cells:
            if row in (exception.rows or self.rows) and column in (
                exception.columns or self.columns
            ):
                yield exception

    def stated(self, row: str, column: str) -> Plain:
        """What the paper states of a cell, by configuration key."""
        return self.settings | self.columns[column].settings | self.rows[row].settings

    def grid_of(self, row: str, column: str) -> Grid:
        grid = self.grid | listed(self.columns[column].grid) | listed(self.rows[row].grid)
        for exception in self.exceptions(row, column):
            grid = grid | listed(exception.grid)
        return grid

    def runs(self, row: str, column: str, point: Mapping[str, object]) -> bool:
        """Whether a point of the grid is to be run: it chooses (`select.judges`) or was chosen."""
        if self.select.chooses(point):
            return True
        chosen = self.chosen.get((row, column))
        return chosen is not None and all(point.get(key) == chosen[key] for key in chosen)

    def whole(self) -> Sweep:
        """With as many runs as it will have: the first point of every grid that is still to
        choose."""
        first = {
            (row, column): {
                key: values[0]
                for key, values in self.grid_of(row, column).items()
                if key in self.select.over
            }
            for row, column in (self.trained() if self.select.judges else ())
        }
        return dataclasses.replace(self, chosen=first | self.chosen)

    def overrides_of(self, row: str, column: str) -> list[str]:
        """What a place is, before its grid and `overrides`: base, row, column, exceptions; of one
        key the last counts."""
        words = [*self.base, *self.rows[row].overrides, *self.columns[column].overrides]
        return words + [
            word for exception in self.exceptions(row, column) for word in exception.overrides
        ]

    def trained(self) -> Iterator[tuple[str, str]]:
        """The (row, column) that runs make: neither skipped nor a mean of others."""
        for row, column in itertools.product(self.rows, self.columns):
            if self.columns[column].mean_of is None and self.skipped(row, column) is None:
                yield row, column


def listed(grid: Plain) -> Grid:
    """Every axis as a list: one value is a list of one."""
    return {key: value if isinstance(value, list) else [value] for key, value in grid.items()}


def absolute(folder: str) -> Path:
    return Path(folder).expanduser().absolute()


def root_of(overrides: Sequence[str]) -> Path | None:
    """The output_root that overrides name, if they do: the last one counts."""
    named = [word.partition("=")[2] for word in overrides if key_of(word) == "output_root"]
    return absolute(unquoted(named[-1])) if named else None


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
