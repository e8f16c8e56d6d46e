"""What a run leaves behind on disk; W&B gets a copy of it (tracking.py)."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, TypedDict, cast

import yaml

from loraexp.config import RECORD, STORED, ConfigError, Plain
from loraexp.machine.files import (
    DiskFull,
    clear_temporaries,
    finite,
    on_disk,
    replace,
    set_aside,
    write_json,
)
from loraexp.machine.locks import locked
from loraexp.records import ranks
from loraexp.records.claim import Busy as Busy
from loraexp.records.claim import Claim, Lost
from loraexp.records.content import METRICS, SCHEMA, Content, content, sealed, sound_lines
from loraexp.records.environment import environment
from loraexp.records.sections import Evaluation, RunRecord
from loraexp.records.tracking import Copy

if TYPE_CHECKING:
    from loraexp.config.settings import WandbSettings

RESERVE = 256 * 2**10  # bytes of disk kept for the record of a run that fills the rest


class Mark(TypedDict):
    """How far metrics.jsonl has come: its length and its digest."""

    bytes: int
    sha256: str


class Finished(RuntimeError):
    """Another process finished this very run between the look at its record and the lock; `record`
    is what it left."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__(record["run_id"])
        self.record = record


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(folder: Path) -> RunRecord | None:
    """The record of a run folder; None where there is none, or where it cannot be used (it is then
    written anew)."""
    return content(folder).record


class Record:
    """The record of one run, kept from its first moment: `with Record(...) as record:` leaves one
    also when it fails.

    Only the main process of a parallel run writes; for the others every method does nothing.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        config: Plain,
        wandb: WandbSettings | None = None,
        *,
        main: bool = True,
        forced: bool = False,
        waits: bool = False,
    ) -> None:
        """`forced`: run again whatever there is; `waits`: for another process that has this run,
        instead of Busy."""
        self.folder = folder
        self.config = config
        self.main, self.forced, self.waits = main, forced, waits
        self.copy = Copy(wandb, folder, run_id, config)
        self.before: RunRecord = {}  # what an earlier attempt at this run had recorded
        self.claim: Claim | None = None
        self.metrics: IO[bytes] | None = None
        self.logged, self.digest = 0, hashlib.sha256()  # bytes of metrics.jsonl, and their digest
        self.content: RunRecord = {
            "schema": SCHEMA,
            "status": "running",
            "phase": "starting",
            "run_id": run_id,
            "config": config,
            "metrics": {},
            "best": None,
            "evaluations": [],
            "cost": {},
            "parameters": {},
            "data": {},
            "environment": {},
            "started": now(),
            "ended": None,
        }

    # ----------------------------------------------------------------------------------------------
    # life

    def __enter__(self) -> Record:
        if not self.main:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self.claim = Claim(self.folder, waits=self.waits)
        try:
            self._begin()
        except BaseException:
            self.claim.close()
            raise
        return self

    def _begin(self) -> None:
        found = content(self.folder)
        if not self.forced:
            refuse_newer(self.folder, found)
            if found.finished:
                raise Finished(found.record or {})
            self.before = found.record or {}
        ranks.clear(self.folder, others=True)
        clear_temporaries(self.folder)  # the claim is ours: whoever wrote them is dead
        if found.error is not None:
            set_aside(self.folder / RECORD)
        self.content["environment"] = environment()
        (self.folder / "error.txt").unlink(missing_ok=True)
        with on_disk(self.folder / RECORD):
            self._reserve.write_bytes(os.urandom(RESERVE))
        write_yaml(self.folder / STORED, self.config)
        self.write()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.main:
            if isinstance(error, Exception):
                ranks.leave(self.folder, error)
            return
        lost = error if isinstance(error, Lost) else None
        try:
            with on_disk(self.folder / RECORD):
                try:
                    if error is not None and lost is None:
                        self._end_with(error)
                except Lost as elsewhere:  # why it failed, and nobody's to write down
                    lost = elsewhere
                ranks.clear(self.folder)
                self._close()  # a server may refuse now what it had taken
            if isinstance(error, Exception):
                self.copy.start()  # one that failed before its first step is told to W&B as well
            self.copy.finish(self.content)
            if self.copy.error is not None and "wandb_error" not in self.content and lost is None:
                self.write()
        finally:
            with suppress(OSError):
                self._reserve.unlink()
            with suppress(OSError):
                self._close()
            if self.claim is not None:
                self.claim.close()
        if lost is not None and lost is not error:
            raise lost from error

    def _close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()

    def _end_with(self, error: BaseException) -> None:
        """Record why a run ended before its end: told to stop, or failed and where."""
        other = ranks.first(self.folder)
        stopped = isinstance(error, KeyboardInterrupt) and other is None
        self.content |= {"status": "interrupted" if stopped else "failed", "ended": now()}
        own = ranks.described(error)
        if other is not None and other["error"]["message"] != own["message"]:
            # it was there first: a process whose peer is gone has only that to say
            self.content["error"] = other["error"] | {"rank": other["rank"]}
        else:
            other = None
            self.content["error"] = own | {
                "message": own["message"] or ("interrupted" if stopped else "")
            }
        with suppress(OSError):
            self._reserve.unlink()
        self.write()
        if not stopped:
            text = other["trace"] if other else "".join(traceback.format_exception(error))
            (self.folder / "error.txt").write_text(text, errors="backslashreplace")

    def finish(self) -> RunRecord:
        self.content.pop("phase", None)
        self.content |= {"status": "finished", "ended": now()}
        self.write()
        return self.content

    # ----------------------------------------------------------------------------------------------
    # sections

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within: the run is doing this; a record that is not finished says what was being done
        last."""
        before = self.content.get("phase", "")
        self.content["phase"] = name
        yield
        self.content["phase"] = before

    def update(self, **sections: object) -> None:
        """Set sections of the record; a mapping is merged into what is there. Written at once."""
        own = cast(Plain, self.content)
        for name, value in sections.items():
            merges = isinstance(value, Mapping) and isinstance(own.get(name), dict)
            own[name] = own[name] | value if merges else value
        self.write()

    def write(self) -> None:
        """Write record.json; on a full disk, into the space that was kept for it."""
        if self.copy.error is not None:
            self.content["wandb_error"] = self.copy.error
        if not self.main:
            return
        path = self.folder / RECORD
        if self.claim is not None:
            self.claim.check()
        try:
            write_json(path, sealed(self.content))
        except DiskFull:
            if not self._reserve.exists():
                raise
            self._reserve.unlink()
            write_json(path, sealed(self.content))

    @property
    def _reserve(self) -> Path:
        return self.folder / ".reserve"

    # ----------------------------------------------------------------------------------------------
    # metrics.jsonl

    def start_metrics(self, mark: Mark | None = None, step: int = 0) -> str | None:
        """Open metrics.jsonl: anew, or (going on from a step) with exactly what stood in it at
        `mark`.

        Where that is no longer there, the lines that are sound are kept, and what is returned says
        so.
        """
        if not self.main:
            return None
        path = self.folder / METRICS
        kept, lost = b"", None
        if mark is not None:
            kept, lost = history(path, mark, step)
        replace(path, kept)
        self.metrics = path.open("ab", buffering=0)
        self.logged, self.digest = len(kept), hashlib.sha256(kept)
        self.copy.start()
        return lost

    def mark(self) -> Mark:
        """How far metrics.jsonl has come: its length and its digest."""
        return {"bytes": self.logged, "sha256": self.digest.hexdigest()}

    def log(self, step: int, **values: object) -> None:
        """One line of metrics.jsonl, and the same numbers to W&B."""
        if not self.main:
            return
        line = finite({"step": step, **values})
        text = (json.dumps(line) + "\n").encode()
        assert self.metrics is not None
        with on_disk(self.folder / METRICS):
            written = self.metrics.write(text)
            while written < len(text):  # an almost full disk takes a part and refuses the rest
                written += self.metrics.write(text[written:])
        self.logged += len(text)
        self.digest.update(text)
        self.copy.log(line)


def history(path: Path, mark: Mark, step: int) -> tuple[bytes, str | None]:
    """What of a log is kept at a checkpoint's mark, and where it is not what it was, which line
    says so."""
    try:
        logged = path.read_bytes()
    except OSError as error:
        return (
            b"",
            (
                f"metrics.jsonl cannot be read ({error.strerror}); what was logged up to step"
                f" {step} is lost"
            ),
        )
    whole = logged[: mark["bytes"]]
    if len(whole) == mark["bytes"] and hashlib.sha256(whole).hexdigest() == mark["sha256"]:
        return whole, None
    lines, bad = sound_lines(logged)
    kept = [line for line in lines if line["step"] <= step]
    aside = set_aside(path)
    said = (
        f"metrics.jsonl is damaged (kept as {aside.name}): {bad} lines could not be read,"
        f" {len(kept)} up to step {step} are kept"
    )
    return "".join(json.dumps(line) + "\n" for line in kept).encode(), said


def refuse_newer(folder: Path, found: Content) -> None:
    """Raises: ConfigError where a newer version of this program wrote the record, which only that
    one may replace."""
    if found.newer:
        raise ConfigError(f"{folder / RECORD}: {found.error}")


def add_evaluation(folder: Path, entry: Evaluation, wandb: WandbSettings | None = None) -> None:
    """Put a re-score of a finished run beside its own metrics, which never change; W&B gets it
    too."""
    with locked(folder / ".lock"):
        stored = content(folder)
        found = stored.record
        if found is None or found["status"] != "finished":
            raise ConfigError(
                f"{folder}: the run is being run again; score it when that has finished"
            )
        found["evaluations"] = [*(found.get("evaluations") or []), entry]
        write_json(folder / RECORD, sealed(found, stored.changed))
    copy = Copy(wandb, folder, found["run_id"], found["config"])
    copy.start()
    copy.finish(found)


def write_yaml(path: Path, value: object) -> None:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    replace(path, text.encode(errors="backslashreplace"))
