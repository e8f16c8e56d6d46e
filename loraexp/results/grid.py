"""The grid of a table: how many values each row has tried, and what validation chose of them."""

from __future__ import annotations

from loraexp.results.gather import Results
from loraexp.results.matching import describe
from loraexp.results.places import Place


def tried(results: Results) -> tuple[dict[str, str], list[str]]:
    """How many values of each chosen key every row has tried, and a warning for each key where rows
    differ."""
    counts: dict[str, dict[str, list[int]]] = {}
    for (row, _), place in results.places.items():
        for key, number in place.tried.items():
            counts.setdefault(key, {}).setdefault(row, []).append(number)
    words: dict[str, str] = {}
    for row in results.sweep.rows:
        parts = [(key, spread(of[row])) for key, of in counts.items() if row in of]
        words[row] = ", ".join(
            f"{key} {number}" if len(counts) > 1 else number for key, number in parts
        )
    warnings = []
    for key, of in counts.items():
        different = {row: spread(numbers) for row, numbers in of.items()}
        if len(set(different.values())) > 1:
            said = ", ".join(
                f"{results.sweep.label_of(row)} {number}" for row, number in different.items()
            )
            warnings.append(f"warning: rows have not tried equally many values of {key}: {said}")
    return words, warnings


def spread(numbers: list[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)} to {max(numbers)}"


def chosen(place: Place) -> str:
    """The grid values that validation chose, without the key where it is one."""
    if len(place.chosen) == 1:
        return describe(place.chosen).partition("=")[2]
    return describe(place.chosen)
