"""`make bench`: what loraexp costs beside its peers, measured in one run; every figure is printed
with its target."""

from __future__ import annotations


def verdict(
    value: float, *, least: float | None = None, most: float | None = None, unit: str = ""
) -> str:
    """The target beside a figure, and whether the figure reaches it."""
    if least is not None:
        return f"target ≥ {least:.4g}{unit}: {'met' if value >= least else 'MISSED'}"
    if most is not None:
        return f"target ≤ {most:.4g}{unit}: {'met' if value <= most else 'MISSED'}"
    return ""
