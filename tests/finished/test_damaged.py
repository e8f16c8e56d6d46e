"""A finished run whose files are damaged: one line names the file and the damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import loraexp
from loraexp.cli.main import main
from loraexp.config import ConfigError, boundary
from loraexp.finished.opened import open_run

WORDS = (
    "experiment=smoke",
    "wandb.mode=disabled",
    "device=cpu",
    "task.limit_train=32",
    "task.limit_eval=16",
    "init=lora",
    "train.max_steps=1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loraexp.run(*WORDS, f"output_root={tmp_path_factory.mktemp('finished')}").folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff\x00[" * 500),
    "deep": lambda path: path.write_bytes(b"a: " + b"[" * 100_000),
    "a folder": folder_instead,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"],
)
def test_verify_names_the_file_that_is_damaged(
    name: str, damage: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](folder / name)
    assert main(["verify", str(folder)]) == 2
    said = capsys.readouterr().err.strip()
    assert str(folder / name) in said and said.count("\n") == 0
    assert "train again with force=true" in said


def test_a_configuration_that_lacks_a_nested_key_is_damaged(folder: Path) -> None:
    """A cut inside of a group leaves a yaml that is one, and defaults would hide it."""
    path = folder / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("  batch_size:", "  another_size:", 1))
    with pytest.raises(ConfigError, match=r"config.yaml is damaged: it has no \w+.batch_size"):
        open_run(str(folder))


def test_a_configuration_changed_since_the_run_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "config.yaml"
    assert "\nseed: 0\n" in path.read_text()
    path.write_text(path.read_text().replace("\nseed: 0\n", "\nseed: 5\n"))
    assert open_run(str(folder)).settings.seed == 5
    assert "was changed since the run: seed is 5, and 0 in the record" in capsys.readouterr().err


def test_a_saved_configuration_does_not_import_what_it_names(folder: Path) -> None:
    """The task's code is needed, so it is refused; that of an initializer has done its work."""
    path = folder / "config.yaml"
    text = path.read_text()
    own = next(line for line in text.splitlines() if "_target_: loraexp.tasks" in line)
    path.write_text(text.replace(own, "  _target_: antigravity.fly"))
    with pytest.raises(ConfigError, match=r"task._target_=antigravity.fly: .*--trust"):
        open_run(str(folder))
    own = next(line for line in text.splitlines() if "_target_: loraexp.initializers" in line)
    path.write_text(text.replace(own, "  _target_: antigravity.fly"))
    assert open_run(str(folder)).settings.init["_target_"] == "antigravity.fly"
    import sys

    assert "antigravity" not in sys.modules


def test_a_saved_configuration_does_not_take_the_sandbox_away(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("unsafe_code: false", "unsafe_code: true"))
    assert "unsafe_code: true" in path.read_text()
    assert open_run(str(folder)).settings.evaluate.unsafe_code is False
    typed = open_run(str(folder), {boundary.UNSAFE: True})
    assert typed.settings.evaluate.unsafe_code is True
