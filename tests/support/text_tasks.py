"""Text tasks on files of a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from loraexp import config, models
from loraexp.data.pairs import Pair, Reading, encode_pairs
from loraexp.data.rows import Files
from loraexp.models.tokenizer import trained
from loraexp.run import components
from loraexp.tasks.text import TextTask


def write_gsm8k(root: Path, rows: int = 64, tests: int = 3) -> Path:
    for name, count in (("train", rows), ("test", tests)):
        lines = [
            {
                "question": f"{name}: Ann has {i} apples{' and more' * (i % 7)}. How many?",
                "answer": f"She has {i}.\n#### {i},000",
            }
            for i in range(count)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def made(*overrides: str, cache: Path) -> tuple[Any, Any, Any]:
    """(task, model, tokenizer) of a composed configuration."""
    settings, _ = config.check(config.compose([*overrides, f"cache_root={cache}"]))
    tokenizer = models.open(settings.model).tokenizer
    task = components.make_task(settings, tokenizer)
    return task, models.open(settings.model).load(dtype=torch.float32, head_seed=0), tokenizer


def toy(
    tmp_path: Path, kind: str, given: list[dict[str, str]], /, **options: Any
) -> tuple[TextTask, Any]:
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    tokenizer = trained("trained:1024", kind)
    learn = options.pop("learn_prompt", False)
    how = Reading(
        "toy", 1, lambda row: Pair(row["p"], row["r"]), kind, **{"max_length": 64, **options}
    )  # type: ignore[arg-type]
    examples = encode_pairs(Files((path,)), how, tokenizer, cache_root=tmp_path / "cache")
    task = TextTask(
        name="toy",
        version=1,
        kind=kind,
        tokenizer=tokenizer,
        metric="log_likelihood",
        selection=None,
        reports=(),  # type: ignore[arg-type]
        splits={"train": examples},
        learn_prompt=learn,
    )
    return task, tokenizer


ROWS = [
    {"p": "Q: one two\nA: ", "r": "three"},
    {"p": "Q: a\nA: ", "r": "a much longer answer, 1,234"},
    {"p": "b", "r": "c"},
]


def settings_of_kind(kind: str) -> Any:
    pair = ("tiny-t5", "cola_t5") if kind == "seq2seq" else ("tiny-llama", "gsm8k")
    return config.check(config.compose([f"model={pair[0]}", f"task={pair[1]}"]))[0].model
