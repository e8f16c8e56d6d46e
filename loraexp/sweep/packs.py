"""Which runs of a sweep share their passes over one base (`sweep.pack`), and which have every pass
to themselves.

A run whose cost is read, by a column, a figure or the choice of a grid point, is never trained with
others: its seconds and its peak would not be those of one run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loraexp import config
from loraexp.config.settings import Settings
from loraexp.machine.measure import Available, available_bytes
from loraexp.machine.processes import started
from loraexp.machine.progress import notice
from loraexp.records.reading import measured
from loraexp.sweep import composition, duration, sizes
from loraexp.sweep.cells import Cell, lookup
from loraexp.sweep.schema import Sweep

# what runs that share a pass have in common; everything else may differ
SHARED = (
    *("model", "task", "evaluate", "precision", "device", "seed", "output_root", "cache_root"),
    *("train.batch_size", "train.gradient_accumulation", "train.micro_batches"),
    *("train.length_buckets", "train.deterministic"),
)
# beside those, what says how much memory a run takes
SIZED = ("init", "optimizer", "rank", "adapter", "train")
DEVICES = ("auto", "cpu", "cuda")
# Tokens of a pass up to which more runs make it cheaper for each: measured on a CPU (`python -m
# benchmarks packed`), assumed of accelerators.
FILLED = {"cpu": 768, "accelerator": 2048}
MOST = 16
SPARE = 0.8  # of the memory that is free


class Packs:
    """The runs of a sweep in groups that train together."""

    def __init__(self, sweep: Sweep, cells: Sequence[Cell], *, sharing: int = 1) -> None:
        """`sharing`: workers that share the memory of this machine, a group each at a time; 0: they
        are elsewhere."""
        timed = set(timed_places(sweep))
        self.timed = {cell.folder for cell in cells if (cell.row, cell.column) in timed}
        self.sharing = sharing
        self.sizes: dict[str, int] = {}  # by what the runs of a group have in common, and shape
        self.free: dict[str, Available] = {}  # by device, looked at once, before any run

    def of(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """The cells in groups, in the order of each group's first; groups of alike cells are of
        like size."""
        found: dict[tuple[str, int], list[Cell]] = {}
        for cell in cells:
            alone = self.apart(cell) is not None
            key = (str(cell.folder), 1) if alone else (alike(cell.plain), self.size(cell))
            found.setdefault(key, []).append(cell)
        groups: list[list[Cell]] = []
        for (_, most), members in found.items():
            count = -(-len(members) // most)
            ends = [len(members) * i // count for i in range(count + 1)]
            groups += [members[a:b] for a, b in zip(ends, ends[1:], strict=False)]
        return groups

    def apart(self, cell: Cell) -> str | None:
        """Why a cell has every pass to itself, or None."""
        if wanted(cell) == 1:
            return "sweep.pack=1"
        return "their cost is read" if cell.folder in self.timed else apart(cell.plain)

    def size(self, cell: Cell) -> int:
        """How many runs at most share a pass with this one, itself among them; of runs of one kind
        the same, whatever else has taken of the memory since."""
        asked = wanted(cell)
        if asked != "auto":
            return int(asked)
        kind = json.dumps([alike(cell.plain), *(cell.plain[key] for key in SIZED)], default=str)
        if kind not in self.sizes:
            device = str(cell.plain["device"])
            if device not in self.free:
                self.free[device] = available_bytes(device)
            self.sizes[kind] = fitting(config.typed(cell.plain), self.free[device], self.sharing)
        return self.sizes[kind]

    def say(self, name: str, cells: Sequence[Cell]) -> None:
        """One line for a sweep that asks for groups: how many there are, and which runs are alone,
        and why."""
        asking = [cell for cell in cells if wanted(cell) != 1]
        if not asking:
            return
        groups = [group for group in self.of(asking) if len(group) > 1]
        reasons = Counter(reason for cell in asking if (reason := self.apart(cell)) is not None)
        word = "group" if len(groups) == 1 else "groups"
        together = f"{sum(map(len, groups))} runs in {len(groups)} {word} that train together"
        alone = [f"{count} alone: {reason}" for reason, count in reasons.items()]
        notice(f"{name}: {'; '.join([together, *alone])}")


def wanted(cell: Cell) -> Any:
    """`sweep.pack` of a cell: a number, or auto."""
    return lookup(cell.plain, "sweep.pack", 1)


def timed_places(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """The (row, column) whose runs' time or memory is read."""
    everywhere = measured(sweep.select.by)
    for row, column in sweep.trained():
        path = sweep.rows[row].value or sweep.columns[column].value or ""
        if everywhere or measured(path) or any(drawn(sweep, row, column)):
            yield row, column


def drawn(sweep: Sweep, row: str, column: str) -> Iterator[bool]:
    """Of each figure that shows a place, whether it shows what the run cost."""
    for plot in sweep.plots:
        if row in (plot.rows or sweep.rows) and column in (plot.columns or sweep.columns):
            x = plot.x or ("cost/train_peak_bytes" if plot.kind == "scatter" else "")
            yield measured(x) or measured(plot.y or "")


def alike(plain: Mapping[str, Any]) -> str:
    """Equal for runs that may share their passes: by the base, its rows and their order."""
    values = [composition.at(plain, tuple(key.split("."))) for key in SHARED]
    return json.dumps(values, sort_keys=True, default=str)


def apart(plain: Mapping[str, Any]) -> str | None:
    """Why a run of this configuration cannot share a pass, or None."""
    model, train = plain["model"], plain["train"]
    initializer = config.Component.of(plain["init"], "init")
    if initializer.full or not initializer.trains:
        return f"init={initializer.name} trains {'every weight' if initializer.full else 'nothing'}"
    if model.get("quantise"):
        return f"model.quantise={model['quantise']}"
    if model.get("gradient_checkpointing"):
        return "model.gradient_checkpointing=true"
    if train.get("unpadded"):
        return "train.unpadded=true"
    if train.get("micro_batches") == "auto" and model.get("kind") == "encoder":
        return "train.micro_batches=auto"  # on a CPU without padding, too
    if train.get("gpus_per_run", 1) > 1 or started() > 1:
        return "several processes share a run"
    if str(plain["device"]).partition(":")[0] not in DEVICES:
        return f"device={plain['device']}"
    return None


def fitting(settings: Settings, free: Available, sharing: int) -> int:
    """`sweep.pack=auto`: as many runs as a pass is not yet filled with tokens, and as fit what of
    the memory is free."""
    filled = FILLED["cpu" if free.of_host else "accelerator"]
    tokens = max(1.0, settings.micro_batch * duration.tokens_of(settings))
    most = max(1, min(MOST, int(filled / tokens)))
    if most == 1 or sharing == 0 or free.bytes is None:
        return most
    try:
        memory, _ = sizes.counted(sizes.shape_of(sizes.offline(settings)), settings.cache_root)
    except sizes.Unknown:
        return most
    each = memory.train - memory.weights
    here = SPARE * free.bytes / sharing
    return max(1, min(most, int((here - memory.weights) / max(1, each))))
