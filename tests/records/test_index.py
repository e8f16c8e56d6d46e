"""The index of `load_records` never shows what a record no longer says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pandas
import pytest

from loraexp.records import reading
from loraexp.records.reading import INDEX, load_records


def write(root: Path, number: int, accuracy: float) -> Path:
    """A record of an hour ago."""
    path = root / "tweets-tiny" / f"lora-s{number}-{number:010d}" / "record.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "schema": 1,
        "status": "finished",
        "run_id": f"{number:010d}",
        "config": {"seed": number, "lr": 1e-4, "init": {"name": "lora"}, "targets": ["query"]},
        "metrics": {"dev": {"accuracy": accuracy, "f1": None}},
        "best": {"value": accuracy},
        "cost": {"seconds": 12.5, "parts": {"a": 1}},
    }
    path.write_text(json.dumps(record))
    os.utime(path, ns=(hour_ago := time.time_ns() - 3600 * 10**9, hour_ago))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reading, "WORTH", 3)
    for number in range(5):
        write(tmp_path, number, number / 10)
    return tmp_path


def test_the_second_reading_opens_no_record(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_records(root)
    assert list(first["dev/accuracy"]) == [0.0, 0.1, 0.2, 0.3, 0.4]
    opened: list[Path] = []
    own = reading.content
    monkeypatch.setattr(reading, "content", lambda folder: opened.append(folder) or own(folder))
    pandas.testing.assert_frame_equal(load_records(root), first)
    assert not opened
    # moved as a whole: the rows are those of where they are now
    moved = root.rename(root.with_name("elsewhere"))
    again = load_records(moved)
    assert all(str(moved) in folder for folder in again["folder"]) and not opened


def test_a_changed_record_is_read_again(root: Path) -> None:
    load_records(root)
    path = write(root, 3, 0.9)  # of the same length and another time
    path.with_name("new").write_bytes(path.read_bytes())
    seen = load_records(root)
    assert list(seen["dev/accuracy"]) == [0.0, 0.1, 0.2, 0.9, 0.4]
    # replaced by another file of the very same time and size
    before = path.stat()
    fresh = path.with_name("fresh")
    fresh.write_text(path.read_text().replace("0.9", "0.8"))
    os.utime(fresh, ns=(before.st_mtime_ns, before.st_mtime_ns))
    fresh.replace(path)
    assert list(load_records(root)["dev/accuracy"]) == [0.0, 0.1, 0.2, 0.8, 0.4]
    path.write_text("{")
    assert list(load_records(root)["status"]).count("unreadable") == 1
    path.unlink()
    assert len(load_records(root)) == 4


def test_a_damaged_index_is_made_anew(root: Path) -> None:
    first = load_records(root)
    whole = (root / INDEX).read_bytes()
    for damaged in (
        b"",
        b"\x00\xff" * 500,
        whole[: len(whole) // 2],
        whole.replace(b"0.3", b"0.7"),
    ):
        (root / INDEX).write_bytes(damaged)
        pandas.testing.assert_frame_equal(load_records(root), first)


def test_a_record_of_this_moment_is_not_noted(root: Path) -> None:
    """It may be written again within one tick of the file system's clock."""
    now = time.time_ns()
    for number in range(5):
        os.utime(write(root, number, 0.5), ns=(now, now))
    load_records(root)
    assert not (root / INDEX).exists()


def test_few_records_leave_no_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WORTH", 500)
    load_records(root)
    assert not (root / INDEX).exists()
