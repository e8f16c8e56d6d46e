"""A converted .gguf file is used where it is whole, and made anew where it is not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loraexp.machine import files
from loraexp.machine.hub import SourceError
from loraexp.models import gguf

WEIGHTS = b"weights" * 1000


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[Path]]]:
    """A file, and the folders that were converted from it, by a conversion of no time."""
    folders: list[Path] = []

    def convert(file: Path, folder: Path) -> None:
        folders.append(folder)
        (folder / "model.safetensors").write_bytes(WEIGHTS + file.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "convert", convert)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"quantised")
    fresh()
    yield file, folders
    fresh()


def fresh() -> None:
    """As in another process."""
    gguf.converted.cache_clear()
    files.file_digest.cache_clear()


def converted(file: Path) -> Path:
    fresh()
    return gguf.converted(file, kind="causal", root=file.parent / "models")


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS[:9])


def lose(folder: Path) -> None:
    (folder / "config.json").unlink()


def older(folder: Path) -> None:
    (folder / gguf.MARK).rename(folder / "converted.txt")


def garble(folder: Path) -> None:
    (folder / gguf.MARK).write_text('{"files": ')


def untyped(folder: Path) -> None:
    (folder / gguf.MARK).write_text('{"sha256": 3}')


def foreign(folder: Path) -> None:
    path = folder / gguf.MARK
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "model.safetensors is not what was written there, by its checksum"),
        (cut, "model.safetensors is not what was written there, by its checksum"),
        (lose, "config.json is missing"),
        (older, "it has no checksums"),
        (garble, "converted.json cannot be read"),
        (untyped, "converted.json cannot be read"),
        (foreign, f"it was made of another file, with sha256 {'0' * 64}"),
        (shutil.rmtree, ""),
    ],
)
def test_what_is_damaged_is_made_anew_and_said(
    harm: Callable[[Path], None],
    said: str,
    made: tuple[Path, list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, folders = made
    folder = converted(file)
    assert converted(file) == folder and len(folders) == 1  # whole: used as it is
    harm(folder)
    capsys.readouterr()
    assert converted(file) == folder and len(folders) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (line == f"{folder}: {said}; converting tiny.gguf again") is bool(said)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS + b"quantised"
    assert sorted(folder.parent.iterdir()) == [folder]
    assert converted(file) == folder and len(folders) == 2


def test_another_file_of_the_same_name_is_another_model(made: tuple[Path, list[Path]]) -> None:
    file, _ = made
    first = converted(file)
    file.write_bytes(b"of another revision")
    second = converted(file)
    assert first != second and (second / "model.safetensors").read_bytes().endswith(b"revision")
    said = json.loads((second / gguf.MARK).read_text())
    assert said["sha256"] == hashlib.sha256(b"of another revision").hexdigest()
    assert said["files"].keys() == {"model.safetensors", "config.json"}


def test_a_file_that_is_not_the_expected_one_is_refused(made: tuple[Path, list[Path]]) -> None:
    file, folders = made
    with pytest.raises(SourceError, match="expected 0123"):
        gguf.converted(file, kind="causal", sha256="0123", root=file.parent)
    assert not folders
