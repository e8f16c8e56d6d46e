"""loraexp: honest, resumable, fully recorded experiments with low-rank adaptation.

In Python, as on the command line: `loraexp.run("init=cg_lora", "task=cola")`,
`loraexp.sweep("cg_lora_table1")`, `load_records()`, `table(NAME)` as a DataFrame, `plot(NAME)` as a
figure.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What is imported only when it is asked for: pandas, torch and matplotlib are not needed to print a
# help page.
LAZY = {
    "load_records": "loraexp.records.reading",
    "table": "loraexp.artifacts.notebook",
    "plot": "loraexp.artifacts.notebook",
}
CALLABLE = ("run", "sweep")  # packages that are called: `loraexp.run(...)`


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    if name in CALLABLE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'loraexp' has no attribute {name!r}")
