"""Tokens and passes of a training step, counted: length buckets, plain shuffling, and plain
shuffling cut into pieces, of equal rows and by tokens. Nothing is timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import verdict
from benchmarks.loop import BATCH, prepare
from loraexp.run.batches import PASS, epoch_batches, micro_batches

PARTS = (2, 3, 4, 8)
Cut = Callable[[np.ndarray], Sequence[np.ndarray]]


def counted(batches: Sequence[np.ndarray], lengths: np.ndarray, cut: Cut) -> tuple[float, float]:
    """Tokens with their padding, and passes, of a step."""
    pieces = [piece for batch in batches for piece in cut(batch)]
    tokens = sum(len(piece) * int(lengths[piece].max()) for piece in pieces)
    return tokens / len(batches), len(pieces) / len(batches)


def main() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        lengths = np.asarray(prepare(Path(folder)).lengths)

    def epoch(length_buckets: bool) -> list[np.ndarray]:
        return epoch_batches(lengths, BATCH, seed=0, epoch=0, length_buckets=length_buckets)

    def pieces(parts: int, world: int = 1) -> Cut:
        return lambda rows: micro_batches(rows, lengths, parts, world)

    plain = epoch(False)
    own = BATCH * float(lengths.mean())
    buckets = counted(epoch(True), lengths, pieces(1))
    figures: dict[str, float] = {}
    print(f"{'a step':<34}   tokens  padding  passes  of buckets' tokens")

    def show(name: str, found: tuple[float, float]) -> None:
        figures[name] = found[0] / buckets[0]
        print(
            f"{name:<34} {found[0]:8.1f} {found[0] / own - 1:8.1%} {found[1]:7.2f}"
            f" {figures[name]:8.2f}"
        )

    show("length buckets", buckets)
    show("plain shuffling", counted(plain, lengths, pieces(1)))
    for parts in PARTS:
        # two processes share pieces of equal rows
        show(f"in {parts} pieces of equal rows", counted(plain, lengths, pieces(parts, world=2)))
        show(f"in at most {parts} pieces by tokens", counted(plain, lengths, pieces(parts)))
    words = "in at most 4 pieces by tokens"
    said = verdict(f"{words} / buckets", figures[words], most=1.15)
    print(f"{words:<34} {said}; a pass counts as {PASS} tokens")
    return figures


if __name__ == "__main__":
    main()
