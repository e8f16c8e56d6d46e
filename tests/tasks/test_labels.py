"""Labels mean what their names say, whatever the form of the data and the order of its classes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loraexp.data.layouts import BadRow
from loraexp.data.rows import Files
from loraexp.data.tables import Columns, Rows, label_parser, labelled
from loraexp.run.task import Given
from loraexp.tasks.classification import Classification, LabelledKeys
from tests.support.helpers import tokenizer

STARS = ["1", "2", "3", "4", "5"]


class Held:
    """Rows in memory, of a set whose column of labels has names of its own."""

    name = short = "memory"

    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None) -> None:
        self.rows, self.names = rows, names

    def classes(self, column: str) -> list[str] | None:
        return self.names

    def lacks(self, names: Any, row: Any) -> Exception:
        return ValueError(f"no {names}")

    def identity(self) -> str:
        return "memory"

    def __iter__(self) -> Any:
        return ((f"row {i}", row) for i, row in enumerate(self.rows, start=1))


def read(
    rows: list[dict[str, Any]], names: list[str], own: list[str] | None = None, **more: Any
) -> Rows:
    parse = label_parser("single_label_classification", names)
    return labelled(Held(rows, own), Columns(text=["text"], label="label", parse=parse, **more))


def rows_of(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


def test_names_that_look_like_indices_are_names() -> None:
    found = read(rows_of([*STARS * 80]), STARS)
    assert Counter(found.labels.tolist()) == {float(i): 80 for i in range(5)}
    found = read(rows_of([1, 2.0, 5]), STARS)  # as numbers of JSON or Parquet
    assert found.labels.tolist() == [0, 1, 4]
    with pytest.raises(
        ValueError, match=r"^row 1: label '0', expected one of 1, 2, 3, 4, 5; repair"
    ):
        read(rows_of(["0"]), STARS)


def test_an_index_is_read_where_no_name_looks_like_one() -> None:
    assert read(rows_of(["1", 0, "good"]), ["bad", "good"]).labels.tolist() == [1, 0, 1]
    assert read(rows_of([True, "false"]), ["true", "false"]).labels.tolist() == [0, 1]


def test_classes_of_a_set_in_another_order_are_read_by_name() -> None:
    """1 is `negative` in the set; here `negative` is class 0."""
    found = read(
        rows_of([0, 1, 2]), ["negative", "neutral", "positive"], ["positive", "negative", "neutral"]
    )
    assert found.labels.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match=r"row 1: label 'good', expected one of bad, fine"):
        read(rows_of([0]), ["bad", "fine"], ["good", "bad"])


@pytest.mark.parametrize("own", [None, ["bad", "good"]])
@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_classes_is_refused(label: int, own: list[str] | None) -> None:
    with pytest.raises(
        ValueError, match=rf"^row 2: label '?{label}'?, expected .*task.skip_bad=true"
    ):
        read(rows_of([0, label]), ["bad", "good"], own)
    found = read(rows_of([0, label]), ["bad", "good"], own, skip_bad=True)
    assert len(found) == 1 and found.notes == ("memory: 1 malformed rows skipped",)


def keys(**changes: Any) -> LabelledKeys:
    usual: dict[str, Any] = {
        "name": "mine",
        "version": 1,
        "label_names": [1, 2, 3],
        "metric": "accuracy",
        "metrics": ["accuracy"],
    }
    return LabelledKeys(**usual | changes)


def test_names_without_quotes_are_names_and_the_record_counts_rows_by_them(tmp_path: Path) -> None:
    assert keys().label_names == ["1", "2", "3"] and keys(
        label_names=[True, False]
    ).label_names == ["true", "false"]
    train = read(rows_of([1, 2, 2, 3, 3, 3] * 4), ["1", "2", "3"])
    dev = read(rows_of([3, 1]), ["1", "2", "3"])
    task = Classification(
        keys(protocol="paper"),
        train,
        {"dev": dev},
        Given(tokenizer=tokenizer(), cache_root=tmp_path),
    )
    assert task.describe()["train"]["labels"] == {"1": 4, "2": 8, "3": 12}
    assert task.describe()["dev"]["labels"] == {"1": 1, "2": 0, "3": 1}
    assert task.label_counts("train", np.arange(6)) == {"1": 1, "2": 2, "3": 3}
    with pytest.raises(
        ValueError,
        match=r"^task.label_names=\['a', 'a'\]: a is there twice; give every class a name$",
    ):
        keys(label_names=["a", "a"]).check(["accuracy"])


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "parquet"])
def test_every_form_gives_the_same_rows(form: Any, tmp_path: Path) -> None:
    given = [{"text": 'a "b", c', "label": "good"}, {"text": "d\u2028e", "label": "bad"}]
    path = tmp_path / f"rows.{form}"
    if form == "csv":
        path.write_text('text,label\n"a ""b"", c",good\n\nd\u2028e,bad\n')
    elif form == "tsv":
        path.write_text(
            "text\tlabel\r\n" + "".join(f"{row['text']}\t{row['label']}\r\n" for row in given),
            newline="",
        )
    elif form == "json":
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(given), path)
    assert [row for _, row in Files((path,))] == given
    found = labelled(
        Files((path,)),
        Columns(
            text=["text"],
            label="label",
            parse=label_parser("single_label_classification", ["bad", "good"]),
        ),
    )
    assert found.texts == [('a "b", c',), ("d\u2028e",)] and found.labels.tolist() == [1, 0]
    with pytest.raises(
        ValueError, match=r"has no column 'stars': its first (line names|row has) 'text', 'label'"
    ):
        labelled(Files((path,)), Columns(text=["text"], label="stars", parse=float))


def test_a_file_that_is_no_parquet_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"rows.parquet: not a Parquet file \(.*\)$"):
        list(Files((path,)))


def test_a_row_of_another_width_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\na\n")
    ((place, row),) = Files((path,))
    assert (
        place == f"{path} line 2"
        and isinstance(row, BadRow)
        and str(row) == "1 columns; expected 2 columns: text, label"
    )
