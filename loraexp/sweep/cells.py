"""A sweep as runs: the configuration of every grid point of every place of the table, composed and
checked."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraexp import config
from loraexp.config import ConfigError, Plain, search
from loraexp.sweep import composition
from loraexp.sweep.accepted import Accepted
from loraexp.sweep.schema import Sweep, key_of

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that a place of the table needs."""

    row: str
    column: str
    point: Plain  # its grid values, seed among them
    overrides: tuple[str, ...]  # what `loraexp` would be given
    plain: Plain  # the resolved configuration
    run_id: str
    folder: Path
    match: str  # of every run that is the same, wherever its data were read


# Keys whose value is checked by itself, whatever the others are: once is enough for all cells that
# have it.
ALONE = (
    "lr",
    "seed",
    "alpha",
    "train.batch_size",
    "train.epochs",
    "train.gradient_accumulation",
    "train.warmup_ratio",
    "train.weight_decay",
)


def expand(sweep: Sweep) -> list[Cell]:
    """Every run of every cell, rows first; raises ConfigError naming the cell that does not
    compose."""
    cells: list[Cell] = []
    composer = Composer()
    for row, column in sweep.trained():
        try:
            cells += expand_place(sweep, row, column, composer)
        except ConfigError as error:
            raise ConfigError(f"{sweep.path.name}: row {row}, column {column}: {error}") from error
    composer.accepted.keep()
    return cells


def expand_place(sweep: Sweep, row: str, column: str, composer: Composer) -> list[Cell]:
    """The runs of one place of the table."""
    grid = sweep.grid_of(row, column)
    before, after = sweep.overrides_of(row, column), sweep.overrides
    cells = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        overrides = tuple(
            last_wins(
                [*before, *(f"{key}={literal(value)}" for key, value in point.items()), *after]
            )
        )
        found = composer.composed(overrides, frozenset(grid))
        # `after` has the last word
        point = {key: lookup(found.plain, key, value) for key, value in point.items()}
        if sweep.runs(row, column, point):
            cells.append(
                Cell(row=row, column=column, point=point, overrides=overrides, **vars(found))
            )
    return cells


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A checked configuration and what follows from it."""

    plain: Plain
    run_id: str
    folder: Path
    match: str

    @classmethod
    def of(cls, plain: Plain) -> Composed:
        own = config.run_id(plain)
        return cls(
            plain=plain,
            run_id=own,
            folder=config.run_folder(plain, own),
            match=config.match_key(plain) if reads_a_folder(plain) else own,
        )


def reads_a_folder(plain: Mapping[str, object]) -> bool:
    """Whether it says where its data are read, which is what a match leaves out of an id."""
    return any(lookup(plain, key) is not None for key in config.WHERE)


class Composer:
    """The configurations of a sweep, each once: columns that read other values of the same runs
    share them.

    The files of a place are merged once, and the points of its grid put in. A point that differs
    from an earlier one in keys of ALONE is that one with these values, and what refers to them,
    replaced; every other is checked whole. What is more than a merge of files is composed by Hydra.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[str, ...], Composed] = {}
        # what Hydra composed, by the overrides that all points of a grid have
        self.shared: dict[tuple[str, ...], DictConfig] = {}
        self.checked: dict[tuple[str, ...], tuple[Plain, dict[tuple[str, ...], str]]] = {}
        self.accepted = Accepted()
        self.sound: set[str] = set()  # words of ALONE that a whole check has accepted

    def composed(self, overrides: tuple[str, ...], axes: frozenset[str]) -> Composed:
        """What `loraexp OVERRIDES` would run; raises ConfigError."""
        if overrides not in self.known:
            self.known[overrides] = Composed.of(
                self.quick(overrides, axes) or resolve(overrides, axes, self.shared)
            )
        return self.known[overrides]

    def quick(self, overrides: tuple[str, ...], axes: frozenset[str]) -> Plain | None:
        """The checked configuration without Hydra; None where that is not certain to be the
        same."""
        alone, rest = partition(overrides, lambda word: key_of(word) in axes and stands_alone(word))
        values = [(key_of(word), parsed(word)) for word in alone]
        if rest in self.checked and self.sound.issuperset(alone):
            plain, references = self.checked[rest]
            return replaced(plain, values, references)
        choices, others = partition(rest, of_groups)
        node = composition.merged(choices)
        node = (
            composition.with_values(node, [(key_of(word), parsed(word)) for word in others])
            if node is not None
            else None
        )
        node = composition.with_values(node, values) if node is not None else None
        found = composition.resolved(node) if node is not None else None
        if found is None:
            return None
        plain = self.accepted.checked(found[0])
        self.checked.setdefault(rest, (plain, found[1]))
        self.sound.update(alone)
        return plain


def stands_alone(word: str) -> bool:
    return key_of(word) in ALONE and word[0] not in "+~" and isinstance(parsed(word), (int, float))


def replaced(
    plain: Plain,
    values: Sequence[tuple[str, object]],
    references: Mapping[tuple[str, ...], str],
) -> Plain:
    """A checked configuration with other values of some keys, and of what refers to them."""
    for key, value in values:
        plain = composition.put(plain, tuple(key.split(".")), value)
        for path, source in references.items():
            if source == key:
                plain = composition.put(plain, path, value)
    return plain


def resolve(
    overrides: tuple[str, ...], axes: frozenset[str], shared: dict[tuple[str, ...], DictConfig]
) -> Plain:
    """The plain configuration of `loraexp OVERRIDES`, by Hydra.

    Files are composed once for each choice of them, and other values put in one by one. Those of
    `axes`, the grid's keys, are put into what the points of the grid share, where each point
    replaces all those of the one before.
    """
    common, own = partition(overrides, lambda word: key_of(word) not in axes or of_groups(word))
    if common not in shared:
        chosen, values = partition(common, of_groups)
        shared[common] = put(copy.deepcopy(composed(chosen, tuple(search.roots()))), values)
    return config.check(put(shared[common], own))[1]


def partition(
    words: tuple[str, ...], test: Callable[[str], bool]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(word for word in words if test(word)), tuple(
        word for word in words if not test(word)
    )


def of_groups(word: str) -> bool:
    """Whether an override chooses a file, or adds or removes keys, so that Hydra has to compose
    it."""
    return key_of(word) in config.GROUPS or word.startswith(("+", "~"))


def put(cfg: DictConfig, words: tuple[str, ...]) -> DictConfig:
    for word in words:
        update(cfg, key_of(word), parsed(word))
    return cfg


@functools.lru_cache(maxsize=1024)
def composed(chosen: tuple[str, ...], roots: tuple[Path, ...]) -> DictConfig:
    """What Hydra composes of these choices while these are the folders of groups."""
    return config.compose(chosen)


@functools.lru_cache(maxsize=4096)
def parsed(word: str) -> Any:
    """The value of `KEY=VALUE` as Hydra reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with config.translated():
        override = OverridesParser.create().parse_override(word)
        if override.is_sweep_override():
            raise ConfigError(
                f"{word}: expected one value; several are the sweep's grid, or a list in brackets"
            )
        return override.value()


def update(cfg: DictConfig, key: str, value: object) -> None:
    """Set an existing key of a composed configuration."""
    from omegaconf import OmegaConf

    with config.translated():
        if OmegaConf.select(cfg, key, default=cfg) is cfg:
            raise ConfigError(
                f"{key}: there is no such key; {config.nearest(key, config.known_keys(key))}"
            )
        OmegaConf.update(cfg, key, value)


def literal(value: object) -> str:
    """A value as Hydra's command line reads it."""
    return (
        "null"
        if value is None
        else json.dumps(value)
        if isinstance(value, (bool, list, dict))
        else str(value)
    )


def last_wins(overrides: Sequence[str]) -> list[str]:
    """Of several overrides of one key the last: a group may be chosen once only."""
    latest = {key_of(word): i for i, word in enumerate(overrides)}
    return [word for i, word in enumerate(overrides) if latest[key_of(word)] == i]


def lookup(plain: Mapping[str, object], key: str, default: Any = None) -> Any:
    """The value of a dotted key of a resolved configuration; of a group, the name of its file."""
    node: object = plain
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node.get("name", default) if isinstance(node, dict) and key in config.GROUPS else node
