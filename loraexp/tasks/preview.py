"""The first rows of a task as a model is given them: every token, and whether its loss trains the
model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraexp.run.task import Task
from loraexp.scoring.prompts import Tokenizer

IGNORED = -100
Shown = list[tuple[str, bool]]


def preview(task: Task, rows: int | Sequence[int] = 3, *, split: str = "train") -> list[Shown]:
    """Of each row its tokens in order, as text, with whether it is trained.

    An encoder-decoder's decoder comes behind its encoder; a head's class is the last word. `rows`:
    the first so many, or their indices.
    """
    examples = task.splits[split]
    wanted = range(min(rows, len(examples))) if isinstance(rows, int) else rows
    return [row_of(task, examples, index) for index in wanted]


def row_of(task: Task, examples: Any, index: int) -> Shown:
    batch = task.collate(examples, [index])
    ids: list[int] = batch["input_ids"][0].tolist()
    labels: Any = batch["labels"][0].tolist()
    if not task.several_labels:
        name = (
            task.label_names[int(labels)]
            if task.problem == "single_label_classification"
            else f"{labels:g}"
        )
        return [*((piece, False) for piece in pieces(task.tokenizer, ids)), (name, True)]
    if getattr(task, "kind", "causal") == "causal":
        return [
            (piece, label != IGNORED)
            for piece, label in zip(pieces(task.tokenizer, ids), labels, strict=True)
        ]
    answer = [label for label in labels if label != IGNORED]
    asked = [(piece, False) for piece in pieces(task.tokenizer, ids)]
    return asked + [(piece, True) for piece in pieces(task.tokenizer, answer)]


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to what stands before it; joined they are the text of them
    all."""
    found: list[str] = []
    before = ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(
            list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        same = next(
            (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
            min(len(before), len(whole)),
        )
        found.append(whole[same:])
        before = whole
    return found
