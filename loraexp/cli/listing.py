"""`loraexp list`: what there is, one line each."""

from __future__ import annotations

from collections.abc import Sequence

from loraexp import config
from loraexp.cli.options import Parser
from loraexp.config import ConfigError
from loraexp.sweep import reading

PLURALS = {"models": "model", "tasks": "task", "inits": "init", "optimizers": "optimizer", "methods": "method"}


def choices(arguments: Sequence[str]) -> int:
    """`loraexp list [models|tasks|inits|optimizers|methods|sweeps]`: name and first comment of every file."""
    parser = Parser("loraexp list", description=choices.__doc__)
    groups = [*PLURALS, "sweeps"]
    parser.add_argument("what", nargs="?", help=" | ".join(groups))
    what = parser.parse_args(arguments).what
    if what is not None and what not in groups:
        raise ConfigError(f"list {what}: {config.nearest(what, groups)}")
    for plural in [what] if what else groups:
        if what is None:
            print(f"\n{plural}")
        group = PLURALS.get(plural)
        for name in config.names(group) if group else reading.names():
            print(f"  {name:<35} {config.about(group, name) if group else reading.about(name)}")
    return 0
