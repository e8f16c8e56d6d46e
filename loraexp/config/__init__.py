"""From the composed Hydra configuration to checked, typed settings; every mistake is one line that tells the remedy.

Nothing heavy is imported before the configuration holds: the structure is checked against `loraexp.config.settings`, and only
then the functions behind `_target_` are imported and their signatures asked for names and types.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from loraexp.config import settings as schema
from loraexp.config.identity import digest as digest
from loraexp.config.identity import match_key as match_key
from loraexp.config.identity import run_folder as run_folder
from loraexp.config.identity import run_id as run_id

PACKAGE = Path(__file__).resolve().parent.parent
GROUPS = ("model", "task", "init", "optimizer", "method", "experiment")
# What the run itself hands to the function behind `_target_`, never the configuration.
GIVEN = {
    "init": {"layer", "rank", "scaling", "generator"},
    "optimizer": {"adapters", "lr", "weight_decay"},
    "task": {"tokenizer", "cache_root", "progress", "kind", "backend", "unsafe_code"},
    "compute": {"progress", "output_root"},
}


class ConfigError(ValueError):
    """The configuration or the arguments are wrong: one line, exit status 2."""


def folder(name: str) -> Path:
    """`conf` or `sweeps`: inside the package when installed from a wheel, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def names(group: str) -> list[str]:
    """The choices of a configuration group: its yaml files."""
    return sorted(path.stem for path in (folder("conf") / group).glob("*.yaml"))


def about(group: str, name: str) -> str:
    """The first comment of a file of a configuration group: what it is, in one line."""
    lines = (folder("conf") / group / f"{name}.yaml").read_text().splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ") and not line.startswith("# @")), "")


def read_yaml(group: str, name: str) -> dict[str, Any]:
    """One file of a configuration group as it is written."""
    content = OmegaConf.to_container(OmegaConf.load(folder("conf") / group / f"{name}.yaml"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def nearest(word: str, choices: Iterable[str]) -> str:
    """The nearest valid names first; all of them where nothing is near and they are few."""
    choices = list(dict.fromkeys(choices))
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    alike = [difflib.SequenceMatcher(None, choice, word).ratio() for choice in close]
    close = [choice for choice, ratio in zip(close, alike, strict=True) if ratio > alike[0] - 0.08]
    if close:
        return f"nearest: {', '.join(close)}"
    return f"choices: {', '.join(choices)}" if len(choices) <= 30 else f"{len(choices)} choices, see loraexp list"


# ---------------------------------------------------------------------------------------------------- composing


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration that `loraexp OVERRIDES` would run with."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(folder("conf")), version_base="1.3"), translated():
        return hydra_compose("config", overrides=list(overrides))


class translated:  # noqa: N801 - reads as `with translated():`
    """Turn Hydra's and OmegaConf's exceptions into one line of ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, (HydraException, OmegaConfBaseException)):
            raise ConfigError(explain(error)) from error


def explain(error: BaseException) -> str:
    """One line for an exception of Hydra or OmegaConf: the value, what was expected, the nearest names."""
    text = str(error)
    if error.__cause__ is not None:
        text = f"{text}\n{error.__cause__}"
    if found := re.search(r"Could not find 'hydra/launcher/([^']+)'", text):
        there = ", ".join(re.findall(r"^\t(\w+)$", text, re.M))
        return f"hydra/launcher={found[1]}: not installed; there is {there}; pip install 'loraexp[joblib]', [slurm] or [ray] adds more"
    if found := re.search(r"Could not find '([\w]+)/([^']+)'", text):
        group, name = found.groups()
        return f"{group}={name}: there is no conf/{group}/{name}.yaml; {nearest(name, names(group))}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        return f"{key}: there is no such key; {nearest(key, known_keys(key))}"
    if found := re.search(r"Could not append.*?'([^']+)'", text):
        return f"+{found[1]}: the key is there already; write {found[1]}=... without the plus"
    if found := re.search(r"missing EQUAL at '<EOF>'|no viable alternative|mismatched input|extraneous input", text):
        quoted = re.search(r"'([^']*)'\s*$|parsing override '([^']*)'", text.splitlines()[0])
        word = next((g for g in quoted.groups() if g), "") if quoted else ""
        return f"{word or text.splitlines()[0]}: expected KEY=VALUE (quote a value that has spaces or commas)"
    return " ".join(line.strip() for line in text.splitlines()[:2] if line.strip())


def known_keys(near: str) -> list[str]:
    """Every dotted key of the default composition, and every key that a file of the group of `near` adds."""

    def flatten(node: Any, prefix: str = "") -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix] * bool(prefix) + [
            key for name, child in node.items() for key in flatten(child, f"{prefix}.{name}" if prefix else str(name))
        ]

    root = OmegaConf.load(folder("conf") / "config.yaml")
    group = near.split(".")[0]
    extra: dict[str, Any] = {}
    if group in GROUPS and group not in ("method", "experiment"):
        for name in names(group):
            extra |= read_yaml(group, name)
    merged = OmegaConf.to_container(root)
    assert isinstance(merged, dict)
    merged = {k: v for k, v in merged.items() if k not in ("defaults", "hydra")}
    if extra:
        merged[group] = (merged.get(group) or {}) | extra
    return [key for key in flatten(merged) if not key.endswith(("_target_", "_partial_"))] + list(GROUPS)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The cells of a grid: `["lr=1,2", "seed=0,1"]` → four lists of overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with translated():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        axes = []
        for override in parsed:
            if override.is_sweep_override():
                key = override.get_key_element()
                axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                axes.append([override.input_line or ""])
    return [list(cell) for cell in itertools.product(*axes)]


# ---------------------------------------------------------------------------------------------------- checking


def check(cfg: DictConfig) -> tuple[schema.Settings, dict[str, Any]]:
    """Settings and the plain resolved configuration of one run; raises ConfigError."""
    with translated():
        composed = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(composed, dict)
    return checked({str(key): value for key, value in composed.items()})


def checked(composed: dict[str, Any]) -> tuple[schema.Settings, dict[str, Any]]:
    """The same of a configuration that is resolved already; its parts are left as they are."""
    plain = absolute({key: value for key, value in composed.items() if key not in ("hydra", "method", "experiment")})
    if not getattr(target(plain["init"], "init"), "trains", True):
        plain["train"] = plain["train"] | {"max_steps": 0}  # an initializer that trains nothing (one_step) is evaluated as it is
    settings = typed(plain)
    for group in ("task", "init", "optimizer"):
        check_target(group, getattr(settings, group))
    check_together(settings)
    return settings, plain


def absolute(plain: dict[str, Any]) -> dict[str, Any]:
    """Paths from the root: one run and one id wherever the command is typed."""

    def whole(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    task, model = dict(plain["task"]), dict(plain["model"])
    for key in ("data_dir", "eval_data_dir"):
        if task.get(key):
            task[key] = whole(task[key])
    for key in ("path", "tokenizer"):  # a hub id, unless there is such a path
        source = model.get(key)
        if isinstance(source, str) and Path(source).expanduser().exists():
            model[key] = whole(source)
    roots = {key: whole(plain[key]) for key in ("output_root", "cache_root")}
    return plain | roots | {"task": task, "model": model}


def typed(plain: dict[str, Any]) -> schema.Settings:
    """The settings of a plain resolved configuration, every value fitted to its type and bounds; raises ConfigError."""
    calibration = {f.name for f in dataclasses.fields(schema.CalibrationSettings)}
    parts = dict(plain)
    for group in ("task", "model"):
        parts[group] = {k: v for k, v in plain[group].items() if k != "facts"}
    parts["facts"] = {group: plain[group].get("facts") or {} for group in ("task", "model")}
    parts["init"] = {k: v for k, v in plain["init"].items() if k not in calibration}
    parts["calibration"] = {k: v for k, v in plain["init"].items() if k in calibration}
    return build(schema.Settings, parts, "")


type_hints = functools.cache(typing.get_type_hints)  # a sweep asks the same few functions hundreds of times
signature_of = functools.cache(inspect.signature)


def build(kind: type, values: dict[str, Any], where: str) -> Any:
    """A dataclass of `kind` from `values`: every field present, of its type, within its bounds; nothing more."""
    prefix = {"calibration": "init"}.get(where, where)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = type_hints(kind)
    for name in values:
        if name not in fields:
            raise ConfigError(f"{dotted(prefix, name)}: there is no such key; {nearest(name, fields)}")
    made = {}
    for name, field in fields.items():
        if name not in values and (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING):
            continue
        if name not in values:
            raise ConfigError(f"{dotted(prefix, name)}: missing; expected {describe(hints[name])}")
        key, value, hint = dotted(prefix, name), values[name], hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(f"{key}={value}: expected the keys of {key}, for example {key}.{dataclasses.fields(hint)[0].name}")
            made[name] = build(typing.cast(type, hint), value, name)
        else:
            made[name] = fit(key, value, hint)
            check_bounds(key, made[name], field.metadata)
    return kind(**made)


def dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def describe(hint: Any) -> str:
    """A type in words, for an error message."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(str(a) for a in get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in get_args(hint))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", list: "a list", dict: "keys"}
    return words.get(origin or hint, str(hint))


def fit(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, or ConfigError; whole floats are integers, integers are floats, nothing else moves."""
    origin = get_origin(hint)
    options = get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        kind = get_origin(option) or option
        if option is Any or (option is type(None) and value is None):
            return value
        if kind is Literal and value in get_args(option) and not isinstance(value, bool):
            return value
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and not isinstance(value, bool) and isinstance(value, (int, float)) and value == int(value):
            return int(value)
        if kind is float and not isinstance(value, bool) and isinstance(value, (int, float)):
            return float(value)
        if kind in (str, list, dict) and isinstance(value, kind):
            return value
        if kind in (tuple, Sequence) and isinstance(value, (list, tuple)):
            return value
    shown = json.dumps(value) if isinstance(value, (dict, list)) or value is None else value
    raise ConfigError(f"{key}={shown}: expected {describe(hint)}")


def check_bounds(key: str, value: Any, bounds: typing.Mapping[str, Any]) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    above, least, most = (bounds.get(name) for name in ("above", "least", "most"))
    wrong = (above is not None and not value > above) or (least is not None and not value >= least)
    if wrong or (most is not None and not value <= most):
        limits = [f"above {above:g}"] if above is not None else []
        limits += [f"at least {least:g}"] if least is not None else []
        limits += [f"at most {most:g}"] if most is not None else []
        raise ConfigError(f"{key}={value}: expected a number {' and '.join(limits)}")


# Where the functions of an older `_target_` are now, by the module they were in: old configurations and sweeps still open.
MOVED = {"loraexp.costs": "loraexp.theory.costs"}


def target(node: dict[str, Any], group: str) -> Any:
    """The function or class behind `_target_`."""
    path = node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        raise ConfigError(f"{group}._target_={path}: expected the dotted path of a function or class")
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(MOVED.get(module, module)), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{group}._target_={path}: cannot be imported ({error}); expected a function or class") from error


def check_target(group: str, node: dict[str, Any]) -> None:
    """The keys of a node are the parameters of its `_target_`, of the annotated types."""
    made = target(node, group)
    signature = signature_of(made)
    hints = type_hints(made.__init__ if inspect.isclass(made) else made)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    parameters = [name for name in signature.parameters if name not in GIVEN[group] | {"self"}]
    for key, value in node.items():
        if key in ("_target_", "_partial_", "name"):
            continue
        if key not in parameters and not open_ended:
            raise ConfigError(f"{group}.{key}: there is no such key; {nearest(key, parameters)}")
        if key in hints:
            fit(f"{group}.{key}", value, hints[key])
        if key.startswith("limit_"):
            check_bounds(f"{group}.{key}", value, {"above": 0})


def takes_kind(task: Any) -> bool:
    """Whether a task is for causal and encoder-decoder models (it takes their `kind`), or for encoders with a head."""
    return "kind" in inspect.signature(task).parameters


def kinds(task: Any) -> frozenset[str]:
    """The kinds of model that a task is for: those it says, or by whether it takes the model's kind text or encoders."""
    return getattr(task, "kinds", frozenset({"causal", "seq2seq"} if takes_kind(task) else {"encoder"}))


def check_kinds(settings: schema.Settings) -> None:
    """The task suits the kind of model: classes from an encoder's head, or text."""
    name, kind = settings.task.get("name"), settings.model.kind
    fitting = kinds(target(settings.task, "task"))
    if kind not in fitting:
        suited = [model for model in names("model") if read_yaml("model", model).get("kind", "encoder") in fitting]
        raise ConfigError(
            f"task={name} is for models of kind {' or '.join(sorted(fitting))}, and model={settings.model.name} is {kind}; "
            f"choose model={'|'.join(suited)}"
        )


def check_together(settings: schema.Settings) -> None:
    """Choices that exclude each other: task and model; an initializer's hyper-parameters; what it trains and the optimizer needs."""
    check_kinds(settings)
    try:
        schema.checkpoint_seconds(settings.train.checkpoint_every)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if settings.evaluate.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError("evaluate.backend=vllm: vllm is not installed; pip install vllm (it needs a GPU), or set evaluate.backend=hf")
    initializer = target(settings.init, "init")
    trains = getattr(initializer, "trains", frozenset({"A", "B"}))
    try:
        initializer.request(settings.rank, **{k: v for k, v in settings.init.items() if k not in ("_target_", "_partial_", "name")})
    except ValueError as error:
        raise ConfigError(f"init={settings.init.get('name')}: {error}") from error
    keep = settings.train.keep_factors_every
    if keep and not trains & {"A", "B", "R"}:
        raise ConfigError(f"train.keep_factors_every={keep}: init={settings.init.get('name')} has no factors; set it to 0")
    if not fits(target(settings.optimizer, "optimizer"), trains):
        rules = [name for name in names("optimizer") if fits(target(read_yaml("optimizer", name), "optimizer"), trains)]
        raise ConfigError(
            f"optimizer={settings.optimizer.get('name')} {wants(target(settings.optimizer, 'optimizer'))}, but init="
            f"{settings.init.get('name')} trains {' and '.join(sorted(trains)) or 'nothing'}; choose optimizer={'|'.join(rules)}"
        )


def fits(optimizer: Any, trains: frozenset[str]) -> bool:
    """Whether a rule can step what an initializer trains; a rule says `needs_trained` and `needs_frozen`."""
    return getattr(optimizer, "needs_trained", frozenset()) <= trains and not getattr(optimizer, "needs_frozen", frozenset()) & trains


def wants(optimizer: Any) -> str:
    trained, frozen = (sorted(getattr(optimizer, name, ())) for name in ("needs_trained", "needs_frozen"))
    return " and ".join([f"trains {' and '.join(trained)}"] * bool(trained) + [f"needs {' and '.join(frozen)} frozen"] * bool(frozen))
