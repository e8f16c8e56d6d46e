"""loraexp: honest, resumable, fully recorded experiments with low-rank adaptation."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from loraexp import load_records`, without pandas at every start."""
    if name == "load_records":
        from loraexp.records.reading import load_records

        return load_records
    raise AttributeError(f"module 'loraexp' has no attribute {name!r}")
