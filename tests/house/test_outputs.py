"""What a page shows under a command is what the command prints: every one that takes seconds is
executed, ids, numbers and all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import REPOSITORY
from tests.support.readme import Shown, like, missing, shown

PAGES = sorted(
    str(path.relative_to(REPOSITORY))
    for place in (".", "sweeps", "benchmarks", "examples", "loraexp/*")
    for path in REPOSITORY.glob(f"{place}/README.md")
) + ["CONTRIBUTING.md"]
# Minutes: executed by `make slow` (tests/cli/test_default_run.py).
SLOW = {"loraexp"}
SHOWN = {page: [one for one in shown(page) if one.command not in SLOW] for page in PAGES}


def printed(one: Shown, place: Path) -> list[str]:
    """What the command prints, on both streams as on a terminal."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "loraexp", *one.words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=place,
        env=environment,
    )
    assert done.returncode == 0, f"{one.command}: {done.stdout[-2000:]}"
    return done.stdout.rstrip("\n").splitlines()


@pytest.mark.parametrize("page", [page for page, commands in SHOWN.items() if commands])
def test_what_is_shown_is_what_is_printed(page: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    for one in SHOWN[page]:
        lines = printed(one, tmp_path)
        left = missing(one.output, lines)
        assert not left, f"{one.command}: not printed: {left}; but {lines[-12:]}"


def test_the_pages_show_something_and_every_kind_of_difference_is_seen() -> None:
    assert SHOWN["README.md"] and SHOWN["examples/README.md"]
    assert any(one.command == "loraexp" for one in shown("README.md"))
    assert like("lora  0.4688   1.2 s", "lora 0.4690 30.1 min", 0.02)
    assert not like("lora 0.4688", "lora 0.5688", 0.02)
    assert not like("run-0123456789", "run-0123456780", 0.02)
    assert missing(["a", "…", "c"], ["a", "b", "c"]) == []
    assert missing(["a", "c"], ["a", "b", "c"]) == ["c"]
    assert missing(["a"], ["a", "b"]) == ["b"]
    assert missing(["…", "c"], ["a", "b"]) == ["c"]
