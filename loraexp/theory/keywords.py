"""A yaml's flat keywords as the groups that an experiment's function takes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable

from loraexp.records.curves import Computed


def keywords(function: Callable[..., Computed]) -> Callable[..., Computed]:
    """The function with the fields of its dataclass parameters as keywords of its own.

    What belongs together is one frozen dataclass in the code, and one flat key each in `compute:`,
    whose names and values are the result's id.
    """
    hints = typing.get_type_hints(function)
    hints.pop("return")
    groups: dict[str, type] = {
        name: kind
        for name, kind in hints.items()
        if dataclasses.is_dataclass(kind) and isinstance(kind, type)
    }
    parameters: list[inspect.Parameter] = []
    for name, own in inspect.signature(function).parameters.items():
        parts = inspect.signature(groups[name]).parameters.values() if name in groups else [own]
        parameters += [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in parts]
    signature = inspect.Signature(parameters)

    @functools.wraps(function)
    def call(**given: typing.Any) -> Computed:
        values = signature.bind(**given).arguments
        for name, kind in groups.items():
            fields = set(inspect.signature(kind).parameters) & set(values)
            values[name] = kind(**{field: values.pop(field) for field in fields})
        return function(**values)

    call.__dict__["__signature__"] = signature
    call.__annotations__ = {name: hint for name, hint in hints.items() if name not in groups}
    for kind in groups.values():
        call.__annotations__ |= typing.get_type_hints(kind)
    return call
