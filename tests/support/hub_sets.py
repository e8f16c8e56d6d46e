"""The stand-in hub's data sets: a few rows each, in the layout and columns that the hub has."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from tests.support.hub_server import Files


def parquet(
    columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any] | None = None
) -> bytes:
    """A parquet file as `push_to_hub` writes it, its features in the schema."""
    import datasets

    content = io.BytesIO()
    datasets.Dataset.from_dict(
        dict(columns), features=datasets.Features(features) if features else None
    ).to_parquet(content)
    return content.getvalue()


def card(configs: Mapping[str, Mapping[str, str]], **more: Any) -> bytes:
    """A README that says which files are which split of which configuration."""
    listed = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
        }
        for name, splits in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': listed} | more)}---\n".encode()


def words(number: int) -> str:
    """A short text, another for every number."""
    subjects, verbs, things = (
        ("she", "the boy", "our friend", "nobody"),
        ("sold", "read", "drank", "saw"),
        ("two books", "it", "the pub dry", "48 clips"),
    )
    said = subjects[number % 4], verbs[number // 4 % 4], things[number // 16 % 4]
    return f"{' '.join(said)} on day {number}"


# ---- classification

GLUE: dict[str, tuple[tuple[str, ...], list[str] | None]] = {
    "cola": (("sentence",), ["unacceptable", "acceptable"]),
    "sst2": (("sentence",), ["negative", "positive"]),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"]),
    "stsb": (("sentence1", "sentence2"), None),
    "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"]),
}


def glue(rows: int = 96, shift: int = 0) -> dict[str, bytes]:
    """GLUE's repository: a folder of parquet files a task, their splits named in the README."""
    import datasets

    files: dict[str, bytes] = {}
    configs: dict[str, dict[str, str]] = {}
    for task, (texts, names) in GLUE.items():
        splits = [
            "train",
            *(
                ["validation_matched", "validation_mismatched"]
                if task == "mnli"
                else ["validation"]
            ),
        ]
        features = {text: datasets.Value("string") for text in texts}
        features |= {
            "label": datasets.ClassLabel(names=names) if names else datasets.Value("float32"),
            "idx": datasets.Value("int32"),
        }
        configs[task] = {split: f"{task}/{split}-*" for split in splits}
        for at, split in enumerate(splits):
            numbers = range(
                shift + 1000 * at, shift + 1000 * at + (rows if split == "train" else 24)
            )
            columns: dict[str, list[Any]] = {
                text: [f"{words(n)} {side}" for n in numbers] for side, text in enumerate(texts)
            }
            columns["label"] = [n % len(names) if names else n % 26 / 5 for n in numbers]
            files[f"{task}/{split}-00000-of-00001.parquet"] = parquet(
                columns | {"idx": list(range(len(numbers)))}, features
            )
    return files | {"README.md": card(configs)}


# ---- generation


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def gsm8k_row(n: int) -> dict[str, str]:
    return {
        "question": f"{words(n)}. How many in {n} days?",
        "answer": f"It is {n}+{n} = <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}",
    }


def gsm8k() -> Files:
    tables = {
        split: [gsm8k_row(n) for n in numbers]
        for split, numbers in {"train": range(60), "test": range(500, 506)}.items()
    }
    files = {
        f"main/{split}-00000-of-00001.parquet": parquet(columns(rows))
        for split, rows in tables.items()
    }
    return files | {"README.md": card({"main": {"train": "main/train-*", "test": "main/test-*"}})}


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def metamath() -> Files:
    """One JSON array; a blank `query`, of which the real set has four."""
    rows = [
        {
            "type": ("GSM_Rephrased", "MATH_AnsAug")[n % 3 == 2],
            "query": gsm8k_row(n)["question"],
            "original_question": words(n),
            "response": f"It is {2 * n}.\n#### {2 * n}\nThe answer is: {2 * n}",
        }
        for n in range(60)
    ]
    rows[7]["query"] = " "
    return {
        "MetaMathQA-395K.json": json.dumps(rows).encode(),
        "README.md": b"---\nlicense: mit\n---\n",
    }


def code_feedback() -> Files:
    """JSON lines; one `answer` is empty, as in the real set."""
    rows = [
        {
            "query": f"Write a function for what {words(n)}.",
            "answer": f"Here it is:\n```python\ndef f():\n    return {n}\n```\nIt returns {n}.",
            "resource": "evol",
            "lang": "python",
        }
        for n in range(60)
    ]
    rows[11]["answer"] = ""
    return {
        "CodeFeedback-Filtered-Instruction.jsonl": lines(rows),
        "README.md": b"---\nlicense: apache-2.0\n---\n",
    }


def alpaca() -> Files:
    rows = [
        {
            "instruction": f"Say {words(n)}.",
            "input": ("", words(n + 1))[n % 2],
            "output": words(n + 2),
        }
        for n in range(60)
    ]
    return {
        "alpaca_data_cleaned.json": json.dumps(rows, indent=4).encode(),
        "README.md": b"---\nlicense: cc-by-4.0\n---\n",
    }


def mmlu() -> Files:
    import datasets

    features = {
        "question": datasets.Value("string"),
        "subject": datasets.Value("string"),
        "choices": datasets.Sequence(datasets.Value("string")),
        "answer": datasets.ClassLabel(names=["A", "B", "C", "D"]),
    }
    files = {}
    for split, each in {"test": 3, "validation": 1, "dev": 5, "auxiliary_train": 2}.items():
        rows = [
            {
                "question": f"What did {words(n)} {split}?",
                "subject": subject,
                "choices": [words(n + k) for k in range(4)],
                "answer": n % 4,
            }
            for subject in ("anatomy", "virology")
            for n in range(each)
        ]
        files[f"all/{split}-00000-of-00001.parquet"] = parquet(columns(rows), features)
    return files | {
        "README.md": card(
            {
                "all": {
                    split: f"all/{split}-*"
                    for split in ("auxiliary_train", "test", "validation", "dev")
                }
            }
        )
    }


def math500() -> Files:
    rows = [
        {
            "problem": words(n),
            "solution": rf"So $\boxed{{{n}}}$.",
            "answer": str(n),
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/{n}",
        }
        for n in range(6)
    ]
    return {"test.jsonl": lines(rows), "README.md": card({"default": {"test": "test.jsonl"}})}


def humaneval() -> Files:
    rows = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def f{n}():\n    """Return {n}."""\n',
            "canonical_solution": f"    return {n}\n",
            "test": f"def check(candidate):\n    assert candidate() == {n}\n",
            "entry_point": f"f{n}",
        }
        for n in range(3)
    ]
    path = "openai_humaneval/test-00000-of-00001.parquet"
    return {
        path: parquet(columns(rows)),
        "README.md": card({"openai_humaneval": {"test": "openai_humaneval/test-*"}}),
    }


# ---- commonsense


def commonsense170k() -> Files:
    ask = "Please answer the following question with true or false, question: did {}?"
    ask += "\n\nAnswer format: true/false"
    rows = []
    for n in range(80):
        answer = ("true", "false")[n % 2]
        rows.append(
            {
                "instruction": ask.format(words(n)),
                "input": "",
                "output": f"the correct answer is {answer}",
                "answer": answer,
            }
        )
    return {
        "commonsense_170k.json": json.dumps(rows).encode(),
        "README.md": b"---\nlicense: mit\n---\n",
    }


def lettered(n: int, count: int = 4) -> dict[str, Any]:
    return {
        "text": [words(n + k) for k in range(count)],
        "label": ["A", "B", "C", "D", "E"][:count],
    }


def hellaswag_row(n: int) -> dict[str, Any]:
    context = {
        "ind": n,
        "activity_label": "Pole vault",
        "ctx_a": words(n),
        "ctx_b": "a few women",
        "ctx": f"{words(n)} a few women",
    }
    origin = {
        "source_id": f"activitynet~{n}",
        "split": "val",
        "split_type": "indomain",
        "label": str(n % 4),
    }
    return context | {"endings": [words(n + k) for k in range(4)]} | origin


# id → configuration, split, row
ORIGINALS: dict[str, tuple[str, str, Callable[[int], dict[str, Any]]]] = {
    "google/boolq": (
        "default",
        "validation",
        lambda n: {"question": f"did {words(n)}", "answer": n % 2 == 0, "passage": words(n + 1)},
    ),
    "baber/piqa": (
        "default",
        "validation",
        lambda n: {"goal": words(n), "sol1": words(n + 1), "sol2": words(n + 2), "label": n % 2},
    ),
    "lighteval/siqa": (
        "default",
        "validation",
        lambda n: {
            "context": words(n),
            "question": "Why?",
            "answerA": "a",
            "answerB": "b",
            "answerC": "c",
            "label": str(n % 3 + 1),
        },
    ),
    "Rowan/hellaswag": ("default", "validation", hellaswag_row),
    "allenai/winogrande": (
        "winogrande_xl",
        "validation",
        lambda n: {
            "sentence": f"{words(n)}, so _ won.",
            "option1": "Sarah",
            "option2": "Maria",
            "answer": str(n % 2 + 1),
        },
    ),
    "allenai/openbookqa": (
        "main",
        "test",
        lambda n: {
            "id": str(n),
            "question_stem": words(n),
            "choices": lettered(n),
            "answerKey": "ABCD"[n % 4],
        },
    ),
}


def original(config: str, split: str, row: Callable[[int], dict[str, Any]]) -> dict[str, bytes]:
    folder = "data" if config == "default" else config
    content = parquet(columns([row(n) for n in range(5)]))
    return {
        f"{folder}/{split}-00000-of-00001.parquet": content,
        "README.md": card({config: {split: f"{folder}/{split}-*"}}),
    }


def arc() -> Files:
    files, configs = {}, {}
    for name, count in {"ARC-Easy": 4, "ARC-Challenge": 5}.items():
        rows = [
            {
                "id": str(n),
                "question": words(n),
                "choices": lettered(n, count),
                "answerKey": "ABCD"[n % 4],
            }
            for n in range(5)
        ]
        files[f"{name}/test-00000-of-00001.parquet"] = parquet(columns(rows))
        configs[name] = {"test": f"{name}/test-*"}
    return files | {"README.md": card(configs)}
