"""A sweep on a real Ray cluster of this machine: what its workers keep, and one that is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from loraexp.config import ConfigError
from loraexp.sweep import actors
from tests.support.slurm import free_ports, until
from tests.support.small_sweep import written

STEPS = 400
# with a token of this machine, which Ray makes on its first day, a cluster would ask for it
OPEN = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parents[2])}
TWO = {"CPU": 4.0, "GPU": 2.0}


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed (pip install 'loraexp[ray]')",
)


@contextmanager
def cluster(cores: int, own: str | None = None) -> Iterator[str]:
    """Within: a Ray cluster that nobody's command has started, at this address; `own`: where it
    writes what it leaves."""
    [port] = free_ports(1)
    ray = Path(sys.executable).with_name("ray")
    words = ["start", "--head", "--block", f"--port={port}", f"--num-cpus={cores}"]
    words += ["--include-dashboard=false", "--object-store-memory=80000000"]
    # Ray writes the address of a cluster where the next command of this machine would look for one
    with ExitStack() as around:
        own = own or around.enter_context(tempfile.TemporaryDirectory(prefix="ray"))
        head = subprocess.Popen(
            [str(ray), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | OPEN | {"RAY_TMPDIR": own},
        )
        try:
            assert head.stdout is not None
            said = ""
            while "Ray runtime started" not in (line := head.stdout.readline()):
                said += line
                assert line, f"ray start ended with {head.wait()}: {said}"
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.communicate(timeout=60)


@needs_ray
def test_a_sweep_on_a_cluster_that_is_there_is_told_to_stop_and_goes_on(tmp_path: Path) -> None:
    """Two runs that train together in one worker, which is no child of the command: both leave a
    checkpoint, and the cluster stays for the next command."""
    rows, grid = {"lora": {"label": "LoRA"}}, {"lr": [1e-3, 1e-4], "seed": [0, 1]}
    path, out = written(tmp_path, STEPS, rows=rows, grid=grid), tmp_path / "out"
    with cluster(cores=2) as address:
        words = ["sweep", str(path), f"output_root={out}", "train.log_every=5", "sweep.pack=2"]
        words += ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"]
        words += ["+hydra.launcher.ray.remote.num_cpus=2"]
        first = sweeping(words, **OPEN)
        until(lambda: list(out.rglob("metrics.jsonl")), "a run", seconds=200)
        first.terminate()
        _, said = first.communicate(timeout=100)
        assert first.returncode == 143, said[-3000:]
        assert "4 runs left; the same command goes on there" in said
        stopped = {p.parent: json.loads(p.read_text()) for p in out.rglob("record.json")}
        assert [(r["status"], r["packed"]) for r in stopped.values()] == [("interrupted", 2)] * 2
        second = sweeping(words, **OPEN)
        _, said = second.communicate(timeout=300)
        assert second.returncode == 0, said[-3000:]
    found = {p.parent: json.loads(p.read_text()) for p in out.rglob("record.json")}
    assert [(r["status"], r["packed"]) for r in found.values()] == [("finished", 2)] * 4
    went_on = {folder: record["resumed"] for folder, record in found.items() if "resumed" in record}
    assert went_on.keys() == stopped.keys()
    assert all(0 < entry["step"] < STEPS for [entry] in went_on.values())


@needs_ray
def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**asked: Any) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {asked['address']}")

    monkeypatch.setattr("ray.init", refused)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    line = "cluster at here:1: expected the address of a .* RAY_AUTH_MODE=token gives it that of"
    with pytest.raises(ConfigError, match=line):
        actors.started(OmegaConf.create({"address": "here:1"}))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("there", [True, False])
@needs_ray
def test_a_cluster_that_nobody_named_is_used_while_it_answers(
    there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray refuses to be told of memory where it only connects."""
    asked: list[dict[str, Any]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda **how: asked.append(how))
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{own.getsockname()[1]}"
        monkeypatch.setattr(actors, "left_behind", lambda _: address)
        if there:
            own.listen()
        actors.started(OmegaConf.create({"num_cpus": 2}))
    local = {"num_cpus": 2, "address": "local", "object_store_memory": actors.STORE}
    assert asked == [{"num_cpus": 2} if there else local]
    assert (f"the cluster at {address} is gone" in capsys.readouterr().err) is not there


@needs_ray
def test_one_that_listens_and_is_no_cluster_is_gone_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program has its port by now."""
    asked: list[dict[str, Any]] = []

    def init(**how: Any) -> None:
        asked.append(how)
        if "address" not in how:
            raise ConnectionError("Ray is trying to start at here:1, but is already running")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(actors, "left_behind", lambda _: "here:1")
    monkeypatch.setattr(actors, "answers", lambda _: True)
    actors.started(OmegaConf.create({}))
    assert asked == [{}, {"address": "local", "object_store_memory": actors.STORE}]
    assert "the cluster at here:1 is gone" in capsys.readouterr().err


@needs_ray
def test_the_address_of_a_cluster_that_was_killed_keeps_nobody_from_a_sweep(tmp_path: Path) -> None:
    path, out = (
        written(tmp_path, rows={"lora": {"label": "LoRA"}}, grid={"seed": 0}),
        tmp_path / "out",
    )
    with tempfile.TemporaryDirectory(prefix="ray") as own, killed(own) as address:
        left = actors.left_behind(f"{own}/ray")  # by another name of this machine
        assert left is not None and left.rpartition(":")[2] == address.rpartition(":")[2]
        words = ["sweep", str(path), f"output_root={out}", "hydra/launcher=ray"]
        words += ["+hydra.launcher.ray.init.num_cpus=1"]
        words += ["+hydra.launcher.ray.init.include_dashboard=false"]
        command = sweeping(words, **OPEN, RAY_TMPDIR=own)
        _, said = command.communicate(timeout=250)
    assert command.returncode == 0, said[-3000:]
    assert f"Ray: the cluster at {left} is gone, and only the note of its address" in said
    assert [json.loads(p.read_text())["status"] for p in out.rglob("record.json")] == ["finished"]


@contextmanager
def killed(own: str) -> Iterator[str]:
    """Within: what a cluster leaves that was begun in a folder, and killed with all its parts."""
    with cluster(cores=1, own=own) as address:
        [head] = [c for c in psutil.Process().children() if "--head" in c.cmdline()]
        parts = [*head.children(recursive=True), head]
        for part in parts:
            with suppress(psutil.Error):
                part.kill()
        psutil.wait_procs(parts, timeout=30)
        yield address


def sweeping(words: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loraexp", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@needs_ray
def test_actors_have_a_card_keep_the_model_and_the_run_of_one_that_is_killed_goes_on(
    tmp_path: Path,
) -> None:
    """Four cells on two cards that Ray is told of: every worker has a card to itself and loads the
    base once for all of its cells."""
    path = written(tmp_path, STEPS, rows={"lora": {"label": "LoRA"}}, grid={"seed": [0, 1, 2, 3]})
    out, loads = tmp_path / "out", tmp_path / "loads"
    init = "+hydra.launcher.ray.init"
    words = ["sweep", str(path), f"output_root={out}", "train.log_every=5"]
    words += ["train.checkpoint_every=20", "hydra/launcher=ray", f"{init}.num_cpus=2"]
    words += [f"{init}.include_dashboard=false", f"{init}.num_gpus=2", f"{init}.address=local"]
    words += [f"{init}.runtime_env.worker_process_setup_hook=tests.support.ray_loads.note"]
    here = {"LOADS": str(loads)} | OPEN
    command = sweeping(words, **here)
    until(lambda: list(out.rglob("metrics.jsonl")), "a run", seconds=150)
    first = next(iter(out.rglob("metrics.jsonl"))).parent
    until(lambda: (first / "checkpoint" / "state.pt").exists(), "a checkpoint")
    worker_of(first, command.pid).kill()
    _, said = command.communicate(timeout=300)
    assert command.returncode == 0, said[-3000:]
    found = {p.parent: json.loads(p.read_text()) for p in out.rglob("record.json")}
    assert [record["status"] for record in found.values()] == ["finished"] * 4
    assert [folder for folder, record in found.items() if record.get("resumed")] == [first]
    assert 0 < found[first]["resumed"][0]["step"] < STEPS
    lines = [line.split() for line in loads.read_text().splitlines()]
    workers = [worker for worker, _ in lines]
    assert len(workers) == len(set(workers)) <= 3  # two, and one for the one that was killed
    assert {card for _, card in lines} == {"0", "1"}
    assert {record["environment"]["visible"] for record in found.values()} == {"0", "1"}


@pytest.mark.parametrize(
    ("remote", "each", "nodes", "needs", "places"),
    [
        ({}, 1, [TWO, TWO], {"num_cpus": 1, "num_gpus": 1}, 4),
        ({}, 2, [TWO, TWO], {"num_cpus": 1, "num_gpus": 2}, 2),
        ({}, 1, [{"CPU": 3.0}], {"num_cpus": 1}, 3),
        ({"num_gpus": 0.5}, 1, [TWO], {"num_cpus": 1, "num_gpus": 0.5}, 4),
        ({"num_cpus": 4}, 1, [TWO], {"num_cpus": 4, "num_gpus": 1}, 1),
        ({"resources": {"fast": 1}}, 1, [TWO, TWO | {"fast": 1.0}], None, 1),
        ({}, 1, [{"CPU": 0.0}], {"num_cpus": 1}, 1),  # one waits until there is a place
    ],
)
def test_there_are_as_many_actors_as_the_cluster_has_places(
    remote: dict[str, Any],
    each: int,
    nodes: list[dict[str, float]],
    needs: dict[str, Any] | None,
    places: int,
) -> None:
    found = actors.needed(OmegaConf.create(remote), each, nodes)
    assert needs is None or found == needs
    assert actors.places(found, nodes) == places


def test_more_cards_than_any_node_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 cards a run: no node of the Ray cluster has more tha"):
        actors.needed(OmegaConf.create({}), 4, [TWO, TWO])


def worker_of(folder: Path, command: int) -> psutil.Process:
    """The process that has the log of a run open, below a command."""
    for process in psutil.Process(command).children(recursive=True):
        with suppress(psutil.Error):
            if any(Path(file.path).parent == folder for file in process.open_files()):
                return process
    raise LookupError(f"nobody runs {folder}")
