"""What a call of torch is given and gives back, piece by piece: tuples, lists and dictionaries of
leaves, a hundred thousand times a test (torch's own `pytree`, which knows every container that
there is, takes half of such a test)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def leaves(value: Any) -> Iterator[Any]:
    """Every leaf, in order."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        yield value
        return
    for part in value:
        if isinstance(part, (tuple, list, dict)):
            yield from leaves(part)
        else:
            yield part


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same with the function of every leaf in its place."""
    if isinstance(value, dict):
        return {name: mapped(function, part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [
            mapped(function, part) if isinstance(part, (tuple, list, dict)) else function(part)
            for part in value
        ]
        if type(value) in (tuple, list):
            return parts if type(value) is list else tuple(parts)
        kind: Any = type(value)
        # a named tuple takes its fields one by one, one of torch's results all at once
        return kind(*parts) if hasattr(value, "_fields") else kind(parts)
    return function(value)
