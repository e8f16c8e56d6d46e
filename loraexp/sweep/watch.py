"""Where the runs of a sweep stand, read from their records: whoever runs them, this process, a
launcher's, or another command's."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from loraexp.config import RECORD
from loraexp.machine import locks
from loraexp.machine.escapes import printable
from loraexp.machine.progress import Advance, bar, notice
from loraexp.machine.words import spoken
from loraexp.records import record
from loraexp.records.reading import failure, packed, run_seconds, value_at
from loraexp.sweep.cells import Cell

EVERY = 1.0  # seconds between two looks at the records


def stamp(folder: Path) -> int:
    """When the record was last written; 0 where there is none."""
    try:
        return (folder / RECORD).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def held(folder: Path) -> bool:
    """Whether a living process is running this run, or a group of which it is one: the lock of a
    dead one is free."""
    return locks.held(folder / ".lock") or locks.held(claim_of(folder))


def claim_of(folder: Path) -> Path:
    """The lock that a command has on a run from when its group begins; beside its folder, which is
    made when the run begins."""
    return folder.with_name(f".{folder.name}.claim")


class Watch:
    """The cells that a command is to bring to an end, and what has become of each since it began.

    `state[folder]`: todo, running, finished or failed; `before[folder]`: the stamp of the record
    when the command began: a failure from before is todo, one since then is failed, and is not
    tried again by this command.
    """

    def __init__(self, name: str, cells: Sequence[Cell], values: Mapping[str, str | None]) -> None:
        self.name, self.values = name, values
        self.cells = {cell.folder: cell for cell in cells}
        self.before = {folder: stamp(folder) for folder in self.cells}
        self.seen: dict[Path, int] = {}
        self.state = dict.fromkeys(self.cells, "todo")
        self.reasons: dict[Path, str] = {}  # of the failed
        self.seconds: dict[Path, float] = {}  # of the finished
        self.most_running = 1
        # the thread that shows progress and the command both look
        self.look_lock = threading.RLock()
        for folder in self.cells:
            self.changed(folder)
        self.already = self.counts()["finished"]
        self.advance: Advance = lambda *_, **__: None

    def counts(self) -> dict[str, int]:
        states = list(self.state.values())
        return {state: states.count(state) for state in ("todo", "running", "finished", "failed")}

    def changed(self, folder: Path) -> bool:
        """Read a record that has changed; whether the run has come to an end by it."""
        now = stamp(folder)
        if now == self.seen.get(folder, 0):
            return False
        self.seen[folder] = now
        content = record.read(folder)
        if content is None:
            return False
        status, since = content["status"], now != self.before[folder]
        forced = self.cells[folder].plain["force"]
        if status == "finished" and (since or not forced):
            self.state[folder] = "finished"
            self.seconds[folder] = run_seconds(content) * packed(content)  # as its clock ran
        elif status == "failed" and since:
            where = "in evaluation: " if content.get("phase") == "evaluation" else ""
            self.fail(folder, f"{where}{failure(content)}")
        else:
            self.state[folder] = "running" if status == "running" and since else "todo"
        return self.state[folder] in ("finished", "failed")

    def fail(self, folder: Path, reason: str) -> None:
        self.state[folder], self.reasons[folder] = "failed", printable(reason)

    def look(self) -> None:
        """Read what has changed, and say which runs have come to an end."""
        with self.look_lock:
            for folder, state in list(self.state.items()):
                if state in ("todo", "running") and self.changed(folder):
                    self.say(folder)
            counts = self.counts()
            self.most_running = max(self.most_running, counts["running"])
            self.advance(
                0, running=str(counts["running"]), failed=str(counts["failed"]), left=self.left()
            )

    def say(self, folder: Path) -> None:
        """One line for a run that has come to an end."""
        counts, cell = self.counts(), self.cells[folder]
        ended = counts["finished"] + counts["failed"]
        if self.state[folder] == "failed":
            outcome = f"FAILED: {self.reasons[folder]}"
        else:
            path = self.values.get(f"{cell.row}/{cell.column}")
            value = value_at(record.read(folder) or {}, path) if path else None
            outcome = f"{path} {value:.4f}" if value is not None else "finished"
            outcome += f" in {spoken(self.seconds[folder])}"
        if counts["todo"] + counts["running"]:
            outcome += (
                f" | {counts['running']} running, {counts['failed']} failed,"
                f" {self.left() or 'time left unknown'}"
            )
        notice(f"[{ended}/{len(self.cells)}] {described(cell)}: {outcome}")
        self.advance(1)

    def left(self) -> str:
        """The time left: for each run to do the mean of the finished ones of its place, its column,
        or all, shared by those at work."""
        known: dict[object, list[float]] = {}
        for folder, seconds in self.seconds.items():
            cell = self.cells[folder]
            for key in ((cell.row, cell.column), cell.column, None):
                known.setdefault(key, []).append(seconds)
        if not known:
            return ""
        total = 0.0
        for folder, state in self.state.items():
            if state in ("todo", "running"):
                cell = self.cells[folder]
                key = next(k for k in ((cell.row, cell.column), cell.column, None) if k in known)
                total += statistics.fmean(known[key])
        return f"{spoken(total / self.most_running)} left"

    def open(self) -> list[Cell]:
        """The cells that have not come to an end, in their order."""
        self.look()
        return [
            self.cells[folder]
            for folder, state in self.state.items()
            if state in ("todo", "running")
        ]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within: progress is shown as it comes, a bar on a terminal and a line for each run."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(EVERY):
                self.look()

        counts = self.counts()
        with bar(self.name, len(self.cells), counts["finished"]) as self.advance:
            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()
                self.look()
        self.advance = lambda *_, **__: None


def described(cell: Cell) -> str:
    """`cg_lora/cola lr=0.0002 seed=1`."""
    return " ".join(
        [
            f"{cell.row}/{cell.column}",
            *(f"{key.removeprefix('train.')}={value}" for key, value in cell.point.items()),
        ]
    )


def wait(seconds: float = EVERY) -> None:
    """For the processes that hold what is left."""
    time.sleep(seconds)
