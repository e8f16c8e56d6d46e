"""One run or a grid of them, through Hydra: composed, checked, run, and said."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraexp import config
from loraexp.cli import outcomes
from loraexp.config import ConfigError, boundary, search
from loraexp.machine import progress
from loraexp.machine.escapes import printable
from loraexp.machine.words import reason_of, shorten
from loraexp.records import record
from loraexp.records.reading import best_value

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def trace() -> None:
    """With -v, where an error came from."""
    if progress.verbose:
        traceback.print_exc()


def single(argv: Sequence[str]) -> int:
    """One run, or one of Hydra's own answers (`--help`, `--cfg job`, …)."""
    status = DONE

    def task(cfg: Any) -> None:
        nonlocal status
        status = attempt(cfg)

    hydra_main(task, argv)
    return status


def folder_of(cell: Sequence[str]) -> Path:
    """Where the run of a cell goes; raises ConfigError where it is wrong."""
    words = [word for word in cell if not word.startswith("hydra")]
    return config.run_folder(config.check(config.compose(words))[1])


def grid(argv: Sequence[str]) -> int:
    """Every cell of a grid, each checked before the first one starts; one that fails does not stop
    the others."""
    overrides = [word for word in argv if is_override(word)]
    sweeper = [word.partition("=")[2] for word in overrides if word.startswith("hydra/sweeper=")]
    if sweeper and sweeper[-1] != "basic":
        return search_space(argv, sweeper[-1])
    cells = config.expand(overrides)
    folders = [folder_of(cell) for cell in cells]
    if len(cells) == 1:
        print(
            "loraexp: -m: no key has several values, so this is one run; a grid is -m KEY=A,B,...",
            file=sys.stderr,
        )
    statuses: list[int] = []

    def task(cfg: Any) -> None:
        print(f"\n--- run {len(statuses) + 1} of {len(cells)}", file=sys.stderr)
        statuses.append(attempt(cfg))

    hydra_main(task, ["--multirun", *(word for word in argv if word not in ("-m", "--multirun"))])
    # A launcher may have run the cells in processes of its own: what became of them is on disk.
    lines = outcomes.lines_of(
        (dict(word.split("=", 1) for word in cell if is_override(word)), folder)
        for cell, folder in zip(cells, folders, strict=True)
    )
    print()
    outcomes.show(lines)
    failed = [line for line in lines if line.state != "finished"]
    if failed:
        print(
            f"loraexp: {len(failed)} of {len(cells)} runs failed; the same command retries only"
            " those",
            file=sys.stderr,
        )
    return max(statuses, default=DONE) or (FAILED if failed else DONE)


def search_space(argv: Sequence[str], sweeper: str) -> int:
    """A sweeper that chooses the runs itself, such as Optuna's: it is told what validation selected
    (`best/value`), which is better the larger it is, and nothing of a run that failed."""
    from hydra.core.hydra_config import HydraConfig

    statuses: list[int] = []
    runs: list[tuple[dict[str, str], Path]] = []

    def task(cfg: Any) -> float:
        print(f"\n--- run {len(statuses) + 1}", file=sys.stderr)
        statuses.append(attempt(cfg))
        settings, plain = config.check(cfg)
        words = [word for word in HydraConfig.get().overrides.task if is_override(word)]
        folder = config.run_folder(plain)
        runs.append((dict(word.split("=", 1) for word in words), folder))
        value = best_value(record.read(folder) or {})
        if value is None and statuses[-1] == DONE:
            raise ConfigError(
                f"task={settings.task['name']}: nothing selects a checkpoint, so there is no value"
                " to search by"
            )
        return float("nan") if value is None else float(value)

    words = [word for word in argv if word not in ("-m", "--multirun")]
    if sweeper == "optuna" and not any("hydra.sweeper.direction=" in word for word in words):
        words.append("hydra.sweeper.direction=maximize")  # its own default is to minimize
    hydra_main(task, ["--multirun", *words])
    print()
    outcomes.show(outcomes.lines_of(runs))
    return max(statuses, default=DONE)


def hydra_main(task: Any, argv: Sequence[str]) -> None:
    """Hand `argv` to Hydra with `conf/` as the configuration folder; its errors become
    ConfigError."""
    import hydra

    # exceptions come to us, who print one line, instead of Hydra's page
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before, sys.argv = sys.argv, ["loraexp", *argv, *search.overrides()]
    try:
        with config.translated():
            hydra.main(
                version_base="1.3", config_path=str(config.folder("conf")), config_name="config"
            )(task)()
    except SystemExit as error:
        if error.code not in (None, 0):
            raise ConfigError(f"{' '.join(argv)}: not understood; see loraexp --help") from error
    finally:
        sys.argv = before


def attempt(cfg: Any) -> int:
    """One run: its settings checked, run, and its result printed; a failure is one line, and the
    record has the rest."""
    try:
        boundary.check_unsafe(cfg)
        settings, plain = config.check(cfg)
    except ConfigError as error:
        trace()
        print(f"loraexp: {printable(str(error))}", file=sys.stderr)
        return WRONG
    try:
        from loraexp.cli import show
        from loraexp.run.experiment import run

        outcome = run(settings, plain, show.Screen())
    except ConfigError as error:
        trace()
        print(f"loraexp: {printable(str(error))}", file=sys.stderr)
        return WRONG
    except Exception as error:  # noqa: BLE001 - any failure of one run: its record holds type, message, place and trace
        trace()
        print(f"loraexp: {reason_of(error)} ({left_by(plain)})", file=sys.stderr)
        return FAILED
    show.result(outcome)
    return DONE


def left_by(plain: config.Plain) -> str:
    """Where the record of a run that failed is, as far as its disk answers, and what is saved."""
    try:
        path = config.run_folder(plain) / config.RECORD
        content = record.read(path.parent) or {}
        if not path.exists():
            return "no record could be written"
    except OSError:
        return "no record can be read"
    saved = content.get("phase") == "evaluation" and "adapter" in content
    more = "; the adapter is saved, and the same command only evaluates" if saved else ""
    return f"record: {shorten(path)}{more}"
