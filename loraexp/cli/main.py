"""The command `loraexp`: a run or a grid through Hydra, and the verbs that work on what runs left
behind."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loraexp import __version__, config
from loraexp.config import ConfigError, boundary, search
from loraexp.config.paths import spelled
from loraexp.machine import progress
from loraexp.machine.escapes import printable
from loraexp.machine.words import first_line, reason_of, shorten
from loraexp.records import record

# Flags of Hydra that take the next word as their value.
WITH_VALUE = {
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--package",
    "-p",
    "--cfg",
    "-c",
    "--info",
    "-i",
}
FLAGS = {
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--resolve",
    "--run",
    "-r",
    "--multirun",
    "-m",
    "--shell-completion",
    "-sc",
}
# Anywhere on the line: details, and where an error came from.
VERBOSE = {"-v", "--verbose"}
# verb → module of this package, and function in it: `(arguments) -> exit status`, its docstring
# what `help VERB` says.
VERBS = {
    "sweep": ("sweep", "sweep"),
    "compare": ("sweep", "compare"),
    "plan": ("sweep", "plan"),
    "table": ("sweep", "table"),
    "plot": ("sweep", "plot"),
    "report": ("sweep", "report"),
    "list": ("listing", "choices"),
    "verify": ("finished", "verify"),
    "export": ("finished", "export"),
    "eval": ("finished", "evaluate"),
    "align": ("finished", "align"),
    "runs": ("inventory", "runs"),
    "show": ("preview", "show"),
    "fetch-demo": ("fetch", "fetch_demo"),
    "new": ("new", "new"),
    "completion": ("completion", "completion"),
}
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done (also when the run was finished already), 1 a run failed, 2 the arguments
    are wrong.

    130 and 143: told to stop, by Ctrl-C or by a signal.
    """
    argv = spelled(sys.argv[1:] if arguments is None else arguments)
    progress.verbose = bool(VERBOSE & set(argv))
    boundary.begin(trust=boundary.FLAG in argv)
    argv = [word for word in argv if word not in VERBOSE | {boundary.FLAG}]
    try:
        argv = [config.readable(word) if is_override(word) else word for word in own_folders(argv)]
        if argv and argv[0] in VERBS:
            return verb(argv[0])(argv[1:])
        if argv and argv[0] == "help":
            return help_of(argv[1:])
        if "--version" in argv:
            print(f"loraexp {__version__}")
            return DONE
        refuse_words(argv)
        overrides = [word for word in argv if is_override(word)]
        plus = dict(zip(overrides, config.settled(overrides), strict=True))
        argv = [plus.get(word, word) for word in argv]
        return grid(argv) if {"-m", "--multirun"} & set(argv) else single(argv)
    except ConfigError as error:
        trace()
        print(f"loraexp: {printable(str(error))}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt as error:
        print(
            f"loraexp: {error if str(error) else 'interrupted; the same command goes on'}",
            file=sys.stderr,
        )
        return getattr(error, "status", INTERRUPTED)


def trace() -> None:
    """With -v, where an error came from."""
    if progress.verbose:
        traceback.print_exc()


def is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def verb(name: str) -> Callable[[Sequence[str]], int]:
    """The function of a verb, whose module is imported only when it is asked for."""
    module, function = VERBS[name]
    return getattr(importlib.import_module(f"loraexp.cli.{module}"), function)  # type: ignore[no-any-return]


def help_of(words: Sequence[str]) -> int:
    """`loraexp help [VERB]`: the verbs with a line each, or the options of one."""
    if words:
        if words[0] not in VERBS:
            raise ConfigError(
                f"help {words[0]}: there is no such verb; {config.nearest(words[0], VERBS)}"
            )
        try:
            return verb(words[0])(["--help"])
        except SystemExit:  # argparse leaves after a help page
            return DONE
    print("loraexp [KEY=VALUE ...]         one run; -m KEY=A,B,... a grid; --help the keys")
    print("-v on any line                  details as they happen, and where an error came from\n")
    for name in VERBS:
        said = (verb(name).__doc__ or "").strip().splitlines()[0]
        print(f"loraexp {name:<23} {said}")
    print("\nloraexp help VERB               the options of a verb")
    return DONE


def refuse_words(argv: Sequence[str]) -> None:
    """A bare word is neither a verb nor an override, and a flag is one of Hydra's: say which there
    are."""
    for before, word in zip([""] + list(argv), argv, strict=False):
        flag, _, value = word.partition("=")
        if word.startswith("-") and flag not in FLAGS | WITH_VALUE:
            raise ConfigError(
                f"{flag}: there is no such flag; {config.nearest(flag, FLAGS | WITH_VALUE)}"
            )
        shown = value if flag in ("--cfg", "-c") else word if before in ("--cfg", "-c") else ""
        if shown not in ("", "job", "hydra", "all"):
            raise ConfigError(f"--cfg {shown}: expected job, hydra or all")
        if before in WITH_VALUE or word.startswith(("-", "~", "+")) or "=" in word:
            continue
        raise ConfigError(f"{word}: expected KEY=VALUE or a verb; {remedy(before, word, argv)}")


def remedy(before: str, word: str, argv: Sequence[str]) -> str:
    """What a bare word may have meant, with the one before it."""
    after = [*argv[argv.index(word) + 1 :], ""][0]
    if after.startswith("=") or word.endswith("=") or before.endswith("="):
        key, value = (word, argv[-1]) if after.startswith("=") else (before.rstrip("="), word)
        return f"no spaces around =, as in {key}={value.lstrip('=')}"
    if word in ("train", "run", "fit", "start"):
        return "one run needs no verb: loraexp KEY=VALUE ...; a table's runs: loraexp sweep NAME"
    near = config.nearest(word, VERBS)
    if is_override(before) and not near.startswith("nearest"):
        return f"quote a value with a space in it: '{before} {word}'"
    return near


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
    from loraexp.cli import outcomes

    overrides = [word for word in argv if is_override(word)]
    sweeper = [word.partition("=")[2] for word in overrides if word.startswith("hydra/sweeper=")]
    if sweeper and sweeper[-1] != "basic":
        return search_space(argv, sweeper[-1])
    cells = config.expand(overrides)
    folders = [folder_of(cell) for cell in cells]
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

    from loraexp.cli import outcomes

    statuses: list[int] = []
    runs: list[tuple[dict[str, str], Path]] = []

    def task(cfg: Any) -> float:
        print(f"\n--- run {len(statuses) + 1}", file=sys.stderr)
        statuses.append(attempt(cfg))
        settings, plain = config.check(cfg)
        words = [word for word in HydraConfig.get().overrides.task if is_override(word)]
        folder = config.run_folder(plain)
        runs.append((dict(word.split("=", 1) for word in words), folder))
        content = record.read(folder) or {}
        value = (content.get("best") or {}).get("value")
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


def own_folders(argv: Sequence[str]) -> list[str]:
    """The line without the user's configuration folders (`--config-dir DIR` anywhere on it, or
    Hydra's searchpath), which are looked in from now on, whatever the verb."""
    left: list[str] = []
    folders: list[str] = []
    words = iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        if key in ("--config-dir", "-cd"):
            folders.append(value if equals else next(words, ""))
        elif key == "hydra.searchpath":
            folders += [
                part.strip(" '\"").removeprefix("file://") for part in value.strip("[]").split(",")
            ]
        else:
            left.append(word)
    search.use(folders)
    return left


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
        path = config.run_folder(plain) / "record.json"
        content = record.read(path.parent) or {}
        saved = content.get("phase") == "evaluation" and "adapter" in content
        more = "; the adapter is saved, and the same command only evaluates" if saved else ""
        trace()
        where = (
            f" (record: {shorten(path)}{more})"
            if path.exists()
            else " (no record could be written)"
        )
        print(f"loraexp: {type(error).__name__}: {first_line(error)}{where}", file=sys.stderr)
        return FAILED
    show.result(outcome)
    return DONE


def entry() -> None:
    """The console script: whatever goes wrong is one line; what libraries announce for their next
    version is no concern."""
    warnings.simplefilter("ignore", FutureWarning)
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        # nothing is left to say at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = DONE
    except KeyboardInterrupt:
        print("loraexp: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except (OSError, SyntaxError, UnicodeError) as error:
        print(f"loraexp: {reason_of(error)}", file=sys.stderr)
        status = WRONG
    sys.exit(status)
