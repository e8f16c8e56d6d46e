"""The command `loraexp`: a run or a grid through Hydra, and the verbs that work on what runs left
behind."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from loraexp import __version__, config
from loraexp.cli.start import DONE, INTERRUPTED, WRONG, grid, is_override, single, trace
from loraexp.config import ConfigError, boundary, search
from loraexp.config.paths import spelled
from loraexp.machine import collector, progress
from loraexp.machine.escapes import printable
from loraexp.machine.words import reason_of

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done (also when the run was finished already), 1 a run failed, 2 the arguments
    are wrong.

    130 and 143: told to stop, by Ctrl-C or by a signal.
    """
    argv = spelled(sys.argv[1:] if arguments is None else arguments)
    progress.verbose = bool(VERBOSE & set(argv))
    with boundary.command(trust=boundary.FLAG in argv):
        return status_of([word for word in argv if word not in VERBOSE | {boundary.FLAG}])


def status_of(argv: list[str]) -> int:
    """Carry out what these words say."""
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


def verb(name: str) -> Callable[[Sequence[str]], int]:
    """The function of a verb, whose module is imported only when it is asked for."""
    module, function = VERBS[name]
    found: Callable[[Sequence[str]], int] = getattr(
        importlib.import_module(f"loraexp.cli.{module}"), function
    )
    return found


def help_of(words: Sequence[str]) -> int:
    """`loraexp help [VERB]`: the verbs with a line each, or the options of one."""
    if words and words[0] != "help":
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
        print(f"loraexp {name:<23} {sentence(verb(name))}")
    print("\nloraexp help VERB               the options of a verb")
    return DONE


def sentence(function: Callable[..., int]) -> str:
    """What a verb does: the first sentence of its docstring, on one line."""
    first = (function.__doc__ or "").partition("\n\n")[0]
    return " ".join(first.split()).partition(". ")[0].rstrip(".") + "."


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


def entry() -> None:
    """The console script: whatever goes wrong is one line; what libraries announce for their next
    version is no concern."""
    warnings.simplefilter("ignore", FutureWarning)
    collector.rest()
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
