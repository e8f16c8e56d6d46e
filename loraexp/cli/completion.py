"""`loraexp completion`: what a shell offers after Tab: verbs, sweeps, runs, keys, and their
values."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from loraexp import config
from loraexp.cli.options import Parser
from loraexp.config import settings

SHELLS = ("bash", "zsh")
# bash splits words at = too: what is offered is what stands behind the last one
SCRIPT = """_loraexp() {
  local IFS=$'\\n'
  COMPREPLY=($(loraexp completion --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
  if [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _loraexp loraexp
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
OF_SWEEPS = ("sweep", "plan", "table", "plot", "report")
OF_RUNS = ("verify", "export", "eval", "align")
OF_KEYS = ("sweep", "plan", "table", "plot", "report", "compare", "show", "eval", "align")
MOST_RUNS = 200


def completion(arguments: Sequence[str]) -> int:
    """Tab completion: eval "$(loraexp completion bash)" in ~/.bashrc, or with zsh in ~/.zshrc."""
    parser = Parser("loraexp completion", description=completion.__doc__)
    parser.add_argument("shell", nargs="?", choices=SHELLS, default="bash")
    parser.add_argument("--line", help="the command line as far as it is typed: prints what fits")
    options = parser.parse_args(arguments)
    if options.line is None:
        print((ZSH if options.shell == "zsh" else "") + SCRIPT, end="")
        return 0
    for word in candidates(options.line):
        print(word)
    return 0


def candidates(line: str) -> list[str]:
    """What may stand in place of the last word of a line, each as far as the shell replaces it."""
    words = line.split()[1:]
    last = words.pop() if words and not line.endswith(" ") else ""
    key, equals, _ = last.partition("=")
    if equals and not last.startswith("-"):
        before = last.rpartition(",")[0] + "," if "," in last else f"{key}="
        fitting = [before + value for value in values(key)]
        return [word.rpartition("=")[2] for word in fitting if word.startswith(last)]
    return [word for word in dict.fromkeys(offered(words, last)) if word.startswith(last)]


def offered(words: Sequence[str], last: str) -> list[str]:
    """The words that may come after `words`."""
    from loraexp.cli.main import VERBS

    verb = words[0] if words and words[0] in VERBS else None
    if words == ["help"]:
        return list(VERBS)
    if verb is None:
        first = [] if words else [*VERBS, "help"]
        flags = ["-m", "-v", "--help", "--version", "--config-dir", "--cfg"]
        return [*first, *(flags if last.startswith("-") else []), *keys()]
    if last.startswith("-"):
        return flags_of(VERBS[verb])
    found: list[str] = []
    if words[-1] == "--variant":
        return []
    if len(words) == 1 and verb in OF_SWEEPS:
        from loraexp.sweep import reading

        found += reading.names()
    if verb in OF_RUNS:
        found += runs()
    if verb == "list":
        from loraexp.cli.listing import PLURALS

        found += [*PLURALS, "sweeps", "keys"]
    if verb == "new" and len(words) == 1:
        from loraexp.cli.new import KINDS

        found += KINDS
    if verb == "compare":
        found += [*config.names("init"), *config.names("method")]
    return [*found, *(keys() if verb in OF_KEYS and len(words) > 1 else [])]


def flags_of(place: tuple[str, str]) -> list[str]:
    """The options that the help page of a verb names."""
    import importlib

    module, function = place
    verb: Callable[[Sequence[str]], int] = getattr(
        importlib.import_module(f"loraexp.cli.{module}"), function
    )
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        verb(["--help"])
    return sorted(set(re.findall(r"(?<!\w)--[a-z][a-z-]*", page.getvalue())))


def runs() -> list[str]:
    """The folders of runs under ./outputs, the newest first."""
    found = sorted(
        Path("outputs").glob(f"**/{config.RECORD}"), key=lambda path: -path.stat().st_mtime_ns
    )
    return [str(path.parent) for path in found[:MOST_RUNS]]


def keys() -> list[str]:
    return sorted({f"{key}=" for key in config.known_keys("")})


def values(key: str) -> Iterable[str]:
    """What a key may be, where that is a list: a file of its group, or one of the words of its
    type."""
    if key.lstrip("+~") in config.GROUPS:
        return config.names(key.lstrip("+~"))
    holder: type = settings.Settings
    *groups, name = key.split(".")
    for group in groups:
        part = "calibration" if group == "init" else group
        holder = config.type_hints(holder).get(part, object)
    hint = config.type_hints(holder).get(name) if isinstance(holder, type) else None
    options = [hint, *get_args(hint)]
    words = [word for one in options if get_origin(one) is Literal for word in get_args(one)]
    return [str(word) for word in words] or (["true", "false"] if hint is bool else [])
