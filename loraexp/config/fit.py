"""Plain values as typed ones: every field present, of its type, within its bounds; or one line that
tells the remedy."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

from loraexp.config.errors import ConfigError, nearest

Kind = typing.TypeVar("Kind", bound="DataclassInstance")
# a sweep asks the same few functions hundreds of times
type_hints = functools.cache(typing.get_type_hints)


def build(kind: type[Kind], values: Mapping[str, object], where: str) -> Kind:
    """A dataclass of `kind` from `values`: every field present, of its type, within its bounds;
    nothing more."""
    prefix = {"calibration": "init"}.get(where, where)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = type_hints(kind)
    for name in values:
        if name not in fields:
            raise ConfigError(
                f"{dotted(prefix, name)}: there is no such key; {nearest(str(name), fields)}"
            )
    made: dict[str, object] = {}
    for name, field in fields.items():
        if name not in values and (field.default, field.default_factory) != (
            dataclasses.MISSING,
            dataclasses.MISSING,
        ):
            continue
        if name not in values:
            raise ConfigError(f"{dotted(prefix, name)}: missing; expected {describe(hints[name])}")
        key, value, hint = dotted(prefix, name), values[name], hints[name]
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{key}={value}: expected the keys of {key}, for example"
                    f" {key}.{dataclasses.fields(hint)[0].name}"
                )
            made[name] = build(hint, value, name)
        else:
            made[name] = fit(key, value, hint)
            check_bounds(key, made[name], field.metadata)
    return kind(**made)


def is_dataclass(hint: object) -> typing.TypeGuard[type[DataclassInstance]]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def describe(hint: Any) -> str:
    """A type in words, for an error message."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(str(a) for a in get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in get_args(hint))
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a word",
        list: "a list",
        dict: "keys",
    }
    return words.get(origin or hint, str(hint))


def fit(key: str, value: Any, hint: object) -> object:
    """`value` as the type `hint`, or ConfigError; whole floats are integers, integers are floats,
    nothing else moves."""
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
        number = (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
        if kind is int and number and value == int(value):
            return int(value)
        if kind is float and number:
            return float(value)
        if kind in (str, list, dict) and isinstance(value, kind):
            if str in get_args(option):
                check_words(key, value)
            return value
        if kind in (tuple, Sequence) and isinstance(value, (list, tuple)):
            return value
    shown = json.dumps(value) if isinstance(value, (dict, list)) or value is None else value
    raise ConfigError(f"{key}={shown}: expected {describe(hint)}")


def check_words(key: str, values: Iterable[object]) -> None:
    """Each of a list of texts is one: YAML makes keys of an unquoted text with a colon in it."""
    for i, value in enumerate(values):
        if isinstance(value, (dict, list)) or value is None:
            raise ConfigError(
                f"{key}[{i}]={json.dumps(value, default=str)}: expected a text; one with a colon,"
                " a comma or nothing in it needs quotes"
            )


def check_bounds(key: str, value: object, bounds: Mapping[Any, Any]) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    above, least, most = (bounds.get(name) for name in ("above", "least", "most"))
    wrong = (above is not None and not value > above) or (least is not None and not value >= least)
    if wrong or (most is not None and not value <= most):
        limits = [f"above {above:g}"] if above is not None else []
        limits += [f"at least {least:g}"] if least is not None else []
        limits += [f"at most {most:g}"] if most is not None else []
        raise ConfigError(f"{key}={value}: expected a number {' and '.join(limits)}")


# Where the functions of an older `_target_` are now, by the module they were in: old configurations
# and sweeps still open.
