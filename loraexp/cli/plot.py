"""`loraexp plot`: the figures of a sweep, from the records of its runs or from what it computed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loraexp import config
from loraexp.cli.verbs import Parser
from loraexp.config import ConfigError
from loraexp.sweep import schema

FORMATS = ("png", "svg", "pdf")


def main(arguments: Sequence[str]) -> int:
    """`loraexp plot NAME [--variant V] [--to DIR] [--format png,svg,pdf] [--from SOURCE] [KEY=VALUE ...]`: draw a sweep's figures.

    Each is written as `<output_root>/figures/<sweep>-<plot>.<format>`, with whatever has been measured; what is missing is
    named in the figure. Exit status 1 where a figure has no data at all.
    """
    options = parser().parse_intermixed_args(arguments)
    formats = formats_of(options.format)
    wanted = schema.load(options.name, options.variant, options.overrides)
    if not wanted.plots:
        raise ConfigError(f"{wanted.name}: this sweep declares no plots; loraexp table {wanted.name} prints its table")
    from loraexp.artifacts import drawing, plots
    from loraexp.results import gather

    found = gather.gather(wanted, options.source)
    for problem in found.problems:
        print(f"loraexp: {problem}", file=sys.stderr)
    into = options.to or wanted.output_root / "figures"
    empty = 0
    for plot in wanted.plots:
        picture = plots.make(found, plot)
        if picture.empty:
            print(f"loraexp: {wanted.key}-{plot.name}: no data; loraexp sweep {wanted.words} makes it", file=sys.stderr)
            empty += 1
            continue
        for path in drawing.save(picture, into / f"{wanted.key}-{plot.name}", formats):
            print(os.path.relpath(path) if not os.path.relpath(path).startswith("../..") else path)
    return 1 if empty else 0


def parser() -> argparse.ArgumentParser:
    made = Parser("loraexp plot", description=main.__doc__)
    made.add_argument("name", help="a sweep (see loraexp list sweeps), or a yaml file of your own")
    made.add_argument("overrides", nargs="*", help="KEY=VALUE as given to loraexp sweep, such as output_root=DIR")
    made.add_argument("--variant", help="one of the sweep's variants, such as smoke")
    made.add_argument("--to", type=Path, help="a folder (default: figures under output_root)")
    made.add_argument("--format", default=",".join(FORMATS), help="png, svg, pdf, separated by commas (default: all three)")
    made.add_argument("--from", dest="source", help="wandb:ENTITY/PROJECT, or wandb:DIR of offline runs (default: the records on disk)")
    return made


def formats_of(word: str) -> list[str]:
    found = [part.strip() for part in word.split(",") if part.strip()]
    for part in found or [word]:
        if part not in FORMATS:
            raise ConfigError(f"--format {part}: expected some of {', '.join(FORMATS)}; {config.nearest(part, FORMATS)}")
    return found
