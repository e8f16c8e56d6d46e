"""`python -m benchmarks.picture`: the README's picture, from the numbers in
`sweeps/pictures/equal_conditions_sst2.csv`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

PICTURES = Path(__file__).resolve().parents[1] / "sweeps" / "pictures"
SEEDS, T = 3, 4.303  # Student's t for a 95 % interval of three seeds
BOXES = [
    ("checkpoint", "encoder, T5,\nLLaMA family"),
    ("statistics", "gradients, moments,\nKronecker curvature"),
    ("initializer", "16 of them, one\npure function each"),
    ("training rule", "AdamW, LoRA+,\nP-LoRA, LoRA-Pro"),
    ("record", "adapter, metrics,\ncost, versions"),
    ("table", "the paper's beside\nours, intervals"),
]


def main() -> None:
    """Write `readme.png` beside the numbers."""
    with (PICTURES / "equal_conditions_sst2.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9.5}):
        figure = Figure(figsize=(10, 5.6), dpi=150)
        top, bottom = figure.subplots(2, 1, height_ratios=[1, 3.4])
        pipeline(top)
        dots(bottom, rows)
        figure.subplots_adjust(left=0.1, right=0.98, top=0.98, bottom=0.1, hspace=0.12)
        figure.savefig(PICTURES / "readme.png")


def pipeline(axes: Any) -> None:
    """The way of one run, from a checkpoint to a table."""
    axes.set(xlim=(0, len(BOXES)), ylim=(0, 1))
    axes.axis("off")
    for i, (name, said) in enumerate(BOXES):
        box = FancyBboxPatch(
            (i + 0.06, 0.12), 0.82, 0.76, boxstyle="round,pad=0.02", fc="#EEF3FA", ec="#4C72B0"
        )
        axes.add_patch(box)
        axes.text(i + 0.47, 0.68, name, ha="center", va="center", weight="bold")
        axes.text(i + 0.47, 0.36, said, ha="center", va="center", fontsize=7.5)
        if i:
            arrow = {"arrowstyle": "->", "color": "#444444"}
            axes.annotate("", (i + 0.04, 0.5), (i - 0.1, 0.5), arrowprops=arrow)


def dots(axes: Any, rows: list[dict[str, str]]) -> None:
    """Accuracy of every initializer with the 95 % interval of its mean over three seeds."""
    rows = sorted(rows, key=lambda row: float(row["accuracy"]))
    for y, row in enumerate(rows):
        mean, half = float(row["accuracy"]), T * float(row["std"]) / SEEDS**0.5
        colour = "#C44E52" if row["init"] in ("full", "lora") else "#4C72B0"
        axes.errorbar(
            mean, y, xerr=half, fmt="o", color=colour, markersize=5, elinewidth=1.2, capsize=3
        )
    axes.set_yticks(range(len(rows)), [row["init"] for row in rows])
    axes.axvline(0.509, color="#999999", linestyle=":", linewidth=1)
    axes.text(0.512, 0, "majority class", color="#777777", fontsize=8, va="center")
    axes.set_xlabel(
        "dev accuracy on SST-2, MiniLM, 2,048 rows, 64 steps: mean of 3 seeds, 95 % t interval"
    )
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
