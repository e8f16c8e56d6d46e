"""A small folder of original files for every text task, and the overrides that run each on it in a
second."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.glue import write_glue

ROWS = 24
CODE = 'def f{i}(x):\n    """Add {i}."""\n'
COMMONSENSE = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "social_i_qa": ("answer1", "answer2", "answer3"),
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
    "ARC-Easy": ("answer1", "answer2", "answer3"),
    "ARC-Challenge": ("answer1", "answer2", "answer3"),
    "openbookqa": ("answer1", "answer2"),
}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def question(i: int) -> str:
    return f"Ann has {i} apples{' and then some more' * (i % 5)}. How many?"


def write_mathematics(root: Path) -> None:
    """GSM8K, MetaMathQA and MATH."""
    for name, count in (("train", ROWS), ("test", 7)):
        write_lines(
            root / f"{name}.jsonl",
            [
                {"question": question(i), "answer": f"She has {i}.\n#### {i},000"}
                for i in range(count)
            ],
        )
    answer = "She has {i}.\n#### {i}\nThe answer is: {i}"
    rows = [
        {"type": "GSM_Rephrased", "query": question(i), "response": answer.format(i=i)}
        for i in range(ROWS)
    ]
    (root / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    problems = [
        {
            "problem": f"What is {i} + 1?",
            "solution": f"It is $\\boxed{{{i + 1}}}$.",
            "answer": str(i + 1),
        }
        for i in range(5)
    ]
    write_lines(root / "math500_test.jsonl", problems)


def write_code(root: Path) -> None:
    """Code-Feedback and HumanEval."""
    answer = "Here:\n```python\ndef f(x):\n    return x + {i}\n```\nIt adds."
    write_lines(
        root / "CodeFeedback.jsonl",
        [{"query": f"Add {i}.", "answer": answer.format(i=i)} for i in range(ROWS)],
    )
    problems = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": CODE.format(i=i),
            "entry_point": f"f{i}",
            "canonical_solution": f"    return x + {i}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {1 + i}\n",
        }
        for i in range(3)
    ]
    write_lines(root / "HumanEval.jsonl", problems)


def write_instructions(root: Path) -> None:
    """Alpaca and MMLU."""
    rows = [
        {"instruction": f"Name {i} things.", "input": "", "output": f"One, two, {i}."}
        for i in range(ROWS)
    ]
    (root / "alpaca_data_cleaned.json").write_text(json.dumps(rows))
    for split, count in (("dev", 5), ("test", 6)):
        for subject in ("anatomy", "virology"):
            path = root / "mmlu" / "data" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerows(
                    [f"{subject}: which is {i}?", i, i + 1, i + 2, i + 3, "ABCD"[i % 4]]
                    for i in range(count)
                )


def write_commonsense(root: Path) -> None:
    for name, words in COMMONSENSE.items():
        rows = [
            {
                "instruction": f"{question(i)} {' or '.join(words)}?",
                "input": "",
                "output": f"the correct answer is {word}",
                "answer": word,
            }
            for i, word in enumerate((words * 5)[:5])
        ]
        for split in ("train", "test"):
            (root / "commonsense" / name).mkdir(parents=True, exist_ok=True)
            (root / "commonsense" / name / f"{split}.json").write_text(json.dumps(rows))


def write_all(root: Path) -> Path:
    for write in (write_mathematics, write_code, write_instructions, write_commonsense):
        write(root)
    write_glue(root / "glue")
    return root


def overrides(root: Path) -> dict[str, list[str]]:
    """What each text task is run with: its own data, a tiny model of its kind whose answers differ,
    several protocols."""
    causal = [
        "model=tiny-llama",
        "+model.config.initializer_range=0.2",
        f"task.data_dir={root}",
        "task.max_length=512",
        "task.held_out=4",
    ]
    given = {
        "gsm8k": ["task.protocol=[lora_ga,lora_ga_released,lora_sb,cot]"],
        "metamath": ["task.protocol=[lora_ga,lora_sb]"],
        "metamath395k": [],
        "code_feedback": ["evaluate.unsafe_code=true"],
        "alpaca": ["task.protocol=[lora_one,lora_one_released]"],
        "commonsense170k": ["task.protocol=[llm_adapters,lora_sb]"],
    }
    tasks = {name: [f"task={name}", *causal, *more] for name, more in given.items()}
    for name in ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"):
        tasks[f"{name}_t5"] = [
            f"task={name}_t5",
            "model=tiny-t5",
            f"task.data_dir={root / 'glue'}",
            "task.protocol=cg_lora",
        ]
    return tasks
