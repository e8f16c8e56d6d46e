"""What befell a process of a run that does not write its record: it leaves a note in the folder,
and the one that does writes that instead of its own broken connection."""

from __future__ import annotations

import json
import os
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from loraexp.machine.files import write_json
from loraexp.records.sections import Failure

NOTE = ".rank{}.json"


class Note(TypedDict):
    """What befell a process: `launch` tells its start from every other."""

    rank: int
    launch: str
    error: Failure
    trace: str


def launch() -> str:
    """What all processes of one start share and those of another do not."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    one_node = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    parts = [os.environ.get(name, "") for name in names]
    return "|".join([*parts, str(os.getppid()) if one_node else ""])


def leave(folder: Path, error: BaseException) -> None:
    """Note why this process ends; without space for it nobody else is kept from saying so."""
    rank = int(os.environ.get("RANK", "0"))
    trace = "".join(traceback.format_exception(error))
    note = Note(rank=rank, launch=launch(), error=described(error), trace=trace)
    with suppress(OSError):
        write_json(folder / NOTE.format(rank), note)


def described(error: BaseException) -> Failure:
    """Type, message and place of an error, as a record says them."""
    return {"type": type(error).__name__, "message": str(error), "where": place_of(error)}


def place_of(error: BaseException) -> str:
    """The place in this program that an error came from: `file.py:line in function`."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}loraexp{os.sep}" in frame.filename] or list(
        frames
    )
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else "?"


def first(folder: Path) -> Note | None:
    """The earliest note of another process of this very start; None where all went well."""
    notes = []
    for path in folder.glob(NOTE.format("*")):
        try:
            note = json.loads(path.read_text())
            if note["launch"] == launch():
                notes.append((path.stat().st_mtime_ns, note))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return min(notes, key=lambda pair: pair[0])[1] if notes else None


def clear(folder: Path, *, others: bool = False) -> None:
    """Remove the notes; with `others` only those of earlier starts."""
    for path in folder.glob(NOTE.format("*")):
        try:
            if not others or json.loads(path.read_text()).get("launch") != launch():
                path.unlink()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError):
                path.unlink()
