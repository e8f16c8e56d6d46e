"""`loraexp show`: the first rows of a task as the model is given them, and what of them is
trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from loraexp import config
from loraexp.cli.options import Parser
from loraexp.config import ConfigError


def show(arguments: Sequence[str]) -> int:
    """The first rows of a task as they are tokenised and masked: what is trained is underlined, or
    between ⟦ and ⟧."""
    parser = Parser("loraexp show", description=show.__doc__)
    parser.add_overrides("task=NAME, model=NAME, …")
    parser.add_argument("--rows", type=int, metavar="N", default=3, help="how many (default 3)")
    options = parser.parse_intermixed_args(arguments)
    if options.rows < 1:
        raise ConfigError(f"--rows {options.rows}: expected a whole number of at least 1")
    settings, _ = config.check(config.compose(config.settled(options.overrides)))
    from loraexp import models
    from loraexp.machine import repository
    from loraexp.run import components
    from loraexp.tasks.preview import preview

    try:
        with repository.pins(Path(settings.output_root)):  # the rows that a run here has
            task = components.tokenise(settings, models.open(settings.model))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    console = Console(highlight=False, soft_wrap=True)
    examples = task.splits["train"]
    lengths = examples.lengths
    size = (
        f"{len(examples):,} rows, {int(lengths.mean())} tokens on average, {int(lengths.max())} at"
        " most"
    )
    console.print(f"{task.name} for {settings.model.name}: {size}")
    for number, row in enumerate(preview(task, options.rows), 1):
        trained = sum(learned for _, learned in row)
        console.print(f"\nrow {number}: {len(row)} tokens, {trained} of them trained")
        console.print(written(row, styled=console.is_terminal))
    return 0


def written(row: Sequence[tuple[str, bool]], *, styled: bool) -> Text:
    """The tokens as text, control characters spelt, with what is trained marked."""
    text = Text()
    before = False
    for piece, learned in [*row, ("", False)]:
        if not styled and learned != before:
            text.append("⟦" if learned else "⟧")
        shown = piece.replace("\n", "⏎\n").replace("\t", "⇥")
        text.append(shown, style="underline" if learned and styled else "")
        before = learned
    return text
