"""Files that are there whole or not at all, and what is said where a disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from loraexp.machine import files


class FullAfter:
    """`os.fsync` of a disk that is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        def refuse(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_fails_leaves_the_old_file_and_names_file_and_disk(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    files.write_json(path, {"a": 1})
    FullAfter(monkeypatch, number)
    with pytest.raises(
        files.DiskFull,
        match=rf"{path}: no space left on the disk {files.mount_of(path)} \(\d+ MiB free\)",
    ):
        files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 1\n}\n' and list(tmp_path.iterdir()) == [path]


def test_the_words_of_a_library_are_a_full_disk_too(tmp_path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    assert files.is_full(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert not files.is_full(SafetensorError("I/O error: Permission denied (os error 13)"))
    with pytest.raises(files.DiskFull), files.folder_written(tmp_path / "adapter") as place:
        save_file({}, place / "x.safetensors")
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with files.folder_written(folder) as place:
        (place / "old").write_text("1")
    with pytest.raises(RuntimeError), files.folder_written(folder) as place:
        (place / "new").write_text("2")
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [
        folder
    ]
    with files.folder_written(folder) as place:
        (place / "new").write_text("2")
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_leftovers_of_dead_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "init").mkdir()
    left = [
        tmp_path / ".record.json.123",
        tmp_path / "init" / ".ledger.json.45",
        tmp_path / ".adapter.9",
    ]
    left[2].mkdir()
    for path in (*left[:2], left[2] / "x"):
        path.write_text("half")
    kept = [
        tmp_path / ".lock",
        tmp_path / "record.json",
        tmp_path / ".reserve",
        tmp_path / "init" / "a.1",
    ]
    for path in kept:
        path.write_text("whole")
    assert sorted(files.clear_temporaries(tmp_path)) == sorted(left)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


@pytest.mark.parametrize("damage", ["flip", "cut", "append", "empty", "seal"])
def test_every_damage_of_a_sealed_file_is_seen(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with files.sealed(path) as file:
        file.write(b"content" * 1000)
    files.check_seal(path)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        for place in (0, 3500, 7000, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(files.Damaged):
                files.check_seal(path)
        return
    path.write_bytes(
        {
            "cut": content[:-1],
            "append": content + b"x",
            "empty": b"",
            "seal": content[: -files.SEALED],
        }[damage]
    )
    with pytest.raises(files.Damaged):
        files.check_seal(path)


def test_a_folder_in_the_place_of_a_file_is_set_aside(tmp_path: Path) -> None:
    from loraexp.machine.files import replace

    place = tmp_path / "config.yaml"
    (place / "inside").mkdir(parents=True)
    replace(place, b"content")
    assert (
        place.read_bytes() == b"content" and (tmp_path / "config.yaml.damaged" / "inside").is_dir()
    )
