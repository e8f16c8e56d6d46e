"""`loraexp sweep`: every missing run of a sweep, through the Hydra launcher of the configuration.

What has been done is what the records on disk say. So a command that was interrupted is simply
given again, and two commands on one disk share a sweep: the lock in a run's folder is the claim,
and a dead process holds none.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loraexp import config
from loraexp.config import ConfigError
from loraexp.config.paths import PLACES, quoted
from loraexp.machine.progress import notice, tally
from loraexp.machine.signals import Interrupted, Stop, to_children, watched
from loraexp.machine.words import reason_of
from loraexp.sweep import actors, cards, computed
from loraexp.sweep.cells import Cell, expand, last_wins, lookup
from loraexp.sweep.packs import Packs
from loraexp.sweep.schema import Sweep
from loraexp.sweep.watch import Watch, held, stamp, wait
from loraexp.sweep.worker import Report, run_group

ATTEMPTS = 2  # at a run whose process dies without a word (killed for its memory, its node lost)

Launch = Callable[[Sequence[Cell]], list[Report] | None]


# --------------------------------------------------------------------------------------------------
# computed sweeps


def compute(sweep: Sweep) -> Path:
    """A sweep without runs: its function, with a progress bar; one that is finished is not computed
    again. Its folder."""
    into = computed.folder(sweep, sweep.output_root)
    computed.check(sweep)
    with tally(sweep.key) as progress:
        computed.run(sweep, sweep.output_root, progress)
    return into


# --------------------------------------------------------------------------------------------------
# runs


def run(sweep: Sweep, hydra: Sequence[str], summarise: Callable[[Sweep, Watch], None]) -> Watch:
    """Bring every run of the sweep to an end; `summarise` is called also when that is
    interrupted."""
    expanded = expand(sweep)
    cells = ordered(expanded)
    packs = Packs(sweep, expanded, sharing=cards.sharing(hydra))
    values = {
        f"{row}/{column}": sweep.rows[row].value or sweep.columns[column].value
        for row, column in sweep.trained()
    }
    watch = Watch(sweep.key, cells, values)
    notice(f"{sweep.key}: {len(cells)} runs, {watch.already} finished already")
    try:
        if watch.already < len(cells):
            packs.say(sweep.key, watch.open())
            # Ray's workers are told by Ray, wherever they are; its daemons stay until they ended
            pass_on = None if cards.launcher_of(hydra) == "ray" else to_children
            with (
                watched(pass_on=pass_on) as stop,
                launcher(sweep, watch.before, hydra, packs, cells, stop) as launch,
                watch.shown(),
            ):
                rounds(watch, launch, stop)
    finally:
        summarise(sweep, watch)
    return watch


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """Each run once, in the order of the sweep, but those that share a model, then a task, then
    statistics one after another."""
    first: dict[str, int] = {}

    def seen(*parts: Any) -> int:
        """The place of what was first seen when; equal parts have the same."""
        return first.setdefault(json.dumps(parts, sort_keys=True, default=str), len(first))

    def key(cell: Cell) -> tuple[int, int, int]:
        plain = cell.plain
        full = config.Component.of(plain["init"], "init").full
        shared = (plain["model"], plain["precision"], full)
        return (
            seen(*shared),
            seen(*shared, plain["task"]),
            seen(*shared, plain["task"], plain["init"], plain["seed"]),
        )

    once: dict[Path, Cell] = {}
    for cell in cells:
        once.setdefault(cell.folder, cell)
    keys = {folder: key(cell) for folder, cell in once.items()}
    return [once[folder] for folder in sorted(once, key=keys.__getitem__)]


def rounds(watch: Watch, launch: Launch, stop: Stop | None = None) -> None:
    """Launch what nobody runs, until every cell has come to an end; cells that others hold are
    waited for.

    A run whose process died is tried once more, by whichever command finds it, and alone: what died
    with it is not suspected again. A death is charged to the runs that had begun, not to those that
    waited behind them. One whose worker was told to stop goes on in another. Raises: Interrupted
    where this command itself was told to stop, once its workers have.
    """
    tried: Counter[Path] = Counter()
    while left := watch.open():
        if stop is not None and stop.name is not None:
            raise Interrupted(
                stop.name,
                f"with {len(left)} of {len(watch.cells)} runs left; the same command goes on there",
            )
        free = [cell for cell in left if not held(cell.folder)]
        if not free:
            wait()
            continue
        cells = [cell for cell in free if tried[cell.folder]][:1] or free
        stamps = {cell.folder: stamp(cell.folder) for cell in cells}
        reports = launch(cells)
        watch.look()
        if stop is not None and stop.name is not None:
            continue
        if any(said["outcome"] == "interrupted" for said in reports or ()):
            wait()
        for cell, said in zip(cells, reports or (), strict=False):
            if said["outcome"] == "error":
                watch.fail(cell.folder, said["reason"])
        for cell in dead(watch, cells, reports, stamps):
            tried[cell.folder] += 1
            if tried[cell.folder] >= ATTEMPTS:
                watch.fail(
                    cell.folder,
                    f"its process died {ATTEMPTS} times without a word: killed, perhaps for its"
                    " memory",
                )


def dead(
    watch: Watch, cells: Sequence[Cell], reports: list[Report] | None, stamps: Mapping[Path, int]
) -> list[Cell]:
    """The cells whose process died: those that wrote a record since they were launched, and came to
    no end.

    Where the launcher says of each what became of it, it is believed. Where none had begun and none
    has ended, the launcher itself does not work with them: then it is all of them.
    """
    still = {cell.folder for cell in watch.open() if not held(cell.folder)}
    if reports is not None:
        over = ("busy", "interrupted", "error")
        said = zip(cells, reports, strict=True)
        return [
            cell for cell, report in said if report["outcome"] not in over and cell.folder in still
        ]
    left = [cell for cell in cells if cell.folder in still]
    begun = [cell for cell in left if stamp(cell.folder) != stamps[cell.folder]]
    return begun or (left if len(left) == len(cells) else [])


@dataclass(frozen=True)
class Launcher:
    """A Hydra launcher that is handed cells, and says what its workers said of each."""

    words: Sequence[str]  # hydra/launcher=NAME, as it was asked for
    made: Any
    packs: Packs
    others: dict[str, list[dict[str, Any]]]  # by the folder of a group's first run

    def __call__(self, cells: Sequence[Cell]) -> list[Report] | None:
        """None where the launcher itself broke down after runs had begun: what became of them is on
        disk."""
        stamps = [stamp(cell.folder) for cell in cells]
        groups = self.packs.of(cells)
        self.others.clear()
        self.others.update({str(first.folder): [c.plain for c in rest] for first, *rest in groups})
        try:
            done = self.made.launch([job(group[0]) for group in groups], initial_job_idx=0)
        except Exception as error:  # noqa: BLE001 - a launcher raises what it likes, also for one worker that died
            if stamps == [stamp(cell.folder) for cell in cells]:
                raise ConfigError(
                    f"{' '.join(self.words) or 'hydra/launcher=basic'}: no run could be started:"
                    f" {reason_of(error)}"
                ) from error
            notice(
                f"loraexp: the launcher stopped ({reason_of(error)}); going on with what is left"
            )
            return None
        reports = {
            cell.folder: checked(report, cell)
            for answer, group in zip(done, groups, strict=True)
            for report, cell in zip(each_of(answer.return_value, group), group, strict=True)
        }
        return [reports[cell.folder] for cell in cells]


@contextmanager
def launcher(
    sweep: Sweep,
    before: dict[Path, int],
    hydra: Sequence[str],
    packs: Packs,
    cells: Sequence[Cell] = (),
    stop: Stop | None = None,
) -> Iterator[Launcher]:
    """The Hydra launcher `hydra/launcher=NAME`, while Hydra is composed as its workers find it."""
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    each = max((int(cell.plain["train"]["gpus_per_run"]) for cell in cells), default=1)
    devices = cards.of_node()
    hydra = cards.asked(hydra, devices, each)
    cards.check_named(hydra, {str(cell.plain["device"]) for cell in cells})
    root = [f"output_root={quoted(str(sweep.output_root))}", *config.search.overrides()]
    with (
        initialize_config_dir(str(config.folder("conf")), job_name="loraexp", version_base="1.3"),
        config.translated(),
    ):
        loader = GlobalHydra.instance().hydra
        assert loader is not None
        cfg = loader.compose_config(
            config_name="config", overrides=[*root, *hydra], run_mode=RunMode.MULTIRUN
        )
        context = HydraContext(config_loader=loader.config_loader, callbacks=Callbacks(cfg))
        others: dict[str, list[dict[str, Any]]] = {}
        task = partial(
            run_group,
            others=others,
            before={str(folder): when for folder, when in before.items()},
            parent=os.getpid(),
            devices=cards.identities(devices) if cards.launcher_of(hydra) == "joblib" else {},
            each=each,
        )
        made: Any = Plugins.instance().instantiate_launcher(
            config=cfg, hydra_context=context, task_function=task
        )
        if cards.launcher_of(hydra) == "ray":
            made = actors.Actors(made, each, stop)
        yield Launcher(hydra, made, packs, others)


def each_of(reports: list[Report], group: Sequence[Cell]) -> list[Report]:
    """What is told of each run of a group; of one whose first could not be read, the same of
    all."""
    return reports if len(reports) == len(group) else reports * len(group)


def checked(report: Report, cell: Cell) -> Report:
    if report["outcome"] not in ("error", "died") and report["folder"] != str(cell.folder):
        raise RuntimeError(
            f"{cell.row}/{cell.column}: ran as {report['folder']}, expected {cell.folder}: its"
            " overrides compose differently"
        )
    return report


def job(cell: Cell) -> list[str]:
    """The overrides of a cell, its paths absolute."""
    # absolute for workers that start elsewhere
    paths = {key: lookup(cell.plain, key) for key in PLACES}
    return last_wins(
        [*cell.overrides, *(f"{key}={quoted(str(path))}" for key, path in paths.items() if path)]
    )
