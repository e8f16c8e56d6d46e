"""MMLU: 57 subjects in a file each, whose first five dev rows are the examples of its test rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from loraexp.data.benchmarks import Benchmark, Questions
from loraexp.data.layouts import Row
from loraexp.data.rows import Files, Loaded, choice, load
from loraexp.machine.hub import SourceError

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS, "answer")
SHOTS = 5


def read(benchmark: Benchmark, directory: str | None, key: str, skip_bad: bool) -> Questions:
    """MMLU's test rows, each with the five dev rows of its subject as `shots`."""
    if directory is None:
        rows = {split: benchmark.hub(split) for split in ("dev", "test")}
        dev, test = (load(rows[split], of_hub, skip_bad=skip_bad) for split in ("dev", "test"))
        name = rows["test"].name
    else:
        folder = find_mmlu(Path(directory).expanduser(), benchmark.files, key)
        dev, test = (_of_files(folder / split, split, skip_bad) for split in ("dev", "test"))
        name = str(folder)
    shots = {
        subject: [row for row in dev.rows if row["subject"] == subject][:SHOTS]
        for subject in {row["subject"] for row in test.rows}
    }
    short = sorted(subject for subject, rows in shots.items() if len(rows) < SHOTS)
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


def find_mmlu(directory: Path, inside: list[str], key: str) -> Path:
    """The folder with `dev/SUBJECT_dev.csv` and `test/SUBJECT_test.csv`."""
    places = [directory / place for place in inside]
    for place in places:
        if any(place.glob("test/*_test.csv")) and any(place.glob("dev/*_dev.csv")):
            return place
    looked = ", ".join(map(str, places))
    raise SourceError(
        f"{key}={directory}: no dev/SUBJECT_dev.csv with test/SUBJECT_test.csv in any of {looked};"
        " set it to MMLU's data"
    )


def _of_files(folder: Path, split: str, skip_bad: bool) -> Loaded:
    whole = Loaded([], [], 0)
    for path in sorted(folder.glob(f"*_{split}.csv")):
        read = partial(_of_subject, path.stem.removesuffix(f"_{split}"))
        part = load(Files((path,), COLUMNS), read, skip_bad=skip_bad)
        whole = Loaded(
            whole.rows + part.rows, whole.places + part.places, whole.skipped + part.skipped
        )
    return whole


def _of_subject(subject: str, row: Row) -> Row:
    choice(row, "answer", LETTERS)
    return {"subject": subject, **row}


def of_hub(row: Row) -> Row:
    options = dict(zip(LETTERS, row["choices"], strict=True))
    return {
        "subject": row["subject"],
        "question": row["question"],
        **options,
        "answer": LETTERS[row["answer"]],
    }
