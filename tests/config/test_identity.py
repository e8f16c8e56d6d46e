"""A run's id is of names and values: no refactoring changes it, what says how or where leaves it
alone, old folders are found."""

from __future__ import annotations

import dataclasses
import inspect
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraexp import config
from loraexp.config import identity, settings
from tests.support.runs import folder_of, run
from tests.support.small_sweep import cells_of, go, written


def plain_of(*overrides: str) -> dict[str, Any]:
    return config.check(config.compose(list(overrides)))[1]


# A change here gives every finished run another id: it needs a line in CHANGELOG.md, and old
# records must still be found.
PINNED = {
    "": "f0500fd425",
    "init=lora lr=2e-4": "88e19d0dae",
    "task=cola model=roberta-base init=lora_ga": "0653b6a6d3",
    "task=cola_t5 model=t5-base init=lora_one": "99ba3effad",
    "task=metamath model=llama-2-7b init=lora_da precision=bf16": "1723dde056",
    "init=full seed=3": "c912ec9967",
    "model=tiny-bert init=pissa rank=4 alpha=4": "3c4f2ae71e",
    "method=lora_pro": "b1befa2a13",
    "task=gsm8k model=tiny-llama task.protocol=[lora_ga,cg_lora]": "814bf5e4fb",
    "task=stsb model=tiny-roberta init=lora_sb train.max_steps=0": "8adc83e71c",
    "experiment=smoke": "556cc83d74",
    "task=mrpc init=milora optimizer=p_lora": "2a76fded86",
}


@pytest.mark.parametrize(("words", "pinned"), PINNED.items(), ids=PINNED)
def test_the_ids_of_a_dozen_runs(words: str, pinned: str) -> None:
    assert config.run_id(plain_of(*words.split())) == pinned


def test_the_id_of_a_computed_sweep(tmp_path: Path) -> None:
    from loraexp.sweep import computed, reading

    sweep = reading.load("lora_one_fig2", None, [])
    assert computed.folder(sweep, tmp_path) == tmp_path / "computed" / "lora_one_fig2-f9149b4594"
    of_old = {"_target_": "loraexp.costs.inference_macs", "rank": 16}
    assert config.run_id(of_old) == config.run_id(
        {"_target_": "loraexp.theory.costs.inference_macs", "rank": 16.0}
    )
    # an older sweep still opens
    assert config.target(of_old, "compute").__module__ == "loraexp.theory.costs"


def test_code_that_moves_and_keys_that_are_added_change_no_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = plain_of("task=cola", "init=lora_one")
    own = config.run_id(plain)

    moved = json.loads(json.dumps(plain))
    for group in ("task", "init", "optimizer"):
        moved[group]["_target_"] = "somewhere.else." + moved[group]["_target_"].rpartition(".")[2]
    moved["init"].pop("_partial_")
    moved["train"] |= {"new_key": None, "new_keys": {"one": None}}
    moved["task"] |= {"new_key": None, "facts": {"rows": 8551}}
    assert config.run_id(moved) == own
    assert (
        config.run_id(moved | {"task": moved["task"] | {"_target_": "loraexp.tasks.glue.other"}})
        != own
    )

    longer = dataclasses.make_dataclass(
        "longer",
        [("deterministic", bool, dataclasses.field(default=False))],
        bases=(settings.TrainSettings,),
        frozen=True,
        kw_only=True,
    )
    before = identity.defaults_of(settings.TrainSettings, "train")
    known = identity.defaults() | {"train.deterministic": False}
    monkeypatch.setattr(identity, "defaults", lambda: known)
    assert set(identity.defaults_of(longer, "train")) == {*before, ("train.deterministic", False)}
    for value, same in ((False, True), (True, False)):
        assert (
            config.run_id(plain | {"train": plain["train"] | {"deterministic": value}}) == own
        ) is same


def test_a_run_of_before_its_key_is_the_run_of_the_value_that_it_had_then() -> None:
    """LoRA-One's gradient was a mean over label tokens: an old run of text is that of `tokens`, one
    with one label a row is both."""
    for words, same in ((["task=cola_t5", "model=t5-base"], False), (["task=cola"], True)):
        today = plain_of("init=lora_one", *words)
        old = today | {
            "init": {key: value for key, value in today["init"].items() if key != "weighting"}
        }
        assert (config.run_id(old) == config.run_id(today)) is same
        if not same:
            assert config.run_id(old) == config.run_id(
                plain_of("init=lora_one", "init.weighting=tokens", *words)
            )
    before = plain_of("optimizer=lora_pro")
    del before["optimizer"]["first_step"], before["optimizer"]["moments"]
    assert config.run_id(before) == config.run_id(plain_of("optimizer=lora_pro"))
    assert config.run_id(before) != config.run_id(
        plain_of("optimizer=lora_pro", "optimizer.first_step=limit")
    )


def test_a_key_with_a_default_cannot_be_null_too() -> None:
    """Null and the default are both left out of the hash: a key that could be either would have two
    runs under one id."""
    hints = {
        f"{group}.{name}": hint
        for group, kind in groups().items()
        for name, hint in config.type_hints(kind).items()
    }
    for key, default in identity.defaults().items():
        assert default is None or not accepts_null(hints[key.replace("init.", "calibration.")]), key


def test_a_key_that_a_yaml_sets_to_null_is_null_where_it_is_absent() -> None:
    """Null and absent are one in the hash, so they must be one for the function."""
    for group in ("task", "init", "optimizer"):
        for name in config.names(group):
            node = config.read_yaml(group, name)
            parameters = inspect.signature(config.target(node, group)).parameters
            for key, value in node.items():
                if value is None and key in parameters:
                    assert parameters[key].default in (None, inspect.Parameter.empty), (
                        group,
                        name,
                        key,
                    )


def groups() -> dict[str, type]:
    return {
        name: hint
        for name, hint in config.type_hints(settings.Settings).items()
        if dataclasses.is_dataclass(hint)
    }


def accepts_null(hint: Any) -> bool:
    try:
        config.fit("key", None, hint)
    except config.ConfigError:
        return False
    return True


MANNERS = {
    "device": "cpu",
    "output_root": "/elsewhere",
    "cache_root": "/x",
    "force": True,
    "wandb.mode": "disabled",
    "train.log_every": 7,
    "train.checkpoint_every": 3,
    "train.keep_checkpoint": True,
    "train.eval_batch_size": 5,
    "init.cache": False,
    "init.memory_budget": 0,
    "evaluate.unsafe_code": True,
    "model.allow_pickle": True,
}
MATTERS = {
    "lr": 2e-3,
    "seed": 1,
    "precision": "bf16",
    "train.micro_batches": 2,
    "init.batch_size": 4,
    "train.keep_factors_every": 5,
}


def test_how_and_where_leave_the_id_alone_and_what_does_not() -> None:
    own = config.run_id(plain_of())
    for key, value in MANNERS.items():
        assert config.run_id(plain_of(f"{key}={value}")) == own, key
    assert len(
        {own, *(config.run_id(plain_of(f"{key}={value}")) for key, value in MATTERS.items())}
    ) == 1 + len(MATTERS)


def test_a_path_is_one_place_wherever_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    here = plain_of("model.path=model")
    assert here["model"]["path"] == str(tmp_path / "model")
    monkeypatch.chdir("/")
    assert config.run_id(plain_of(f"model.path={tmp_path}/model")) == config.run_id(here)
    assert plain_of("model=roberta-base", "task=cola")["model"]["path"] == "FacebookAI/roberta-base"


# --------------------------------------------------------------------------------------------------
# old folders

SHORT = (
    "task.limit_train=64",
    "task.limit_eval=32",
    "init.samples=16",
    "train.max_steps=2",
    "train.eval_every=2",
)


def older(folder: Path, old_id: str, **changes: Any) -> Path:
    """The folder of a run as an older version left it: another id, modules elsewhere, other ways of
    logging."""
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    stored["optimizer"]["_target_"] = "loraexp.rules.adamw"
    stored["train"] |= {"log_every": 9} | changes
    stored["device"] = "auto"
    stored["init"].pop("cache", None)
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    old = folder.with_name(f"{folder.name.rpartition('-')[0]}-{old_id}")
    folder.rename(old)
    return old


def test_a_run_that_an_older_version_filed_is_already_there(tmp_path: Path) -> None:
    first = run(*SHORT, out=tmp_path)
    assert not first.already
    old = older(first.folder, "36a12d3f53")
    again = run(*SHORT, out=tmp_path)
    assert again.already and again.folder == old
    assert (
        folder_of(*SHORT, "seed=1", out=tmp_path) != old
        and folder_of(*SHORT, "lr=2e-3", out=tmp_path).name != old.name
    )
    # what it says of itself is looked at again when it has changed
    older(old, "36a12d3f53", batch_size=4)
    assert folder_of(*SHORT, out=tmp_path) == first.folder


def test_of_two_old_folders_the_finished_one_is_the_run(tmp_path: Path) -> None:
    first = run(*SHORT, out=tmp_path)
    finished = older(first.folder, "aaaaaaaaaa")
    interrupted = finished.with_name(finished.name.replace("aaaaaaaaaa", "bbbbbbbbbb"))
    interrupted.mkdir()
    (interrupted / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    (interrupted / "record.json").write_text('{"status": "running"}')
    for damaged in ("not: [yaml", "[]", ""):
        (finished.parent / "cg_lora-s0-dddddddddd").mkdir(exist_ok=True)
        (finished.parent / "cg_lora-s0-dddddddddd" / "config.yaml").write_text(damaged)
        assert folder_of(*SHORT, out=tmp_path) == finished


def test_a_sweep_takes_the_records_of_an_older_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path), tmp_path / "out"
    assert go(path, out) == 0
    for i, cell in enumerate(cells_of(path, out)):
        older(cell.folder, f"{i}6a12d3f53")
    capsys.readouterr()
    assert go(path, out) == 0
    assert "mine: 4 runs, 4 finished already" in capsys.readouterr().err
    assert sorted(cell.folder.name[-10:] for cell in cells_of(path, out)) == [
        f"{i}6a12d3f53" for i in range(4)
    ]


def test_a_thousand_old_folders_are_looked_through_once(tmp_path: Path) -> None:
    plain = plain_of(f"output_root={tmp_path}")
    text = yaml.safe_dump(plain)
    parent = config.run_folder(plain).parent
    for i in range(200):
        folder = parent / f"cg_lora-s0-{i:010x}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(text.replace("lr: 0.001", f"lr: 0.{i + 1:05d}"))
    config.run_folder(plain)
    began = time.process_time()
    for i in range(200):
        config.run_folder(plain | {"lr": 1 + i})
    assert time.process_time() - began < 2.0
