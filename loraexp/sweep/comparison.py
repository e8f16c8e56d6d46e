"""`loraexp compare`: the sweep of equal conditions, with rows and a task of one's own."""

from __future__ import annotations

from collections.abc import Sequence

from loraexp import config
from loraexp.config import ConfigError, Plain
from loraexp.machine.notation import read_yaml
from loraexp.sweep.reading import known_name, read
from loraexp.sweep.schema import Sweep, key_of
from loraexp.sweep.variants import narrowed

EQUAL = "equal_conditions"


def comparison(
    mine: Sequence[str],
    against: Sequence[str],
    overrides: Sequence[str],
    variant: str | None = None,
) -> Sweep:
    """`sweeps/equal_conditions.yaml` with rows of one's own first, beside those named (none: all of
    its rows).

    A row of one's own is an initializer, a method, or `KEY=VALUE` words joined by commas
    (`init=mine,optimizer=p_lora`). Raises: ConfigError for a name that is none.
    """
    path = config.folder("sweeps") / f"{EQUAL}.yaml"
    content: Plain = read_yaml(path, dict)
    rows = content["rows"]
    for name in against:
        known_name("--against", name, rows, "row")
    kept = {name: rows[name] for name in against} if against else dict(rows)
    own = {
        name.replace("=", "_").replace(",", "-"): {"label": name, "overrides": own_words(name)}
        for name in mine
    }
    content["rows"] = own | {name: row for name, row in kept.items() if name not in own}
    words = {key_of(word): word for word in overrides}
    for patch in content["variants"].values():
        if patch.get("keep_rows") is not None:
            patch["keep_rows"] = list(content["rows"]) if against else [*own, *patch["keep_rows"]]
    if "task" in words:
        task, first = words["task"].partition("=")[2], next(iter(content["columns"]))
        content["columns"] = columns_of(content["columns"], task)
        content["plots"] = plots_of(content.get("plots") or [], content["columns"], first, task)
        for exception in content.get("cells") or []:
            named = exception.get("columns") or []
            exception["columns"] = [name.replace(first, task, 1) for name in named] or None
        for patch in content["variants"].values():
            kept_columns = [
                name.replace(first, task, 1) for name in patch.get("keep_columns") or []
            ]
            if kept_columns:
                patch["keep_columns"] = [
                    name for name in kept_columns if name in content["columns"]
                ]
    content["cells"] = narrowed(content)
    return read(content, path, variant, list(overrides))


def own_words(name: str) -> list[str]:
    if "=" in name:
        return name.split(",")
    for group in ("init", "method"):
        if name in config.names(group):
            return [f"{group}={name}"]
    near = config.nearest(name, [*config.names("init"), *config.names("method")])
    raise ConfigError(f"compare {name}: there is no initializer and no method of that name; {near}")


def columns_of(columns: Plain, task: str) -> Plain:
    """The columns of a task; of one that the file has none for, those of its first task, read of
    this one."""
    own = {
        name: column for name, column in columns.items() if f"task={task}" in column["overrides"]
    }
    if own:
        return own
    key, first = next(iter(columns.items()))
    word = next(word for word in first["overrides"] if word.startswith("task="))
    found = {}
    for name, column in columns.items():
        if word in column["overrides"]:
            others = [f"task={task}", *(other for other in column["overrides"] if other != word)]
            label = column["label"].replace(first["label"], task)
            found[name.replace(key, task, 1)] = {**column, "label": label, "overrides": others}
    return found


def plots_of(plots: list[Plain], columns: Plain, first: str, task: str) -> list[Plain]:
    """The plots of what is left of the columns; those of the first task, of this one in its
    place."""

    def here(name: str) -> str:
        return name if name in columns else name.replace(first, task, 1)

    kept = []
    for plot in plots:
        drawn = plot | {
            key: here(plot[key])
            for key in ("x", "y")
            if plot.get("kind") == "scatter" and key in plot
        }
        left = [here(name) for name in plot.get("columns") or []]
        left = list(dict.fromkeys(name for name in left if name in columns))
        ends = [drawn[key] for key in ("x", "y") if drawn.get("kind") == "scatter" and key in drawn]
        if (left or not plot.get("columns")) and all(
            "/" in name or name in columns for name in ends
        ):
            kept.append(drawn | ({"columns": left} if left else {}))
    return kept
