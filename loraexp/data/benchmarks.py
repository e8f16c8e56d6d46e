"""The test sets that generation is scored on: where their rows are, in the original layouts or on
the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loraexp.data import commonsense, draw
from loraexp.data.rows import BadRow, Files, Hub, Loaded, Row, choice, find, load, text
from loraexp.machine.hub import SourceError


@dataclass(frozen=True)
class Benchmark:
    """`files`: paths inside the folder of the data, tried in this order. `hub`: (id, config, split,
    revision)."""

    files: tuple[str, ...]
    hub: tuple[str, str | None, str, str | None]
    row: Callable[[Row], Row]  # checks a row and puts it into the one form that protocols read


@dataclass(frozen=True)
class Questions:
    """The rows of one benchmark, ready to be asked; `places` name each one's file and row."""

    rows: list[Row]
    places: list[str]
    source: str
    notes: tuple[str, ...] = ()
    skipped: int = 0  # malformed rows

    def fingerprint(self) -> str:
        return hashlib.sha256(
            json.dumps(self.rows, sort_keys=True, default=str).encode()
        ).hexdigest()

    def limit(self, most: int | None) -> Questions:
        """`most` rows, drawn by a hash of their content, in the order of the file."""
        numbers = [draw.number(json.dumps(row, sort_keys=True, default=str)) for row in self.rows]
        chosen = draw.limit(np.array(numbers, dtype=np.uint64), most)
        if chosen is None:
            return self
        rows, places = [self.rows[i] for i in chosen], [self.places[i] for i in chosen]
        note = draw.note(len(rows), len(self.rows), "content")
        return replace(self, rows=rows, places=places, notes=(*self.notes, note))


def gsm8k_answer(row: Row) -> tuple[str, str]:
    """The working and the final number of GSM8K's answer, which ends in `#### 72`.

    A row of Cobbe et al. 2021: `question: Natalia sold clips to 48 of her friends …`, `answer:
    Natalia sold 48/2 = … #### 72`.
    """
    working, mark, number = text(row, "answer").rpartition("####")
    if not mark or not number.strip():
        raise BadRow("column 'answer' does not end in '#### NUMBER'")
    return working.rstrip(), number.strip()


def gsm8k(row: Row) -> Row:
    """`question`, `answer`, e.g. `Natalia sold clips to 48 …` → `Natalia sold 48/2 = … #### 72`."""
    gsm8k_answer(row)  # an answer without its number is refused here
    return {"question": text(row, "question"), "answer": text(row, "answer")}


def math(row: Row) -> Row:
    """`question`, `answer`: columns `problem` and `solution`, whose box holds the answer, e.g. `…
    is $\\boxed{\\frac{9}{4}}.$`."""
    return {"question": text(row, "problem"), "answer": text(row, "solution")}


def humaneval(row: Row) -> Row:
    """`task_id`, `prompt`, `entry_point`, `test`, `canonical_solution`."""
    return {
        name: text(row, name)
        for name in ("task_id", "prompt", "entry_point", "test", "canonical_solution")
    }


def _adapters(name: str) -> tuple[str, ...]:
    own = (f"commonsense/{name}/{name}.jsonl", f"{name}/{name}.jsonl")  # the authors' layout
    return (f"commonsense/{name}/test.json", f"{name}/test.json", *own)


LETTERS = ("A", "B", "C", "D")
BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        ("gsm8k/test.jsonl", "test.jsonl"),
        ("openai/gsm8k", "main", "test", "e53f048856ff4f594e959d75785d2c2d37b678ee"),
        gsm8k,
    ),
    # 500 of the 5,000 test problems (Lightman et al. 2023); a file of all of them in the same
    # columns is read as well.
    "math": Benchmark(
        ("math/math500_test.jsonl", "math500_test.jsonl", "math/test.jsonl"),
        ("HuggingFaceH4/MATH-500", None, "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
        math,
    ),
    "humaneval": Benchmark(
        (
            "humaneval/HumanEval.jsonl.gz",
            "HumanEval.jsonl.gz",
            "humaneval/HumanEval.jsonl",
            "HumanEval.jsonl",
        ),
        ("openai/openai_humaneval", None, "test", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),
        humaneval,
    ),
}


def _commonsense(name: str, hub: tuple[str, str | None, str], row: Callable[[Row], Row]) -> None:
    # The hub has the authors' own sets (as lm-eval 0.4.13 names them), of which LLM-Adapters' files
    # are a rendering. No commit is pinned: the first use in a folder of results fixes it, and the
    # record has it.
    BENCHMARKS[name] = Benchmark(_adapters(name), (*hub, None), row)


_commonsense("boolq", ("google/boolq", None, "validation"), commonsense.boolq)
_commonsense("piqa", ("baber/piqa", None, "validation"), commonsense.piqa)
_commonsense("social_i_qa", ("lighteval/siqa", None, "validation"), commonsense.social_i_qa)
_commonsense("hellaswag", ("Rowan/hellaswag", None, "validation"), commonsense.hellaswag)
_commonsense(
    "winogrande", ("allenai/winogrande", "winogrande_xl", "validation"), commonsense.winogrande
)
_commonsense("ARC-Easy", ("allenai/ai2_arc", "ARC-Easy", "test"), commonsense.arc)
_commonsense("ARC-Challenge", ("allenai/ai2_arc", "ARC-Challenge", "test"), commonsense.arc)
_commonsense("openbookqa", ("allenai/openbookqa", "main", "test"), commonsense.openbookqa)
HERE = "task.eval_data_dir"  # the key of a folder for the benchmarks alone
OTHER = {  # what else to do where a folder has no file of a benchmark
    "task.data_dir": (
        f"set {HERE}=DIR to the folder that has it; the training rows stay where they are"
    ),
    HERE: (
        f"set {HERE}=null for the folder of the training rows, or for the hub where"
        " task.data_dir=null too"
    ),
}
MMLU_HUB = ("cais/mmlu", "all", "c30699e8356da336a370243923dbaf21066bb9fe")
MMLU_COLUMNS = ("question", *LETTERS, "answer")


def read(
    names: list[str], *, directory: str | None, key: str, limit: int | None, skip_bad: bool
) -> tuple[dict[str, Questions], tuple[str, ...]]:
    """The benchmarks' rows, from the original files in `directory` or from the hub, and notes on
    those not there.

    Of several, those that `directory` has are read, and the notes name the others.

    Raises: SourceError where none is there, or one has no copy on the hub; ValueError naming file,
    row and fix.
    """
    unknown = [name for name in names if name != "mmlu" and name not in BENCHMARKS]
    if unknown:
        raise ValueError(
            f"task.benchmarks={unknown}: expected some of {', '.join([*BENCHMARKS, 'mmlu'])}"
        )
    found: dict[str, Questions] = {}
    missing: list[str] = []
    reason: SourceError | None = None
    for name in names:
        try:
            questions = (
                _mmlu(directory, key, skip_bad)
                if name == "mmlu"
                else _read(name, directory, key, skip_bad)
            )
        except SourceError as error:
            if directory is None:
                raise
            missing, reason = [*missing, name], error
            continue
        found[name] = questions.limit(limit)
    if not found and reason is not None:
        raise reason
    return found, (
        (f"not reported, because not in {directory}: {', '.join(missing)}",) if missing else ()
    )


def _read(name: str, directory: str | None, key: str, skip_bad: bool) -> Questions:
    benchmark = BENCHMARKS[name]
    if directory is not None:
        records: Any = Files(
            (
                find(
                    directory,
                    benchmark.files,
                    key=key,
                    what=f"the original files of {name}",
                    other=OTHER.get(key),
                ),
            )
        )
    else:
        records = Hub(*benchmark.hub, HERE)
    found = load(records, benchmark.row, skip_bad=skip_bad)
    if not found.rows:
        raise ValueError(f"{records.name}: no row to evaluate on; give a file with rows")
    return Questions(*found[:2], records.name, skipped=found.skipped)


def _mmlu(directory: str | None, key: str, skip_bad: bool) -> Questions:
    """MMLU's test rows, each with the five dev rows of its subject as `shots`."""
    if directory is None:
        source, config, revision = MMLU_HUB
        dev, test = (
            load(Hub(source, config, split, revision, HERE), _mmlu_hub, skip_bad=skip_bad)
            for split in ("dev", "test")
        )
        name = f"{source} at {revision}"
    else:
        folder = find_mmlu(Path(directory).expanduser(), key)
        dev, test = (_mmlu_files(folder / split, split, skip_bad) for split in ("dev", "test"))
        name = str(folder)
    shots = {
        subject: [row for row in dev.rows if row["subject"] == subject][:5]
        for subject in {row["subject"] for row in test.rows}
    }
    short = sorted(subject for subject, rows in shots.items() if len(rows) < 5)
    if short:
        raise ValueError(
            f"{name}: {', '.join(short)} has fewer than 5 dev rows, expected 5 of every subject;"
            " give the whole dev folder"
        )
    return Questions(
        [{**row, "shots": shots[row["subject"]]} for row in test.rows],
        test.places,
        name,
        skipped=dev.skipped + test.skipped,
    )


def find_mmlu(directory: Path, key: str) -> Path:
    """The folder with `dev/SUBJECT_dev.csv` and `test/SUBJECT_test.csv`."""
    places = [directory / inside for inside in ("mmlu/data", "data", ".")]
    for place in places:
        if any(place.glob("test/*_test.csv")) and any(place.glob("dev/*_dev.csv")):
            return place
    looked = ", ".join(map(str, places))
    raise SourceError(
        f"{key}={directory}: no dev/SUBJECT_dev.csv with test/SUBJECT_test.csv in any of {looked};"
        " set it to MMLU's data"
    )


def _mmlu_files(folder: Path, split: str, skip_bad: bool) -> Loaded:
    whole = Loaded([], [], 0)
    for path in sorted(folder.glob(f"*_{split}.csv")):
        read = partial(_mmlu_row, path.stem.removesuffix(f"_{split}"))
        part = load(Files((path,), MMLU_COLUMNS), read, skip_bad=skip_bad)
        whole = Loaded(
            whole.rows + part.rows, whole.places + part.places, whole.skipped + part.skipped
        )
    return whole


def _mmlu_row(subject: str, row: Row) -> Row:
    choice(row, "answer", LETTERS)
    return {"subject": subject, **row}


def _mmlu_hub(row: Row) -> Row:
    options = dict(zip(LETTERS, row["choices"], strict=True))
    return {
        "subject": row["subject"],
        "question": row["question"],
        **options,
        "answer": LETTERS[row["answer"]],
    }


def average(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of the benchmarks' accuracies, each counted once whatever its size, as the papers'
    tables have it."""
    return {"accuracy": float(np.mean([values["accuracy"] for values in metrics.values()]))}
