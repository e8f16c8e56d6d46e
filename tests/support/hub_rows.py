"""GLUE of the stand-in hub, as tests read it."""

from __future__ import annotations

from typing import Any

from loraexp.data.rows import Hub as Rows
from loraexp.data.tables import Columns, label_parser, labelled
from loraexp.data.tables import Rows as Labelled
from tests.support.hub_repositories import config

GLUE_COMMIT = config("task", "cola")["revision"]


def cola(
    split: str = "train",
    revision: str | None = GLUE_COMMIT,
    source: str = "nyu-mll/glue",
    config: str = "cola",
) -> Rows:
    return Rows(source, config, split, revision, "task.data_dir")


def read_hub(
    split: Rows, *, text: list[str], label: str, names: list[str] | None = None
) -> Labelled:
    """Labelled rows; scores where no names of classes are given."""
    problem: Any = "regression" if names is None else "single_label_classification"
    return labelled(
        split, Columns(text=text, label=label, parse=label_parser(problem, names or []))
    )
