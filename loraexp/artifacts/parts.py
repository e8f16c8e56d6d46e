"""What a table is made of, in any format: a place as it is printed, and a part under the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loraexp.records.reading import number
from loraexp.results.significance import Compared
from loraexp.sweep.schema import Report


@dataclass(kw_only=True)
class Entry:
    """One place as it is printed: numbers in the table's unit."""

    report: Report
    mean: float | None
    std: float | None
    n: int  # seeds; 0 for a computed number
    # of its column, among the rows of its group; rows that print the same are all best
    best: bool = False
    compared: Compared | None = None  # with the best row
    published: Any = None
    published_std: float | None = None
    chosen: str = ""
    reason: str | None = None  # why there is no number

    @property
    def noise(self) -> bool | None:
        """Whether the difference to the best row is within noise; None where that cannot be
        told."""
        return self.compared.includes(0.0) if self.compared is not None else None

    @property
    def difference(self) -> float | None:
        given = number(self.published)
        return self.mean - given if self.mean is not None and given is not None else None

    def text(self, value: float) -> str:
        return f"{value:.{self.report.digits}f}".replace("-", "−")

    @property
    def value(self) -> str:
        """`80.28 ± 0.92`, or a dash."""
        if self.mean is None:
            return "—"
        spread = (
            f" ± {self.text(self.std)}"
            if self.std is not None and self.report.spread == "std"
            else ""
        )
        return self.text(self.mean) + spread

    @property
    def marks(self) -> str:
        """What stands behind the number: how many seeds, and the mark of noise."""
        return (f" ({self.n})" if self.n else "") + (" †" if self.noise else "")

    @property
    def given(self) -> str:
        """`paper 93.42 ± 0.14, −13.14`, or nothing."""
        if self.published is None:
            return ""
        told = (
            self.text(self.published) if number(self.published) is not None else str(self.published)
        )
        spread = f" ± {self.text(self.published_std)}" if self.published_std is not None else ""
        return f"paper {told}{spread}" + (
            f", {signed(self.difference, self.report.digits)}"
            if self.difference is not None
            else ""
        )


@dataclass(kw_only=True)
class Section:
    """A part under the table: sentences, or a small table of its own."""

    title: str
    lines: list[str] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def words(self) -> list[bool]:
        """Which columns hold words, and not numbers: those stand to the left."""
        numeric = ("", "best", *"0123456789", "+", "−", "—")
        numbers = [
            all(row[i] in numeric or row[i][:1] in numeric for row in self.rows)
            for i in range(len(self.header))
        ]
        return [i == 0 or not number for i, number in enumerate(numbers)]


def signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−")
