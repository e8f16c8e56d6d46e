"""Sweeps: run through every launcher, shared by processes, interrupted, failing, and bit by bit the
runs that they stand for."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from loraexp import config
from loraexp.config.paths import quoted
from loraexp.machine import measure
from loraexp.records import record
from loraexp.run import experiment, kept
from loraexp.sweep import launch, watch, worker
from tests.support import forks
from tests.support.runs import SMOKE, metric_lines, without_times
from tests.support.small_sweep import TINY, cells_of, go, written


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/*/record.json")}


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    kept.clear()


# --------------------------------------------------------------------------------------------------
# one process


def test_a_sweep_runs_what_is_missing_once(tmp_path: Path, capsys) -> None:
    path, out = written(tmp_path), tmp_path / "out"
    assert go(path, out) == 0
    found = records(out)
    assert set(found) == {cell.folder.name for cell in cells_of(path, out)} and len(found) == 4
    assert {r["status"] for r in found.values()} == {"finished"}
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == "mine: 4 runs, 0 finished already"
        and "mine: 4 of 4 runs finished, 0 failed" in lines
    )
    assert [line.split("]")[0] for line in lines if line.startswith("[")] == [
        "[1/4",
        "[2/4",
        "[3/4",
        "[4/4",
    ]
    assert any("pissa/tweets lr=0.001 seed=1: dev/accuracy 0." in line for line in lines)
    stamps = {name: r["ended"] for name, r in found.items()}
    times = {p: p.stat().st_mtime_ns for p in out.glob("*/*/record.json")}
    next(iter(out.glob("*/pissa-s1-*/record.json"))).unlink()
    assert go(path, out) == 0
    assert "mine: 4 runs, 3 finished already" in capsys.readouterr().err
    unchanged = [p for p, when in times.items() if p.stat().st_mtime_ns == when]
    assert len(unchanged) == 3 and records(out).keys() == stamps.keys()


def test_a_run_that_finds_model_and_task_kept_is_bitwise_one_on_its_own(tmp_path: Path) -> None:
    """Weights, metrics and log of every run of a sweep, against the same run with nothing kept."""
    path, out = written(tmp_path, steps=4), tmp_path / "out"
    assert go(path, out) == 0
    assert kept.MODEL.value is not None and kept.TASK.value is not None
    for cell in cells_of(path, out):
        kept.clear()
        settings, plain = config.check(
            config.compose(
                [
                    *cell.overrides,
                    f"output_root={tmp_path / 'alone'}",
                    f"cache_root={tmp_path / 'c'}",
                ]
            )
        )
        alone = experiment.run(settings, plain)
        for part in ("init", "adapter"):
            one, other = (
                folder / part / "factors.safetensors" for folder in (cell.folder, alone.folder)
            )
            assert one.read_bytes() == other.read_bytes(), (cell.folder, part)
        assert metric_lines(cell.folder) == metric_lines(alone.folder)
        assert record.read(cell.folder)["metrics"] == alone.record["metrics"]
        assert without_times(record.read(cell.folder)["data"]) == without_times(
            alone.record["data"]
        )


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta", "tiny-t5", "tiny-llama"])
def test_a_copy_of_a_kept_model_is_a_freshly_loaded_one(model: str) -> None:
    """Its weights are those in memory already, its head that of the other seed; training the copy
    leaves the kept one as it was."""
    from loraexp import models
    from loraexp.statistics import fingerprint

    task = {"tiny-t5": ["task=cola_t5"], "tiny-llama": ["task=gsm8k"]}.get(model, [])
    settings, _ = config.check(config.compose([f"model={model}", *task]))
    labels = {"num_labels": 3} if settings.model.kind == "encoder" else {}
    load = {"dtype": torch.float32, **labels}
    pristine = models.open(settings.model).load(head_seed=0, **load)
    before = fingerprint(pristine)
    state = torch.random.get_rng_state()
    copied = kept.fresh(pristine, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert fingerprint(copied) == fingerprint(models.open(settings.model).load(head_seed=5, **load))
    head = models.head(copied)
    for name, value in copied.named_parameters():
        shares = value.data_ptr() == pristine.get_parameter(name).data_ptr()
        assert shares == (name.split(".")[0] not in head), name
    for name in head:
        torch.nn.init.ones_(next(copied.get_submodule(name).parameters()))
    assert fingerprint(pristine) == before


def test_only_one_model_is_kept_and_none_beside_full_fine_tuning(tmp_path: Path) -> None:
    def ran(*overrides: str) -> Any:
        settings, plain = config.check(
            config.compose([*TINY, "train.max_steps=1", f"output_root={tmp_path}", *overrides])
        )
        experiment.run(settings, plain)
        return kept.MODEL.value

    first = ran("init=lora")
    assert ran("init=pissa", "seed=3") is first
    assert ran("init=lora", "precision=bf16") is not first
    assert ran("init=full") is None


def test_failing_runs_do_not_stop_the_others(tmp_path: Path, capsys, monkeypatch) -> None:
    """One runs out of memory, one fails before it has a record: both are listed, and the same
    command retries only them."""
    path, out = (
        written(tmp_path, columns={"tweets": {"value": "dev/accuracy", "label": "Tweets"}}),
        tmp_path / "out",
    )
    real, seen = experiment.train, []

    def starved(loop: Any) -> Any:
        seen.append(kept.MODEL.value is not None)
        if loop.settings.seed == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(loop)

    monkeypatch.setattr(experiment, "train", starved)
    rows = yaml.safe_load(path.read_text())["rows"] | {
        "wide": {"label": "r 4096", "overrides": ["init=lora", "rank=4096"]}
    }
    path = written(tmp_path, rows=rows)
    assert go(path, out) == 1
    error = capsys.readouterr().err
    assert "mine: 2 of 6 runs finished, 4 failed" in error
    assert (
        "  lora/tweets lr=0.001 seed=0: OutOfMemory: out of memory while training (20.00 GiB were"
        " asked for): raise " in error
    )
    assert (
        error.count("expected at most 32 (no record)") == 2
        and "retries only what is missing" in error
    )
    finished = [r["config"]["seed"] for r in records(out).values() if r["status"] == "finished"]
    assert finished == [1, 1] and len(seen) == 4
    monkeypatch.setattr(experiment, "train", real)
    assert go(path, out) == 1
    error = capsys.readouterr().err
    assert (
        "mine: 6 runs, 2 finished already" in error
        and "mine: 4 of 6 runs finished, 2 failed" in error
    )


def test_out_of_memory_drops_what_is_kept(monkeypatch) -> None:
    kept.MODEL.get(["x"], lambda: "model")
    worker.release(everything=measure.ran_out(ValueError("lr")))
    assert kept.MODEL.value == "model"
    worker.release(
        everything=measure.ran_out(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        )
    )
    assert kept.MODEL.value is None


def test_runs_that_share_a_model_and_statistics_follow_each_other(tmp_path: Path) -> None:
    path = written(
        tmp_path, grid={"lr": [1e-3, 1e-4], "seed": [0, 1], "precision": ["fp32", "bf16"]}
    )
    cells = launch.ordered([*cells_of(path, tmp_path), *cells_of(path, tmp_path)])
    assert len(cells) == len({cell.run_id for cell in cells}) == 16
    shared = [(c.plain["precision"], c.plain["init"]["name"], c.plain["seed"]) for c in cells]
    assert shared == [key for key in dict.fromkeys(shared) for _ in range(2)]
    assert [key[0] for key in shared] == ["fp32"] * 8 + ["bf16"] * 8


def test_a_launcher_that_is_not_there_is_one_line(tmp_path: Path, capsys) -> None:
    assert go(written(tmp_path), tmp_path / "out", "hydra/launcher=slrum") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last.startswith("loraexp: hydra/launcher=slrum: not installed; there is basic")
        and "pip install 'loraexp[joblib]'" in last
    )


# --------------------------------------------------------------------------------------------------
# progress


def test_time_left_is_that_of_the_runs_already_measured(tmp_path: Path) -> None:
    path, out = written(tmp_path), tmp_path / "out"
    cells = cells_of(path, out)
    shown = watch.Watch("mine", cells, {})
    assert shown.left() == ""
    took = {cells[0].folder: 100.0, cells[2].folder: 20.0}
    for cell in (cells[0], cells[2]):  # lora seed 0, pissa seed 0
        costs = {"init_seconds": 1.0, "train_seconds": took[cell.folder] - 1.0}
        cell.folder.mkdir(parents=True)
        content = {
            "schema": record.SCHEMA,
            "config": cell.plain,
            "status": "finished",
            "metrics": {"dev": {"accuracy": 0.5}},
        }
        content |= {"cost": costs, "started": None, "ended": None}
        (cell.folder / "record.json").write_text(json.dumps(content))
    shown.look()
    assert shown.counts() == {"todo": 2, "running": 0, "finished": 2, "failed": 0}
    assert shown.left() == "2.0 min left"  # 100 s and 20 s, one after the other
    shown.most_running = 2
    assert shown.left() == "60.0 s left"


def test_a_terminal_has_one_bar_with_the_runs_own_below_it(tmp_path: Path) -> None:
    """Through a pseudo-terminal: the sweep's bar and the run's bar are lines of one display."""
    import pty
    import subprocess

    controller, terminal = pty.openpty()
    code = (
        "import time; from loraexp.machine.progress import bar\n"
        "with bar('mine', 4, 1) as overall:\n"
        "    overall(1, running='1', failed='0', left='3 min left')\n"
        "    with bar('training', 10) as inner:\n"
        "        inner(5, loss=0.25); time.sleep(0.4)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "110"},
    ) as process:
        process.wait(60)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(controller, 65536):
            shown += chunk
    except OSError:  # the terminal's end, on Linux
        pass
    text = shown.decode()
    assert "mine" in text and "2/4" in text and "running 1" in text and "3 min left" in text
    assert "training" in text and "5/10" in text and "loss 0.25" in text and process.returncode == 0


# --------------------------------------------------------------------------------------------------
# several processes


def sweeping(path: str, out: str, log: str) -> None:
    """A command of its own, which notes every run that it begins to train."""
    torch.set_num_threads(1)
    # a shell starts what runs in its background with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    real = experiment.train

    def noted(*args: Any, **how: Any) -> Any:
        with Path(log).open("a") as file:
            file.write(f"{args[0].record.folder.name}\n")
        return real(*args, **how)

    experiment.train = noted
    sys.exit(go(Path(path), Path(out)))


@pytest.fixture(scope="module")
def context() -> Any:
    return forks.context()


def begun(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def until(holds: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.005)


def test_two_processes_share_a_sweep_and_run_nothing_twice(tmp_path: Path, context) -> None:
    path, out, log = (
        written(tmp_path, steps=20, grid={"lr": 1e-3, "seed": [0, 1, 2]}),
        tmp_path / "out",
        tmp_path / "log",
    )
    both = [
        context.Process(target=sweeping, args=(str(path), str(out), str(log))) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(begun(log)) == len(set(begun(log))) == 6 == len(records(out))
    assert {r["status"] for r in records(out).values()} == {"finished"}


def test_the_run_of_a_killed_process_is_done_by_the_other(tmp_path: Path, context) -> None:
    rows = {
        "long": {"label": "long", "overrides": ["train.max_steps=600"]},
        "short": {"label": "short"},
    }
    path, out, log = (
        written(tmp_path, rows=rows, grid={"seed": 0}),
        tmp_path / "out",
        tmp_path / "log",
    )
    killed = context.Process(target=sweeping, args=(str(path), str(out), str(log)))
    killed.start()
    until(lambda: len(begun(log)) == 1)
    other = context.Process(target=sweeping, args=(str(path), str(out), str(log)))
    other.start()
    until(lambda: len(begun(log)) == 2)
    killed.kill()
    killed.join()
    other.join(120)
    long, short, again = begun(log)
    assert other.exitcode == 0 and long == again != short
    assert {r["status"] for r in records(out).values()} == {"finished"} and len(records(out)) == 2


def test_interrupted_and_continued(tmp_path: Path, context) -> None:
    rows = {"lora": {"label": "LoRA"}}
    path, out, log = written(tmp_path, steps=200, rows=rows), tmp_path / "out", tmp_path / "log"
    process = context.Process(target=sweeping, args=(str(path), str(out), str(log)))
    process.start()
    until(lambda: len(begun(log)) == 2)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    statuses = [r["status"] for r in records(out).values()]
    assert statuses.count("finished") == 1 and "running" not in statuses
    assert go(path, out) == 0
    assert [r["status"] for r in records(out).values()] == ["finished"] * 2


# --------------------------------------------------------------------------------------------------
# launchers


def test_paths_reach_the_workers_whatever_is_in_them(tmp_path: Path) -> None:
    for text in ("/a b/it's, [here]", "/x=1/${y}", "/back\\slash", "/end\\", "/b\\'q"):
        cfg = config.compose([f"output_root={quoted(text)}"])
        assert str(cfg._get_node("output_root")._value()) == text


def test_joblib_runs_cells_in_its_workers(tmp_path: Path, capsys) -> None:
    out = tmp_path / "my results"
    bad = {
        "lora": {"label": "LoRA"},
        "wild": {
            "label": "diverges",
            "overrides": ["optimizer=sgd", "train.max_grad_norm=null", "lr=1e30"],
        },
    }
    path = written(tmp_path, steps=3, rows=bad, grid={"seed": [0, 1]})
    assert go(path, out, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2") == 1
    error = capsys.readouterr().err
    assert (
        "mine: 2 of 4 runs finished, 2 failed" in error and error.count("  wild/tweets seed=") == 2
    )
    assert sorted(r["status"] for r in records(out).values()) == [
        "failed",
        "failed",
        "finished",
        "finished",
    ]


def test_submitit_runs_cells_as_jobs(tmp_path: Path) -> None:
    path, out = (
        written(tmp_path, rows={"lora": {"label": "LoRA"}}, grid={"seed": 0}),
        tmp_path / "out",
    )
    assert go(path, out, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5") == 0
    assert [r["status"] for r in records(out).values()] == ["finished"]


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed (pip install 'loraexp[ray]')",
)
def test_ray_runs_cells_on_a_local_cluster(tmp_path: Path) -> None:
    import ray

    path, out = written(tmp_path), tmp_path / "out"
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        assert go(path, out, "hydra/launcher=ray", "+hydra.launcher.ray.remote.num_cpus=1") == 0
        assert [r["status"] for r in records(out).values()] == ["finished"] * 4
    finally:
        ray.shutdown()


def test_smoke_is_what_these_runs_are() -> None:
    assert set(SMOKE) <= set(TINY)


# --------------------------------------------------------------------------------------------------
# deaths


class Pool:
    """A launcher of two workers: one of them dies of the cells named, and then the whole pool is
    gone, as joblib's is."""

    def __init__(self, deadly: set[Path], width: int = 2) -> None:
        self.deadly, self.width = deadly, width
        self.launched: list[list[Path]] = []

    def __call__(self, cells: Any) -> list[dict[str, str]] | None:
        from tests.support.measured import put

        self.launched.append([cell.folder for cell in cells])
        for i in range(0, len(cells), self.width):
            together = cells[i : i + self.width]
            for cell in together:
                put(cell, 0.5, 0.5, status="running", ended=None)
            if self.deadly & {cell.folder for cell in together}:
                return None
            for cell in together:
                put(cell, 0.5, 0.5)
        return [{"folder": str(cell.folder), "outcome": "ended"} for cell in cells]


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_death_is_charged_to_the_run_that_was_running(place: int, tmp_path: Path, capsys) -> None:
    """One run kills its worker each time: it alone fails, those that ran beside it or waited behind
    it finish."""
    cells = cells_of(written(tmp_path), tmp_path / "out")
    seen = watch.Watch("mine", cells, {})
    pool = Pool({cells[place].folder})
    launch.rounds(seen, pool)
    states = [seen.state[cell.folder] for cell in cells]
    assert states.count("finished") == 3 and states[place] == "failed"
    assert "died 2 times" in seen.reasons[cells[place].folder]
    assert pool.launched.count([cells[place].folder]) == 1, "the second time alone"


def test_two_deadly_runs_condemn_no_other(tmp_path: Path, capsys) -> None:
    cells = cells_of(written(tmp_path), tmp_path / "out")
    seen = watch.Watch("mine", cells, {})
    launch.rounds(seen, Pool({cells[0].folder, cells[1].folder}))
    assert [seen.state[cell.folder] for cell in cells] == [
        "failed",
        "failed",
        "finished",
        "finished",
    ]


def test_a_launcher_that_starts_nothing_is_given_up(tmp_path: Path, capsys) -> None:
    cells = cells_of(written(tmp_path), tmp_path / "out")
    seen = watch.Watch("mine", cells, {})
    launch.rounds(seen, lambda cells: None)
    assert set(seen.state.values()) == {"failed"}
