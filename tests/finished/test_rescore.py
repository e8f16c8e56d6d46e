"""A re-score never touches the run's own metrics; what a run was made from is compared before it is
used again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loraexp import cli, load_records
from loraexp.finished import rescore
from loraexp.records.reading import value_at
from tests.support.copies import copies
from tests.support.own import own_base, own_data
from tests.support.runs import SMOKE, run
from tests.support.text_tasks import write_gsm8k


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def test_a_rescore_stands_beside_the_metrics_with_what_made_it_differ(tmp_path: Path) -> None:
    outcome = run("train.max_steps=4", "wandb.mode=offline", out=tmp_path)
    own = outcome.record["metrics"]
    assert cli.main(["eval", str(outcome.folder), "task.limit_eval=5"]) == 0
    record = record_of(outcome.folder)
    assert record["metrics"] == own and record["data"] == outcome.record["data"]
    [again] = record["evaluations"]
    assert (
        again["limits"]["limit_eval"] == 5
        and again["rows"]["dev"] == 5 != record["data"]["dev"]["rows"]
    )
    assert (
        again["protocol"] == "held_out"
        and again["environment"]["versions"]["torch"]
        and again["overrides"] == ["task.limit_eval=5"]
    )
    accuracy = again["metrics"]["dev"]["accuracy"]
    [row] = load_records(tmp_path).to_dict("records")
    assert row["dev/accuracy"] == own["dev"]["accuracy"] == value_at(record, "dev/accuracy")
    assert (
        row["evaluations/task.limit_eval=5/dev/accuracy"] == accuracy
        and row["evaluations/task.limit_eval=5/dev/rows"] == 5
    )
    [copied] = copies(tmp_path).values()
    assert (
        copied.record is not None
        and copied.record["evaluations"][0]["metrics"]["dev"]["accuracy"] == accuracy
    )
    assert copied.record["metrics"]["dev"] == own["dev"] and len(copied.lines()) > 0


def test_of_several_processes_that_score_one_writes_what_one_alone_finds(tmp_path: Path) -> None:
    """Under torchrun, of three questions in batches of two."""
    text = ("model=tiny-llama", "task=gsm8k", f"task.data_dir={write_gsm8k(tmp_path)}")
    short = ("task.limit_train=16", "task.max_length=128", "train.max_steps=1")
    folder = run(*text, *short, "task.limit_eval=1", out=tmp_path).folder
    words = ["task.limit_eval=3", "train.eval_batch_size=2"]
    alone = rescore.rescore(str(folder), words)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "loraexp", "eval", str(folder), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = record_of(folder)["evaluations"]
    assert first["metrics"] == second["metrics"] == alone and alone
    assert (first["rows"], first["limits"]) == (second["rows"], second["limits"])
    assert len(done.stdout.splitlines()) == len(alone)  # the first speaks for both


def test_a_table_reads_another_protocol_from_a_rescore_of_all_rows_only() -> None:
    metrics = {"gsm8k/mine": {"exact_match": 0.5}}
    record: dict[str, Any] = {
        "metrics": {},
        "evaluations": [{"overrides": ["task.protocol=mine"], "metrics": metrics}],
    }
    assert value_at(record, "gsm8k/mine/exact_match") == 0.5
    record["evaluations"][0]["overrides"].append("task.limit_eval=5")
    assert value_at(record, "gsm8k/mine/exact_match") is None


# --------------------------------------------------------------------------------------------------
# what has changed


def touch(path: Path) -> None:
    """Another time of change, the same content."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


def test_a_changed_base_is_seen_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = own_base(tmp_path / "base")
    argv = [*SMOKE, *base, "train.max_steps=2", f"output_root={tmp_path / 'out'}"]
    assert cli.main(argv) == 0
    [path] = (tmp_path / "out").rglob("record.json")
    weights = tmp_path / "base" / "model.safetensors"
    touch(weights)
    assert cli.main(argv) == 0 and "finished already" in capsys.readouterr().out
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert cli.main(argv) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        "finished already, with other base weights: " in said
        and str(weights) in said
        and "force=true" in said
    )
    for words in (["verify"], ["export", "--to", str(tmp_path / "to")], ["eval"], ["align"]):
        assert cli.main([words[0], str(path.parent), *words[1:]]) == 2, words
        assert (
            f"the run had other base weights: {weights} has changed since"
            in capsys.readouterr().err
        )
    assert cli.main([*argv, "force=true"]) == 0


def test_changed_data_are_seen_when_finished_and_when_going_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    data = own_data(tmp_path / "data")
    [path] = (tmp_path / "data").iterdir()
    argv = [*SMOKE, *data, "train.max_steps=4", f"output_root={tmp_path / 'out'}"]
    from loraexp.tasks.classification import Classification

    def broken(*_: Any) -> None:
        raise RuntimeError("the scorer broke")

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "compute_metrics", broken)
        assert cli.main(argv) == 1
    original = path.read_bytes()
    path.write_bytes(original.replace(b"the", b"teh"))
    capsys.readouterr()
    assert cli.main(argv) == 2
    assert "this run began with other data: " in capsys.readouterr().err
    path.write_bytes(original)
    assert cli.main(argv) == 0
    path.write_bytes(original.replace(b"the", b"teh"))
    assert cli.main(argv) == 2
    assert "finished already, with other data: " in capsys.readouterr().err


def test_changed_code_of_an_own_initializer_is_seen(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """`verify`, `export --merged` and `eval` need none of it."""
    code = (
        "from loraexp.adapter.layer import Factors, Layer, needs\nfrom loraexp.initializers.lora"
        " import lora\n\n\n@needs()\ndef own_rule(layer: Layer, *, rank: int, scaling: float,"
        " generator) -> Factors:\n    return lora(layer, rank=rank, scaling=scaling,"
        " generator=generator)\n"
    )
    (tmp_path / "own_rules.py").write_text(code)
    (tmp_path / "conf" / "init").mkdir(parents=True)
    (tmp_path / "conf" / "init" / "own_rule.yaml").write_text(
        "name: own_rule\n_target_: own_rules.own_rule\n_partial_: true\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = [
        "--config-dir",
        str(tmp_path / "conf"),
        *SMOKE,
        "init=own_rule",
        "train.max_steps=2",
        f"output_root={tmp_path / 'out'}",
    ]
    assert cli.main(argv) == 0
    assert cli.main(argv) == 0
    (tmp_path / "own_rules.py").write_text(code + "\n# another version\n")
    assert cli.main(argv) == 2
    assert "finished already, with other initializer code: " in capsys.readouterr().err
    (tmp_path / "own_rules.py").unlink()
    monkeypatch.delitem(sys.modules, "own_rules")
    [path] = (tmp_path / "out").rglob("record.json")
    for words in (["verify"], ["export", "--to", str(tmp_path / "to"), "--merged"], ["eval"]):
        assert cli.main([words[0], str(path.parent), *words[1:]]) == 0, capsys.readouterr().err
