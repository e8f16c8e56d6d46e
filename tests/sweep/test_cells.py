"""A configuration that is merged from its files is the one that Hydra composes: for every place of
every sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraexp import config
from loraexp.config import ConfigError
from loraexp.sweep import cells, composition, reading, schema
from loraexp.sweep.cells import Composer, expand, resolve
from tests.support.small_sweep import written
from tests.support.thin import loaded, regridded, variants


def ends(grid: dict[str, Any]) -> dict[str, list[Any]]:
    """The first and the last value of each axis."""
    return {
        key: values if len(values) < 3 else [values[0], values[-1]]
        for key, values in schema.listed(grid).items()
    }


@pytest.mark.parametrize("name", reading.names())
def test_merged_is_composed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By names and values, ids and folders; a set of overrides is composed by Hydra once."""
    monkeypatch.setenv("LORAEXP_DATA", "some/where")
    seen: set[tuple[str, ...]] = set()
    for variant in variants(name):
        found = loaded(name, variant)
        if found.compute is not None:
            continue
        shared: dict[tuple[str, ...], Any] = {}
        every = expand(regridded(found, ends))
        for cell in every[:: max(1, len(every) // 40)]:
            if cell.overrides in seen:
                continue
            seen.add(cell.overrides)
            plain = resolve(cell.overrides, frozenset(found.grid_of(cell.row, cell.column)), shared)
            assert cell.plain == plain
            assert cell.run_id == config.run_id(plain) and cell.folder == config.run_folder(plain)


def test_hydra_is_not_needed_for_any_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a table of hundreds of cells takes minutes."""

    def composed(*words: object) -> None:
        raise AssertionError(f"Hydra composes {words}")

    monkeypatch.setattr(config, "compose", composed)
    cells.composed.cache_clear()
    for name in ("cg_lora_table1", "lora_sb_table1", "lora_one_table2", "lora_da_table6"):
        assert len(expand(loaded(name))) >= 12


def test_what_refers_to_a_grid_key_follows_it() -> None:
    """LoRA-SB's alpha is ${rank}, its step size may be ${lr}: each point has its own."""
    composer = Composer()
    for lr in ("1e-3", "2e-3", "3e-3"):
        for rank in ("4", "8"):
            words = (
                "model=tiny-bert",
                "method=lora_sb",
                "init.step_size=${lr}",
                f"lr={lr}",
                f"rank={rank}",
            )
            plain = composer.composed(words, frozenset({"lr", "rank"})).plain
            assert plain["init"]["step_size"] == plain["lr"] == float(lr) and plain["alpha"] == int(
                rank
            )
            assert plain == config.check(config.compose(words))[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init.gama=1"], "init.gama: there is no such key"),
        (["lr=-1.0"], "lr=-1.0: expected a number above 0"),
        (
            ["train.warmup_ratio=2"],
            "train.warmup_ratio=2.0: expected a number at least 0 and at most 1",
        ),
        (["init=lorra"], "init=lorra: there is no conf/init/lorra.yaml"),
        (["rank=1,2"], "expected one value"),
        (["init=lora", "optimizer=lora_fa"], "choose optimizer="),
    ],
)
def test_a_mistake_is_found_at_every_point(words: list[str], said: str) -> None:
    """Also where an earlier point of the same grid was right."""
    axes = frozenset(word.partition("=")[0] for word in words)
    composer = Composer()
    right = [
        {"lr": "lr=1e-3", "train.warmup_ratio": "train.warmup_ratio=0.1"}.get(
            word.partition("=")[0], ""
        )
        for word in words
    ]
    composer.composed(tuple(word for word in ["model=tiny-bert", *right] if word), axes)
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        composer.composed(("model=tiny-bert", *words), axes)


@pytest.mark.parametrize(
    "text", ["defaults: [lora]\nname: mine\n", "# @package _global_\nname: mine\n"]
)
def test_a_file_that_is_more_than_keys_is_left_to_hydra(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    conf = tmp_path / "conf"
    shutil.copytree(config.folder("conf"), conf)
    (conf / "init" / "mine.yaml").write_text(text)
    monkeypatch.setattr(config, "folder", lambda name: tmp_path / name)
    assert composition.merged(["init=mine"]) is None
    assert composition.merged(["init=lora"]) is not None


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ([], "outputs"),
        (["experiment=debug"], "outputs/debug"),
        (["experiment=debug", "lr=0.1"], "outputs/debug"),
        (["experiment=debug", "output_root=here"], "here"),
    ],
)
def test_results_are_where_the_runs_are(
    words: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, figures and a launcher's workers ask the sweep; an experiment may say where."""
    monkeypatch.chdir(tmp_path)
    sweep = reading.load(str(written(tmp_path)), None, words)
    assert sweep.output_root == tmp_path / place
    assert {cell.folder.parent.parent for cell in expand(sweep)} == {sweep.output_root}
