"""A configuration is checked once; reading what runs left behind needs neither torch nor a second
check."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loraexp import config
from loraexp.config import ConfigError
from loraexp.machine import notes
from loraexp.sweep import accepted, duration
from loraexp.sweep.accepted import Accepted
from loraexp.sweep.cells import expand
from loraexp.sweep.reading import load


def words(tmp_path: Path) -> list[str]:
    return [f"output_root={tmp_path / 'out'}", f"cache_root={tmp_path / 'cache'}"]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every configuration that is checked whole."""
    seen: list[Any] = []
    own = config.checked

    def counted(composed: Any) -> Any:
        seen.append(composed)
        return own(composed)

    monkeypatch.setattr(config, "checked", counted)
    return seen


@pytest.mark.parametrize("name", ["cg_lora_table1", "lora_one_slides_table_one_step"])
def test_accepted_is_checked(name: str, tmp_path: Path, checks: list[Any]) -> None:
    """The second expansion checks nothing and gives the same, also where nothing trains
    (one_step)."""
    first = expand(load(name, None, words(tmp_path)))
    count = len(checks)
    assert count > 1
    second = expand(load(name, None, words(tmp_path)))
    assert len(checks) == count and first == second
    steps = {cell.plain["train"]["max_steps"] for cell in first}
    assert (0 in steps) == ("one_step" in name)


def test_other_code_is_asked_again(
    tmp_path: Path, checks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = load("lora_one_table2", None, words(tmp_path))
    expand(sweep)
    count = len(checks)
    monkeypatch.setattr(accepted, "code", lambda: "another version")
    expand(sweep)
    assert len(checks) == 2 * count


def test_a_mistake_is_said_every_time(tmp_path: Path) -> None:
    sweep = load("lora_one_table2", None, [*words(tmp_path), "lr=-1"])
    said = []
    for _ in range(2):
        with pytest.raises(ConfigError) as error:
            expand(sweep)
        said.append(str(error.value))
    assert said[0] == said[1] and "lr" in said[0]
    assert not list((tmp_path / "cache").glob("*"))


def test_a_function_of_another_package_is_always_asked(tmp_path: Path, checks: list[Any]) -> None:
    composed = config.resolved(config.compose([f"cache_root={tmp_path}"]))
    own = composed | {"init": composed["init"] | {"_target_": "elsewhere.function"}}
    for _ in range(2):
        book = Accepted()
        with suppress(ConfigError):
            book.checked(own)
        book.keep()
    assert len(checks) == 2 and not list(tmp_path.glob("*"))


@pytest.mark.parametrize("verb", ["table", "plan"])
def test_reading_needs_no_torch(verb: str, tmp_path: Path) -> None:
    """The second time: the first has checked and counted. And it prints the same."""
    script = (
        "import sys; from loraexp import cli; status = cli.main(sys.argv[1:]);"
        " print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr);"
        " sys.exit(status)"
    )
    (tmp_path / "out").mkdir()  # a table of a folder that is not there is a mistake
    command = [sys.executable, "-c", script, verb, "lora_sb_table1", "--variant", "smoke"]
    runs = [
        subprocess.run([*command, *words(tmp_path)], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 100
    assert "torch" in runs[0].stderr and runs[1].stderr.strip().endswith("[]")


def test_the_code_is_hashed_once() -> None:
    assert notes.code() == notes.code() and len(notes.code()) == 32


def test_full_is_the_only_initializer_that_trains_every_weight() -> None:
    """What a plan says of ours by its name alone, its decorator says too."""
    composed = config.compose([])
    for name in config.names("init"):
        node = config.read_yaml("init", name)
        said = duration.full(replace(config.check(composed)[0], init=node))
        assert said == config.Component.of(node, "init").full, name
