"""A benchmark is a file of `conf/benchmark`: where its rows are, how one is read, and one of one's
own beside ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from loraexp import config
from loraexp.cli.main import main
from loraexp.data import benchmarks
from loraexp.scoring import protocols

# lm-eval's own files, whose sets ours are; BoolQ it reads as a part of SuperGLUE
THEIRS = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "math": "minerva_math/minerva_math500.yaml",
    "humaneval": "humaneval/humaneval.yaml",
    "piqa": "piqa/piqa.yaml",
    "social_i_qa": "siqa/siqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "ARC-Easy": "arc/arc_easy.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "mmlu": "mmlu/default/_default_template_yaml",
}


class Loader(yaml.SafeLoader):
    """Reads past the functions that lm-eval's files name."""


Loader.add_constructor("!function", lambda *_: None)


@pytest.mark.parametrize("name", THEIRS)
def test_a_set_is_where_the_evaluation_harness_has_it(name: str) -> None:
    import lm_eval.tasks

    path = Path(lm_eval.tasks.__file__).parent / THEIRS[name]
    theirs, ours = yaml.load(path.read_text(), Loader), benchmarks.named(name)
    assert ours.source == theirs["dataset_path"]
    # where there is one configuration, hub and harness call it default
    same = {ours.config} if ours.config else {None, "default"}
    assert theirs.get("dataset_name", ours.config) in same
    assert ours.split == theirs.get("test_split") or ours.split == theirs["validation_split"]


def test_every_benchmark_has_facts_and_protocols() -> None:
    assert set(benchmarks.names()) == {*THEIRS, "boolq", "ARC-Challenge"}
    for name in benchmarks.names():
        assert {"rows", "prompt", "answer"} == config.read_yaml("benchmark", name)["facts"].keys()
        assert protocols.names(name)
        assert config.about("benchmark", name).endswith(("questions.", "problems.", "as well."))


OWN = """# Capitals: where is it?
name: capitals
files: [capitals.jsonl]
columns: {question: country, answer: capital}
"""
ASKS = """# Capitals, asked as they are.
name: plain
benchmarks: [capitals]
prompt: "The capital of {question} is"
decoding: {max_new_tokens: 4}
source: "my own"
"""


def test_one_of_ones_own_is_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for group, name, words in (("benchmark", "capitals", OWN), ("protocol", "capitals", ASKS)):
        (tmp_path / "mine" / group).mkdir(parents=True)
        (tmp_path / "mine" / group / f"{name}.yaml").write_text(words)
    rows = [{"country": f"Land {i}", "capital": i} for i in range(3)]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "capitals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = [{"question": f"Land {i}", "answer": f"#### {i}"} for i in range(8)]
    (tmp_path / "d" / "train.jsonl").write_text("\n".join(map(json.dumps, train)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(protocols, "PROTOCOLS", dict(protocols.PROTOCOLS))
    command = [
        "--config-dir=mine",
        "task=gsm8k",
        "model=tiny-llama",
        "init=lora",
        "task.data_dir=d",
        "task.benchmarks=[capitals]",
        "task.protocol=[plain]",
        "task.recipe=lora_ga",
        "task.held_out=1",
        "train.max_steps=1",
        "wandb.mode=disabled",
        "device=cpu",
    ]
    assert main(command) == 0
    (path,) = Path("outputs").glob("*/*/record.json")
    record = json.loads(path.read_text())
    assert set(record["metrics"]) == {"held_out", "capitals/plain"}
    assert record["data"]["capitals"]["rows"] == 3
    line = json.loads((path.parent / "samples.jsonl").read_text().splitlines()[2])
    assert line["prompt"] == "The capital of Land 2 is" and line["truth"] == "2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("colums: {question: a}", "has no key colums"),
        ("_target_: loraexp.data.benchmarks.gsm8k", "needs files, and columns or _target_"),
    ],
)
def test_a_file_that_is_none_is_one_line(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: bad\nfiles: [x]\ncolumns: {{question: a}}\n{change}\n")
    monkeypatch.setattr(config, "names", lambda group: ["bad"])
    monkeypatch.setattr(config, "file_of", lambda group, name: path)
    monkeypatch.setattr(config, "read_yaml", lambda group, name: yaml.safe_load(path.read_text()))
    with pytest.raises(ValueError, match=re.escape(f"{path}: a benchmark {message}")):
        benchmarks.named("bad")


def test_a_name_that_is_none_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"task\.benchmarks=\['gsm9k'\]: expected some of .*gsm8k"):
        benchmarks.named("gsm9k")
