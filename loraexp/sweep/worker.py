"""What a worker of a sweep does: one run, or several that train together, and what became of
each."""

from __future__ import annotations

import gc
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loraexp import config
from loraexp.config import ConfigError, boundary
from loraexp.machine.locks import Lock
from loraexp.machine.signals import Interrupted, watched
from loraexp.machine.words import reason_of
from loraexp.records import record
from loraexp.sweep import cards
from loraexp.sweep.watch import claim_of, stamp

REST = 60.0  # seconds in which a worker that was told to stop begins nothing

# what a worker says of a run: folder, and outcome (ended | interrupted | busy | error) with reason
Report = dict[str, str]
Run = tuple[Any, dict[str, Any]]  # settings, and the plain configuration


def run_group(
    cfg: Any,
    *,
    before: dict[str, int],
    parent: int,
    others: Mapping[str, Sequence[dict[str, Any]]],
    devices: Mapping[str, str] = MappingProxyType({}),
    each: int = 1,
) -> list[Report]:
    """One run, and those that train together with it, in this process or in a worker, which when
    told to stop says so and begins nothing for a while; what became of each.

    `devices`: of the node, by name what each is called everywhere, of which a worker takes `each`
    as its own, the most that any of the runs is to have, for as long as it lasts.
    """
    from loraexp.machine import progress

    try:
        boundary.check_unsafe(cfg)
        first = config.check(cfg)
    except ConfigError as error:
        return [{"outcome": "error", "reason": str(error)}]
    folder = str(config.run_folder(first[1]))
    runs = [first, *(config.checked(plain) for plain in others.get(folder, ()))]
    if os.getpid() == parent:
        return attempt(runs, before)
    if devices:
        cards.take(devices, each)
    warnings.simplefilter("ignore", FutureWarning)
    told_off = [
        {"folder": str(config.run_folder(plain)), "outcome": "interrupted"} for _, plain in runs
    ]
    if time.monotonic() - Told.at < REST:
        return told_off
    with progress.unseen(), watched() as stop:
        try:
            return attempt(runs, before)
        except Interrupted as told:
            stop.name = told.name
            return told_off
        finally:
            if stop.name is not None:
                Told.at = time.monotonic()


class Told:
    """When this worker was last told to stop."""

    at = -math.inf


def attempt(runs: Sequence[Run], before: Mapping[str, int]) -> list[Report]:
    """Runs that train together, or one; what went wrong is told, never raised, and a run that
    another process has is left to it."""
    from loraexp.machine.measure import ran_out

    folders = [str(config.run_folder(plain)) for _, plain in runs]
    left = [i for i, folder in enumerate(folders) if not tried(Path(folder), before)]
    with claims([Path(folders[i]) for i in left]) as ours:
        made = run_all([runs[i] for i in left]) if ours else [record.Busy()] * len(left)
    ends: dict[int, Any] = dict(zip(left, made, strict=True))
    reports = [said(folder, ends.get(i), before) for i, folder in enumerate(folders)]
    failures = [e for e in ends.values() if isinstance(e, Exception)]
    unheard = (ConfigError, record.Busy)
    if any(not isinstance(e, unheard) for e in failures):
        starved = any(ran_out(e) for e in failures)
        ends.clear()
        failures.clear()
        release(everything=starved)
    return reports


@contextmanager
def claims(folders: Sequence[Path]) -> Iterator[bool]:
    """Within: no other command makes a run of this group one of its own, if none has already.

    A run's own lock is taken when its turn comes to begin, and the last of a group begins late:
    without a claim to them all two commands would tear the group apart, and train less together.
    """
    with ExitStack() as around:
        ours = len(folders) < 2 or all(claimed(folder, around) for folder in folders)
        yield ours


def claimed(folder: Path, around: ExitStack) -> bool:
    """Whether a run is now of this command's group, for as long as `around` lasts."""
    lock = Lock(claim_of(folder))
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    around.callback(lock.close, remove=True)
    return lock.take()


def tried(folder: Path, before: Mapping[str, int]) -> bool:
    """Whether another process has tried a run in vain since this command began."""
    found = record.read(folder)
    return (
        found is not None
        and found["status"] == "failed"
        and stamp(folder) != before.get(str(folder), 0)
    )


def said(folder: str, end: Any, before: Mapping[str, int]) -> Report:
    """What is told of a run by what it ended with: nothing, or an exception, of which its record
    holds type, message, place and trace."""
    if isinstance(end, ConfigError):
        return {"outcome": "error", "reason": str(end)}
    if isinstance(end, record.Busy):
        return {"folder": folder, "outcome": "busy"}
    if isinstance(end, Exception) and stamp(Path(folder)) == before.get(folder, 0):
        return {"outcome": "error", "reason": reason_of(end)}  # it failed before it had a record
    return {"folder": folder, "outcome": "ended"}


def run_all(runs: Sequence[Run]) -> Sequence[Any]:
    """Runs in this process, together where they are several; of each what it ended with. Raises:
    Interrupted where they were told to stop."""
    if len(runs) > 1:
        from loraexp.run import packed

        ends = packed.run(runs)
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, Exception):
                raise end
        return ends
    alone: list[Exception | None] = []
    for settings, plain in runs:
        try:
            run_one(settings, plain)
        except Exception as error:  # noqa: BLE001 - any failure of one run is told, never raised
            alone.append(error)
        else:
            alone.append(None)
    return alone


def run_one(settings: Any, plain: dict[str, Any]) -> None:
    """One run in this process, or in as many as it is to have cards."""
    each = settings.train.gpus_per_run
    if each == 1:
        from loraexp.run import experiment

        experiment.run(settings, plain)
        return
    from hydra.core.hydra_config import HydraConfig

    cards.shared_run(list(HydraConfig.get().overrides.task), each)


def release(everything: bool) -> None:
    """Free what a failed run has left; after one that ran out of memory also what is kept for the
    next."""
    import torch

    from loraexp.run import kept

    if everything:
        kept.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
