"""`loraexp runs`: what there is under an output root, a line a run, the newest last."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from loraexp.cli.options import Parser
from loraexp.cli.outcomes import PACKED, put, time_of
from loraexp.config import ConfigError
from loraexp.machine.words import shorten

UNFINISHED = ("failed", "interrupted", "unreadable")


def runs(arguments: Sequence[str]) -> int:
    """The runs on disk, with state, metric, cost and age; --failed those to look at, --clean
    removes what those left."""
    parser = Parser("loraexp runs", description=runs.__doc__)
    parser.add_argument(
        "root",
        nargs="?",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="output_root (default: outputs)",
    )
    parser.add_argument(
        "--failed",
        action="store_true",
        help="only those that failed, were interrupted or cannot be read",
    )
    parser.add_argument(
        "--clean", action="store_true", help="with --failed: remove their folders; asks for --yes"
    )
    parser.add_argument("--yes", action="store_true", help="with --clean: really remove them")
    options = parser.parse_args(arguments)
    if options.clean and not options.failed:
        raise ConfigError("--clean: only with --failed; finished runs are yours to remove")
    lines = rows(options.root)
    if options.failed:
        lines = [line for line in lines if line["status"] in UNFINISHED]
    if not lines:
        print(f"no {'failed ' if options.failed else ''}runs under {shorten(options.root)}")
        return 0
    put(table(lines))
    if options.clean:
        clean([Path(line["folder"]) for line in lines], really=options.yes)
    return 0


def rows(root: Path) -> list[dict[str, Any]]:
    """The runs under `root`, those of experiment=debug too, as `load_records` has them, the oldest
    first; raises ConfigError where there is no such folder."""
    from loraexp.records import reading

    if not root.is_dir():
        raise reading.no_runs(root)
    lines: list[dict[str, object]] = []
    for place in reading.roots(root):
        lines += reading.load_records(place).to_dict("records")
    return sorted(lines, key=when)


def when(line: Mapping[str, object]) -> str:
    """The time that a run ended or else began, as text that sorts; empty where it says neither."""
    times = (line.get("ended"), line.get("started"))
    return next((time for time in times if isinstance(time, str)), "")


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """Folder, state, the selected metric, seconds and age."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in ("run", "state", "metric", "time", "age"):
        shown.add_column(
            column, no_wrap=True, justify="left" if column in ("run", "state") else "right"
        )
    for line in lines:
        seconds = line.get("seconds") or math.nan
        reason = line.get("error") if line["status"] != "finished" else None
        state = f"{line['status']}: {reason[:60]}" if isinstance(reason, str) else line["status"]
        state += f" ({line['note']})" if isinstance(line.get("note"), str) else ""
        cost = "—" if math.isnan(seconds) else time_of(seconds, int(line["packed"]))
        shown.add_row(shorten(Path(line["folder"])), state, metric(line), cost, age(line))
    if any(line.get("packed", 1) > 1 for line in lines):
        shown.caption, shown.caption_justify = PACKED, "left"
    return shown


def metric(line: Mapping[str, object]) -> str:
    """The value of the task's metric on the first reported split: what a table would print."""
    name = line.get("task.metric")
    values = {
        key: value
        for key, value in line.items()
        if isinstance(value, float) and key.endswith(f"/{name}") and not math.isnan(value)
    }
    key = next((key for key in values if not key.startswith("held_out")), None)
    return f"{key} {values[key]:.4f}" if key else "—"


def age(line: Mapping[str, object]) -> str:
    time = when(line)
    if not time:
        return "—"
    past = datetime.now(UTC) - datetime.fromisoformat(time)
    days, hours = past.days, past.seconds // 3600
    return f"{days} d" if days else f"{hours} h" if hours else f"{past.seconds // 60} min"


def clean(folders: Sequence[Path], *, really: bool) -> None:
    """Remove the folders, or say what would be removed."""
    if not really:
        print(f"--clean would remove these {len(folders)} folders; add --yes to do it")
        return
    for folder in folders:
        shutil.rmtree(folder)
    print(f"{len(folders)} folders removed")
