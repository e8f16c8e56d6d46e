"""Weights in pieces over processes (`train.shard=full`): under torchrun with gloo a run is that of
one process, in its losses, checkpoint and saved model, and nobody but the first reads a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraexp import cli, config
from loraexp.machine.processes import misfit
from loraexp.run.experiment import run as run_one
from tests.support import sharded
from tests.support.forks import torchrun
from tests.support.text_data import overrides, write_all

COMMON = [
    "experiment=smoke",
    "device=cpu",
    "wandb.mode=disabled",
    "init.cache=false",
    "optimizer.eps=1e-3",  # else a step's sign hangs on the rounding of gradients near zero
    "train.max_steps=3",
    "train.batch_size=6",
    "train.micro_batches=2",
    "train.log_every=1",
    "train.eval_batch_size=3",
    "train.keep_checkpoint=true",
]
STILL = ["+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0"]


def words(data: Path) -> dict[str, list[str]]:
    """Every run that is compared: a kind of model, and what of it trains."""
    text = overrides(data)
    t5 = [*text["cola_t5"], "+model.config.dropout_rate=0", "task.limit_train=null"]
    llama = [*text["gsm8k"], "task.protocol=[lora_ga]", f"cache_root={data / 'cache'}"]
    short = ["init.samples=20", "init.batch_size=8"]
    return {
        # 3 batches for 2 processes, and 1 for 2
        "encoder adapters": [*STILL, "init=lora_da", "init.samples=40"],
        "encoder one batch": [*STILL, "init=cg_lora", "init.samples=12"],
        "encoder full": [*STILL, "init=full", "lr=1e-3"],
        "T5 adapters": [*t5, "init=pissa"],
        "T5 full": [*t5, "init=full", "lr=1e-3"],
        "LLaMA adapters": [*llama, "init=lora_one", "rank=1", *short],
        "LLaMA full": [*llama, "init=full", "lr=1e-3"],
    }


# what four processes are compared in: one here, the others with the tests that take long
WHOLE = ("encoder full",)
OTHERS = tuple(name for name in words(Path()) if name not in (*WHOLE, "encoder one batch"))


def composed(more: list[str], out: Path) -> tuple[Any, dict[str, Any]]:
    return config.check(config.compose([*COMMON, *more, f"output_root={out}"]))


def shared(
    data: Path, out: Path, runs: list[list[str]], world: int, **more: str
) -> tuple[int | None, str]:
    """The runs by the command in `world` processes, their weights in pieces; the status of torchrun
    and what they all said."""
    listed = data / f"runs{world}.json"
    listed.write_text(json.dumps([[*COMMON, *more] for more in runs]))
    how: dict[str, Any] = {"world": world, "log": out.with_suffix(".log")}
    return torchrun(sharded.main, str(listed), str(out), "train.shard=full", **how, **more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one(data: Path) -> Callable[[str], Path]:
    """The folder of a run that one process makes, by its name; it is made once."""
    return cache(lambda name: run_one(*composed(words(data)[name], data / "one")).folder)


@pytest.fixture(scope="module")
def two(data: Path) -> Path:
    status, said = shared(data, data / "two", list(words(data).values()), 2)
    assert status == 0, said[-5000:]
    return data / "two"


def same_run(theirs: Path, ours: Path) -> None:
    """Two run folders with one result: the log, the checkpoint to the moments, the model."""
    records = [json.loads((folder / "record.json").read_text()) for folder in (theirs, ours)]
    assert {record["status"] for record in records} == {"finished"}
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (theirs, ours)]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        for key in one.keys() - {"seconds"}:
            assert other[key] == pytest.approx(one[key], rel=2e-4, abs=1e-6), key
    assert records[1]["metrics"].keys() == records[0]["metrics"].keys()
    for split, metrics in records[0]["metrics"].items():
        assert records[1]["metrics"][split] == pytest.approx(metrics, rel=2e-4, nan_ok=True), split
    saved = [path.relative_to(theirs) for path in sorted(theirs.rglob("*.safetensors"))]
    kinds = {path.name.partition("-")[0] for path in saved if path.parent.name == "checkpoint"}
    assert kinds == {"weights", "moments"}
    assert saved == [p.relative_to(ours) for p in sorted(ours.rglob("*.safetensors"))]
    for path in saved:
        torch.testing.assert_close(
            load_file(ours / path), load_file(theirs / path), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("name", words(Path()))
def test_two_processes_that_share_the_weights_do_what_one_does(
    data: Path, one: Callable[[str], Path], two: Path, name: str
) -> None:
    folder = config.run_folder(composed(words(data)[name], two)[1])
    same_run(one(name), folder)
    record = json.loads((folder / "record.json").read_text())
    assert record["environment"]["processes"] == 2 and record["environment"]["shard"] == "full"


@pytest.mark.parametrize("names", [WHOLE, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_four_processes_do_too(
    data: Path, one: Callable[[str], Path], names: tuple[str, ...], tmp_path: Path
) -> None:
    status, said = shared(data, tmp_path / "four", [words(data)[name] for name in names], 4)
    assert status == 0, said[-5000:]
    for name in names:
        theirs = config.run_folder(composed(words(data)[name], tmp_path / "four")[1])
        same_run(one(name), theirs)


def test_the_process_that_raises_is_named_and_one_or_two_go_on_from_their_checkpoint(
    data: Path, one: Callable[[str], Path], tmp_path: Path
) -> None:
    """The second of two breaks at its third step, after a checkpoint of both."""
    more = [*words(data)["encoder full"], "train.checkpoint_every=2"]
    status, said = shared(data, tmp_path / "two", [more], 2, BREAK="1:2")
    folder = config.run_folder(composed(more, tmp_path / "two")[1])
    record = json.loads((folder / "record.json").read_text())
    assert status and record["status"] == "failed", said[-2000:]
    error = record["error"]
    assert (error["type"], error["rank"]) == ("ValueError", 1)
    assert error["message"] == "process 1 broke at step 2"
    assert "broke at step 2" in (folder / "error.txt").read_text()
    assert not list(folder.glob(".rank*"))
    shutil.copytree(tmp_path / "two", tmp_path / "alone")
    status, said = shared(data, tmp_path / "two", [more], 2)
    assert status == 0, said[-2000:]
    run_one(*composed(more, tmp_path / "alone"))
    for out in (tmp_path / "two", tmp_path / "alone"):
        own = config.run_folder(composed(more, out)[1])
        assert json.loads((own / "record.json").read_text())["resumed"][0]["step"] == 2
        same_run(one("encoder full"), own)


FITS = {"shard": "none", "device": "auto", "quantise": None, "precision": "fp32"}


@pytest.mark.parametrize(
    ("asked", "environment", "said"),
    [
        ({}, {}, None),
        ({"shard": "full"}, {"WORLD_SIZE": "2"}, None),
        ({"device": "cuda:1"}, {}, None),
        ({"precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, None),
        ({"shard": "full"}, {}, "train.shard=full: one process has nobody to share"),
        (
            {"shard": "full", "quantise": "4bit"},
            {"WORLD_SIZE": "2"},
            "train.shard=full: weights in 4bit are not shared",
        ),
        (
            {"device": "cuda:1"},
            {"WORLD_SIZE": "2"},
            "device=cuda:1: names one device, and 2 processes share this run; set device=cuda",
        ),
        ({"gpus_per_run": 2}, {"WORLD_SIZE": "2"}, None),
        ({"gpus_per_run": 2}, {}, "start it by torchrun --nproc-per-node=2 -m loraexp"),
        ({}, {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "set train.shard=full"),
        ({"device": "cpu"}, {"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP=true: "),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED=true: "),
        ({}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "ACCELERATE_MIXED_PRECISION=fp16: "),
    ],
)
def test_what_cannot_work_on_these_processes_is_one_line(
    asked: dict[str, Any],
    environment: dict[str, str],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = misfit(**(FITS | asked))
    assert (found is None) == (said is None)
    if said is not None and found is not None:
        assert said in found and "\n" not in found


def test_the_command_refuses_it_before_anything_is_made(tmp_path: Path, capsys: Any) -> None:
    assert cli.main([*COMMON, f"output_root={tmp_path}", "train.shard=full"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("loraexp: train.shard=full: one process") and "\n" not in said
    assert not list(tmp_path.rglob("record.json"))


def test_who_holds_what_is_no_part_of_the_run(tmp_path: Path) -> None:
    folders = {
        config.run_folder(composed([f"train.shard={shard}"], tmp_path)[1])
        for shard in ("none", "full")
    }
    assert len(folders) == 1
