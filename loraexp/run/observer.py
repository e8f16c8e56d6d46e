"""What is told of a run while it goes on, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraexp.config.settings import Settings
from loraexp.records.sections import RunRecord


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its folder, its record, and whether it was there already."""

    folder: Path
    record: RunRecord
    already: bool = False


class Observer:
    """What is told of a run while it goes on; this one keeps it to itself, for runs that are
    reported together."""

    def begun(self, settings: Settings, folder: Path) -> None: ...

    def initialised(self, ledger: dict[str, Any]) -> None: ...

    def note(self, line: str) -> None: ...


SILENT = Observer()
