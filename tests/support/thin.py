"""Sweeps with one grid point at every place: what is true of a place's settings is true of it there
too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from loraexp.sweep import reading, schema
from loraexp.sweep.schema import Sweep


@cache
def loaded(name: str, variant: str | None = None) -> Sweep:
    return reading.load(name, variant)


def variants(name: str) -> list[str | None]:
    return [None, *loaded(name).variants]


def first(grid: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: values[:1] for key, values in schema.listed(grid).items()}


def regridded(whole: Sweep, of: Callable[[dict[str, Any]], dict[str, list[Any]]]) -> Sweep:
    """The same sweep with every grid, its own, a row's, a column's or a place's, as `of` makes
    it."""
    parts = {
        "rows": {name: replace(row, grid=of(row.grid)) for name, row in whole.rows.items()},
        "columns": {
            name: replace(column, grid=of(column.grid)) for name, column in whole.columns.items()
        },
        "cells": [replace(special, grid=of(special.grid)) for special in whole.cells],
    }
    return replace(whole, grid=of(whole.grid), **parts)


def thin(whole: Sweep) -> Sweep:
    """The same sweep with one grid point at every place."""
    return regridded(whole, first)
