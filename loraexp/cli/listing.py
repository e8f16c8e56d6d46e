"""`loraexp list`: what there is, one line each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loraexp import config
from loraexp.cli.options import Parser, expected
from loraexp.config import ConfigError
from loraexp.sweep import reading

PLURALS = {
    "models": "model",
    "tasks": "task",
    "inits": "init",
    "optimizers": "optimizer",
    "methods": "method",
}


def choices(arguments: Sequence[str]) -> int:
    """What there is to choose from, one line each: models, tasks, inits, optimizers, methods,
    sweeps, keys."""
    parser = Parser("loraexp list", description=choices.__doc__)
    groups = [*PLURALS, "sweeps", "keys"]
    parser.add_argument("what", nargs="?", metavar="GROUP", help=" | ".join(groups))
    what = parser.parse_args(arguments).what
    if f"{what}s" in groups:  # one model, many models
        what = f"{what}s"
    if what is not None and what not in groups:
        raise ConfigError(f"list {what}: {expected(what, groups)}")
    for plural in [what] if what else groups[:-1]:
        if plural == "keys":
            keys()
            continue
        if what is None:
            print(f"\n{plural}")
        group = PLURALS.get(plural)
        for name in config.names(group) if group else reading.names():
            print(f"  {name:<35} {config.about(group, name) if group else reading.about(name)}")
    return 0


def keys() -> None:
    """Every key of the configuration with its value, and what `conf/config.yaml` says of it."""
    said: dict[str, tuple[str, str]] = {}
    group = ""
    for line in (config.folder("conf") / "config.yaml").read_text().splitlines():
        if line.startswith("hydra:"):
            break
        match = re.fullmatch(r"( *)(\w+): *([^#]*?)(?: +# *(.*))?", line)
        if match is None:
            continue
        indent, name, value, comment = match.groups()
        group = group if indent else name
        if value:
            said[f"{group}.{name}" if indent else name] = (value, comment or "")
    for key, (value, comment) in said.items():
        print(f"  {key:<28} {value:<12} {comment}".rstrip())
    print("  and the keys of a task, an initializer or a rule: loraexp init=lora_one --cfg job")
