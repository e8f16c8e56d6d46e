"""Notes are believed where they are whole, and nothing is lost where they are not."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from loraexp.machine import notes
from loraexp.machine.notes import Notes, hashed


def written(path: Path, **values: object) -> None:
    book = Notes(path)
    for key, value in values.items():
        book.add(key, value)
    book.keep()


def test_what_was_noted_is_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "notes"
    written(path, a=[1, {"b": "ü"}], n="trains")
    again = Notes(path)
    assert again.get("a") == [1, {"b": "ü"}] and again.get("n") == "trains"
    assert again.get("c") is None


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_damaged_line_counts_for_nothing_and_hides_no_other(tmp_path: Path, cut: int) -> None:
    """Torn by a full disk in the midst of it; the next writer goes on behind it."""
    path = tmp_path / "notes"
    written(path, first=1)
    written(path, second=22222)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    written(path, third=3)
    again = Notes(path)
    assert (again.get("first"), again.get("third")) == (1, 3)
    assert again.get("second") == (22222 if cut == 1 else None)
    path.write_bytes(whole.replace(b"22222", b"22322"))
    assert Notes(path).get("second") is None and Notes(path).get("first") == 1
    path.write_bytes(b"\xff\x00garbage\n" * 9)
    assert Notes(path).get("first") is None


def add_many(path: Path, start: int) -> None:
    for i in range(start, start + 50):
        written(path, **{f"k{i}": i})


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(add_many, [path] * 3, [0, 50, 100]))
    found = Notes(path)
    assert [found.get(f"k{i}") for i in range(150)] == list(range(150))


def test_a_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for i in range(100):
        book = Notes(path, longest=500)
        book.add(f"key{i}", i)
        book.keep()
    assert path.stat().st_size < 600 and Notes(path).get("key99") == 99
    book = Notes(path)
    book.add("one", 1)
    book.keep(whole=True)  # nobody asked for the others
    assert len(Notes(path).lines) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_nothing_is_noted(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    written(tmp_path / "notes", a=1)
    assert Notes(tmp_path / "notes").get("a") is None


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    written(tmp_path / "notes", a=1)
    assert Notes(tmp_path / "notes").get("a") is None


def test_keys_tell_values_and_code_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({hashed(1), hashed(1.0), hashed(True), hashed("1"), hashed(1, None)}) == 5
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "b.py"
    file.write_text("x = 1")
    seen = list(notes.stamps(str(tmp_path)))
    os.utime(file, ns=(1, 1))
    assert list(notes.stamps(str(tmp_path))) != seen
