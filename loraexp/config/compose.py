"""Files of the configuration, and what Hydra composes of them; Hydra's exceptions in one line of
ours.

Hydra and OmegaConf are imported where they are used: what only names the choices starts without
them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraexp.config import search
from loraexp.config.component import signature_of, target
from loraexp.config.errors import ConfigError, behind, nearest
from loraexp.config.paths import quoted
from loraexp.config.settings import Plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What other tools call the keys.
SPELLINGS = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "train.eval_batch_size",
    "batch_size": "train.batch_size",
    "lora_alpha": "alpha",
    "r": "rank",
    "lora_r": "rank",
    "lora_dropout": "dropout",
    "dataset": "task",
    "output_dir": "output_root",
    "target_modules": "targets",
    "gradient_accumulation_steps": "gradient_accumulation",
    "warmup": "warmup_ratio",
    "grad_clip": "max_grad_norm",
}
WITH_TARGET = ("task", "init", "optimizer")  # groups whose keys are keywords of a function
GROUPS = ("model", "task", "init", "optimizer", "method", "experiment")


def names(group: str) -> list[str]:
    """The choices of a configuration group: its yaml files, ours and the user's."""
    return search.names(root / group for root in search.roots())


def file_of(group: str, name: str) -> Path:
    """The yaml of a choice; a path that is not there where there is none."""
    return search.file_of((root / group for root in search.roots()), name)


def about(group: str, name: str) -> str:
    """The first comment of a file of a configuration group: what it is, in one line."""
    return search.about(file_of(group, name))


def read_yaml(group: str, name: str) -> Plain:
    """One file of a configuration group as it is written."""
    return _read(file_of(group, name))


def base() -> Plain:
    """`conf/config.yaml` as it is written: every key that no group has to itself."""
    return _read(search.folder("conf") / "config.yaml")


def _read(path: Path) -> Plain:
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration that `loraexp OVERRIDES` would run with."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(search.folder("conf")), version_base="1.3"), translated():
        return hydra_compose("config", overrides=[*search.overrides(), *overrides])


class translated:  # noqa: N801 - reads as `with translated():`
    """Turn Hydra's and OmegaConf's exceptions into one line of ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, (HydraException, OmegaConfBaseException)):
            if (own := behind(error)) is not None:  # of a resolver
                raise own from error
            raise ConfigError(explain(error)) from error
        if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
            raise ConfigError(
                "a group was set to null: expected a name, as in init=lora; see loraexp list"
            ) from error


PLAIN = re.compile(r"[\w./+:@-]*")  # what Hydra's grammar reads without quotes, whatever the key


def readable(word: str) -> str:
    """An override as Hydra can read it: a value that its grammar does not know, such as `~/x` or `a
    b`, is taken as text."""
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if name in GROUPS and equals:
        # a group is there already: `+experiment=debug` is what it says
        word, key = f"{name}={value}", name
    if not equals or PLAIN.fullmatch(value) or not re.fullmatch(r"[~+]*[\w./@-]+", key):
        return word
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for candidate in (word, f"{key}={quoted(value)}"):
        try:
            OverridesParser.create().parse_override(candidate)
            return candidate
        except HydraException:
            if "," in value:
                break
    return word


def settled(words: Sequence[str]) -> list[str]:
    """The overrides with a plus where a keyword of a function stands in no yaml: nobody has to know
    which yaml lists it."""
    settled = list(words)
    keys = [word.partition("=")[0].split(".") for word in words]
    keywords = {i: key for i, key in enumerate(keys) if len(key) == 2 and key[0] in WITH_TARGET}
    if not keywords:
        return settled
    try:
        plain = resolved(
            compose(
                [word for i, word in enumerate(words) if i not in keywords and not is_sweep(word)]
            )
        )
        for i, (group, name) in keywords.items():
            if (
                name not in plain[group]
                and name in signature_of(target(plain[group], group)).parameters
            ):
                settled[i] = f"+{words[i]}"
    except ConfigError:
        return list(words)  # something else is wrong as well: Hydra says it
    return settled


def is_sweep(word: str) -> bool:
    """Whether an override has several values, for a grid."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with translated():
        return bool(OverridesParser.create().parse_override(word).is_sweep_override())


def explain(error: BaseException) -> str:
    """One line for an exception of Hydra or OmegaConf: the value, what was expected, the nearest
    names."""
    text = str(error)
    if error.__cause__ is not None:
        text = f"{text}\n{error.__cause__}"
    if found := re.search(r"Could not find 'hydra/launcher/([^']+)'", text):
        there = ", ".join(re.findall(r"^\t(\w+)$", text, re.M))
        return (
            f"hydra/launcher={found[1]}: not installed; there is {there}; pip install"
            " 'loraexp[joblib]', [slurm] or [ray] adds more"
        )
    if found := re.search(r"Could not find '([\w]+)/([^']+)'", text):
        group, name = found.groups()
        return (
            f"{group}={name}: there is no conf/{group}/{name}.yaml; {nearest(name, names(group))}"
        )
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        return f"{key}: there is no such key; {nearest_key(key)}"
    if found := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text):
        key, values = found.groups()
        return (
            f"{key}={values}: several values; add -m for a run of each, or write {key}=[{values}]"
            " for a list"
        )
    if found := re.search(r"Could not append.*?'([^']+)'", text):
        return f"+{found[1]}: the key is there already; write {found[1]}=... without the plus"
    if "Can only enumerate CHOICE and RANGE sweeps" in text:
        return (
            "interval(...) has no values to enumerate: add hydra/sweeper=optuna, which searches in"
            " it (pip install 'loraexp[optuna]'), or write the values, as lr=1e-4,1e-3"
        )
    if re.search(
        r"missing EQUAL at '<EOF>'|no viable alternative|mismatched input|extraneous"
        r" input|LexerNoViable",
        text,
    ):
        quoted_word = re.search(
            r"(?:parsing override|LexerNoViableAltException:) *'?([^'\n]*)'?", text
        )
        word = (quoted_word[1] if quoted_word else text.splitlines()[0]).strip()
        key, equals, value = word.partition("=")
        remedy = f"""; quote it as '{key}="{value}"'""" if equals else ""
        return f"{word}: expected KEY=VALUE{remedy}"
    return " ".join(line.strip() for line in text.splitlines()[:2] if line.strip())


def nearest_key(word: str) -> str:
    """The keys that `word` may have meant: another spelling, the same last part elsewhere, a
    library's name for it."""
    keys = known_keys(word)
    last = word.rpartition(".")[2].lower()
    wanted = SPELLINGS.get(last, last)
    same = [
        key
        for key in keys
        if key.lower() == word.lower() or wanted in (key, key.rpartition(".")[2])
    ]
    if same:
        return f"nearest: {', '.join(same[:4])}"
    said = nearest(word, keys)
    return said if said.startswith("nearest") else f"{len(keys)} keys, see loraexp list keys"


def known_keys(near: str) -> list[str]:
    """Every dotted key of the default composition, and every key that a file of the group of `near`
    adds."""

    def flatten(node: object, prefix: str = "") -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix] * bool(prefix) + [
            key
            for name, child in node.items()
            for key in flatten(child, f"{prefix}.{name}" if prefix else str(name))
        ]

    group = near.split(".")[0]
    extra: Plain = {}
    if group in GROUPS and group not in ("method", "experiment"):
        for name in names(group):
            extra |= read_yaml(group, name)
    merged = {k: v for k, v in base().items() if k not in ("defaults", "hydra")}
    if extra:
        merged[group] = (merged.get(group) or {}) | extra
    return [key for key in flatten(merged) if not key.endswith(("_target_", "_partial_"))] + list(
        GROUPS
    )


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The cells of a grid: `["lr=1,2", "seed=0,1"]` → four lists of overrides."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(str(search.folder("conf")), version_base="1.3"), translated():
        loader = GlobalHydra.instance().config_loader()  # which knows what `glob(...)` may mean
        axes = []
        for override in OverridesParser.create(config_loader=loader).parse_overrides(
            list(overrides)
        ):
            if override.is_sweep_override():
                key = override.get_key_element()
                axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                axes.append([override.input_line or ""])
    return [list(cell) for cell in itertools.product(*axes)]


def resolved(cfg: DictConfig) -> Plain:
    """A composed configuration as plain values, its interpolations resolved."""
    from omegaconf import OmegaConf

    with translated():
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
