"""A variant of a sweep: the same artifact under other means, as a patch of what the file holds."""

from __future__ import annotations

from loraexp import config
from loraexp.config import ConfigError, Plain
from loraexp.sweep.schema import Variant


def apply(variant: Variant, content: Plain) -> list[str]:
    """Patch a sweep's content; returns the variant's last overrides."""
    content["base"] = (content.get("base") or []) + variant.base
    content["grid"] = (content.get("grid") or {}) | variant.grid
    gone: dict[str, set[str]] = {}
    for key, keep, patch in (
        ("rows", variant.keep_rows, variant.rows),
        ("columns", variant.keep_columns, variant.columns),
    ):
        found = content.get(key) or {}
        for name in keep or []:
            if name not in found:
                raise ConfigError(
                    f"variants: keep_{key}: {name}: there is no such name;"
                    f" {config.nearest(name, found)}"
                )
        kept = {name: found[name] for name in (found if keep is None else keep)}
        content[key] = kept | {
            name: (kept.get(name) or {}) | values for name, values in patch.items()
        }
        gone[key] = set(found) - set(content[key])
    if variant.compute:
        content["compute"] = (content.get("compute") or {}) | variant.compute
    content["cells"] = [*narrowed(content), *variant.cells]
    content["report"] = (content.get("report") or {}) | variant.report
    content["select"] = (content.get("select") or {}) | variant.select
    content["hours"] = variant.hours
    content["deviations"] = (content.get("deviations") or []) + variant.deviations
    published = (content.get("published") or {}) if variant.published else {}
    content["published"] = {
        row: {column: value for column, value in values.items() if column in content["columns"]}
        for row, values in published.items()
        if row in content["rows"]
    }
    for claim in list(content.get("claims") or []):
        named = [claim.get(k) for k in ("value", "minus", "over") if claim.get(k)]
        if any(
            row in gone["rows"] or column in gone["columns"]
            for row, column, *_ in (f"{name}/".split("/") for name in named)
        ):
            content["claims"].remove(claim)
    content["claims"] = [*(content.get("claims") or []), *variant.claims]
    content["plots"] = drawn(content, gone, variant.plots)
    return variant.overrides


def drawn(content: Plain, gone: dict[str, set[str]], own: list[Plain]) -> list[Plain]:
    """The sweep's pictures of what the variant keeps, and the variant's own: one of a name that is
    there takes its place."""
    kept: dict[str, Plain] = {}
    for plot in content.get("plots") or []:
        narrow = plot | {
            key: [name for name in plot[key] if name not in gone[key]]
            for key in ("rows", "columns")
            if plot.get(key)
        }
        left = all(narrow[key] for key in ("rows", "columns") if plot.get(key))
        if left and not {plot.get("x"), plot.get("y")} & gone["columns"]:
            kept[plot["name"]] = narrow
    return list((kept | {plot["name"]: plot for plot in own}).values())


def narrowed(content: Plain) -> list[Plain]:
    """The exceptions of a sweep whose rows or columns a variant has left out: for what remains of
    them."""
    kept = []
    for exception in content.get("cells") or []:
        left = {
            key: (
                None
                if exception.get(key) is None
                else [name for name in exception[key] if name in content[key]]
            )
            for key in ("rows", "columns")
        }
        if all(names is None or names for names in left.values()):
            kept.append(exception | left)
    return kept
