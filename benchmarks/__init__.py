"""`make bench`: what loraexp costs beside its peers, measured in one run; every figure is printed
with its target, and at the end all that have one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it is to be at least or at most. `noise`: what two measurements
    of the same thing differ by, which a target that is an equality allows."""

    name: str
    value: float
    target: float
    at_least: bool
    unit: str = ""
    noise: float = 0.0

    @property
    def met(self) -> bool:
        if self.at_least:
            return self.value >= self.target - self.noise
        return self.value <= self.target + self.noise

    @property
    def said(self) -> str:
        return "met" if self.met else "MISSED"

    @property
    def bound(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.target:.4g}{self.unit}"


ASKED: list[Figure] = []  # the figures with a target, of the part that is measured


def asked(
    name: str,
    value: float,
    *,
    least: float | None = None,
    most: float | None = None,
    unit: str = "",
    noise: float = 0.0,
) -> Figure | None:
    """The figure beside its target, kept for the summary; None: it has no target."""
    target = most if least is None else least
    if target is None:
        return None
    figure = Figure(name, value, target, least is not None, unit, noise)
    ASKED.append(figure)
    return figure


def verdict(
    name: str,
    value: float,
    *,
    least: float | None = None,
    most: float | None = None,
    unit: str = "",
    noise: float = 0.0,
) -> str:
    """The target beside a figure, and whether the figure reaches it."""
    figure = asked(name, value, least=least, most=most, unit=unit, noise=noise)
    return f"target {figure.bound}: {figure.said}" if figure else ""


def within(name: str, value: float, most: float | None, noise: float = 0.0) -> str:
    """The same in a column of a table: the target, marked where it is missed."""
    figure = asked(name, value, most=most, noise=noise)
    return f"{figure.bound}{'' if figure.met else ' !'}" if figure else ""


def summary(figures: list[tuple[str, Figure]]) -> str:
    """All figures that have a target, by the part that they are of, and how many reach it."""
    width = max((len(figure.name) for _, figure in figures), default=0)
    lines = [
        f"{part:13} {figure.name:{width}} {figure.value:9.4g}{figure.unit:4}"
        f" {figure.bound:>12}  {figure.said}"
        for part, figure in figures
    ]
    missed = sum(not figure.met for _, figure in figures)
    count = f"{len(figures)} target{'' if len(figures) == 1 else 's'}"
    return "\n".join([*lines, f"{count}: {len(figures) - missed} met, {missed} missed"])
