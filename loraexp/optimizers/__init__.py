"""Training rules, one file each: a pure update, and a function `(adapters, *, lr, weight_decay,
...) -> Optimizer`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any


def rules() -> dict[str, Callable[..., Any]]:
    """Every training rule of this package by its name: a new file is found, nothing is
    registered."""
    found: dict[str, Callable[..., Any]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, value in vars(module).items():
            if hasattr(value, "needs_trained") and value.__module__ == module.__name__:
                found[name] = value
    return found
