"""Whole commands against the stand-in hub: how often it is asked, what the record says, and how a
command goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from loraexp.cli.main import main
from loraexp.models.place import weights_digest
from tests.support.hub import offline
from tests.support.hub_models import model_files
from tests.support.hub_repositories import config
from tests.support.hub_server import Fault, Hub
from tests.support.hub_sets import glue

TINY = ("init=lora", "train.max_steps=1", "train.batch_size=8", "wandb.mode=disabled", "device=cpu")
COLA = (*TINY, "task=cola", "model=roberta-base", "task.max_length=32")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder that is no checkout, with a cache of tokens of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAEXP_CACHE", str(tmp_path / "cache"))


def records() -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text()) for path in sorted(Path("outputs").glob("*/*/record.json"))
    ]


def loaded(record: dict[str, Any]) -> dict[str, Any]:
    """Which weights the record says were loaded."""
    return {key: record["model"][key] for key in ("source", "commit", "sha256")}


def test_a_grid_asks_the_hub_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ("-m", *COLA, "lr=1e-3,2e-3", "seed=0,1")
    assert main(grid) == 0
    # 22, by the tested versions of the clients; it was 38 before one place read the hub
    assert hub.count() <= 24
    assert len(hub.transfers) == len(set(hub.transfers)) == 7  # each file once
    kept = (".json", ".safetensors", ".parquet", "README.md")
    assert all(name.endswith(kept) for name in hub.transfers)
    made = {name: record for record in records() for name in [record["run_id"]]}
    assert len(made) == 4 and {record["status"] for record in made.values()} == {"finished"}
    commits = {
        "cola": config("task", "cola")["revision"],
        "model": config("model", "roberta-base")["revision"],
    }
    for record in made.values():
        assert record["hub"] == {
            f"models/FacebookAI/roberta-base@{commits['model']}": commits["model"]
        } | {f"datasets/nyu-mll/glue@{commits['cola']}": commits["cola"]}
        assert loaded(record) == {
            "source": "FacebookAI/roberta-base",
            "commit": commits["model"],
            "sha256": None,
        }
        assert record["data"]["train"]["source"].endswith(f"at {commits['cola']}")
    adapter = next(Path("outputs").glob("*/*/adapter/adapter_config.json")).read_text()
    assert json.loads(adapter)["revision"] == commits["model"]
    hub.clear()
    assert main(grid) == 0 and hub.count() == 0  # finished already
    # all is in the cache, under its commit
    assert main([*COLA, "lr=4e-3"]) == 0 and hub.count() == 0
    offline(monkeypatch)
    assert main([*COLA, "lr=5e-3"]) == 0 and hub.count() == 0


def test_two_seeds_never_see_two_commits(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    made = hub.repository("acme/moving")
    first = made.add(model_files("bert"))
    mine = (*COLA, "model.path=acme/moving", "model.revision=null")
    assert main([*mine, "seed=0"]) == 0
    second = made.add(model_files("bert", seed=1))
    assert main([*mine, "seed=1"]) == 0
    assert [record["model"]["commit"] for record in records()] == [first, first] != [second, second]
    (run,) = Path("outputs").glob("*/lora-s1-*")
    os.remove("outputs/hub.json")  # a run that was copied elsewhere has only its record
    capsys.readouterr()
    # on the weights that it was trained on
    assert main(["verify", str(run)]) == 0, capsys.readouterr()
    assert main([*mine, "seed=0", "output_root=later"]) == 0
    (later,) = Path("later").glob("*/*/record.json")
    assert json.loads(later.read_text())["model"]["commit"] == second


def test_show_reads_the_commit_that_a_run_here_reads(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    made = hub.repository("acme/rows", "datasets")
    made.add(glue())
    own = ("task.format=hub", "task.source=acme/rows", "task.config=cola", "task.text=[sentence]")
    words = ("task=data", "task.train=train", "task.dev=validation", *own, "model=tiny-bert")
    assert main(["show", *words]) == 0
    before = capsys.readouterr().out
    made.add(glue(shift=5000))
    assert main(["show", *words]) == 0
    assert capsys.readouterr().out == before
    assert main([*TINY, *words, "task.max_length=32"]) == 0
    (record,) = records()
    assert record["hub"] == json.loads(Path("outputs/hub.json").read_text())
    capsys.readouterr()
    assert main(["show", *words, "output_root=later"]) == 0
    assert capsys.readouterr().out != before


def test_weights_of_a_folder_are_known_by_their_digest(hub: Hub, tmp_path: Path) -> None:
    for name, content in model_files("bert").items():
        place = tmp_path / "mine" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    weights = tmp_path / "mine" / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    words = (*COLA, "model.path=mine", "model.revision=null")
    assert main(words) == 0
    (record,) = records()
    assert loaded(record) == {"source": str(tmp_path / "mine"), "commit": None, "sha256": digest}
    # read again where it changed
    weights.write_bytes(model_files("bert", seed=1)["model.safetensors"])
    changed = weights_digest(tmp_path / "mine")
    assert changed == hashlib.sha256(weights.read_bytes()).hexdigest() != digest
    shards = model_files("llama", shards=True)
    for name in (names := sorted(name for name in shards if name.endswith(".safetensors"))):
        (tmp_path / name).write_bytes(shards[name])
    each = "".join(hashlib.sha256(shards[name]).hexdigest() for name in names)
    assert weights_digest(tmp_path) == hashlib.sha256(each.encode()).hexdigest()


def test_commonsense_is_trained_and_scored_from_the_hub_in_one_command(hub: Hub) -> None:
    words = (
        "task=commonsense170k",
        "model=tiny-llama",
        "task.limit_eval=1",
        "train.eval_batch_size=8",
    )
    assert main([*TINY, *words]) == 0
    (record,) = records()
    names = [
        "boolq",
        "piqa",
        "social_i_qa",
        "hellaswag",
        "winogrande",
        "ARC-Easy",
        "ARC-Challenge",
        "openbookqa",
    ]
    assert [split for split in record["metrics"] if "/" in split] == [
        *(f"{name}/llm_adapters" for name in names),
        "average/llm_adapters",
    ]
    newest = hub.repositories["datasets", "zwhe99/commonsense_170k"].names["main"]
    assert record["data"]["train"]["source"] == f"zwhe99/commonsense_170k (train) at {newest}"
    # the training set, and seven repositories of the eight benchmarks
    assert len(record["hub"]) == 8
    boolq = hub.repositories["datasets", "google/boolq"].names["main"]
    assert record["data"]["boolq"]["source"] == f"google/boolq (validation) at {boolq}"


def test_a_hub_that_dies_is_one_line_and_the_same_command_goes_on(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [Fault("GET /store/.*safetensors", reset_after=4000)]
    assert main(COLA) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    revision = config("model", "roberta-base")["revision"]
    assert said.startswith(
        f"loraexp: Unreachable: FacebookAI/roberta-base at {revision}: {hub.url} does not answer or"
        " broke off ("
    )
    assert "the same command goes on" in said
    assert [record["status"] for record in records()] == ["failed"]
    hub.clear()
    assert main(COLA) == 0
    assert hub.transfers == ["model.safetensors"]
    assert [record["status"] for record in records()] == ["finished"]


def test_a_gated_model_names_its_page_and_a_token(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, "task=gsm8k", "model=llama-2-7b", "task.limit_eval=1")
    assert main(words) == 1
    said = capsys.readouterr().err
    assert (
        f"accept its licence at {hub.url}/meta-llama/Llama-2-7b-hf, then `hf auth login` or set"
        " HF_TOKEN" in said
    )
    assert "Traceback" not in said


def test_nothing_but_our_own_lines_is_printed(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    """lm-eval asks git for a commit, and this folder is no checkout; its bars are not ours."""
    assert main([*TINY, "task=gsm8k", "model=tiny-llama", "task.limit_eval=1"]) == 0
    said = capfd.readouterr()
    assert "fatal" not in said.err and "not a git repository" not in said.err + said.out
    assert "it/s]" not in said.err and "%|" not in said.err
