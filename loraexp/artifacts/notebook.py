"""A sweep's table and figure as Python has them: a DataFrame, and a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraexp.artifacts import drawing, formats, plots
from loraexp.artifacts import table as tables
from loraexp.config import ConfigError
from loraexp.results import gather
from loraexp.sweep import reading

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def table(
    name: str, *overrides: str, variant: str | None = None, source: str | None = None
) -> pandas.DataFrame:
    """One row for each place of the table of sweep `name`: row, column, mean, std, n, published,
    and what was chosen.

    `overrides` are those of `loraexp table`, such as `output_root=DIR`; `source` is
    `wandb:ENTITY/PROJECT`.
    """
    import pandas

    built = tables.build(gather.gather(reading.load(name, variant, overrides), source))
    return pandas.DataFrame(formats.places(built))


def plot(
    name: str,
    *overrides: str,
    variant: str | None = None,
    source: str | None = None,
    which: int = 0,
) -> Figure:
    """The figure of sweep `name` (the first that it declares, or number `which`), to show in a
    notebook or to save."""
    wanted = reading.load(name, variant, overrides)
    if not wanted.plots:
        raise ConfigError(
            f"{wanted.name}: this sweep declares no plots; loraexp.table has its numbers"
        )
    picture = plots.make(gather.gather(wanted, source), wanted.plots[which])
    return drawing.figure(picture)
