"""W&B's copy of a record, and tables made from it: from offline folders and from an object shaped
like its public API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraexp import config
from loraexp.artifacts import formats, table
from loraexp.config import ConfigError
from loraexp.records import blocks, tracking
from loraexp.results.gather import Results, gather
from loraexp.run.experiment import run
from loraexp.sweep import reading
from loraexp.sweep.cells import expand
from loraexp.sweep.schema import Sweep

CONTENT = """
title: One learning rate of each
paper: a_paper
artifact: table1
kind: table
base: [model=tiny-bert, task=tweets, task.limit_train=32, task.limit_eval=32, task.max_length=16,
  train.max_steps=4, train.eval_every=2, train.log_every=1, init.samples=8, rank=2, device=cpu]
grid: {lr: [1.0e-3], seed: [0, 1]}
rows:
  plain: {label: LoRA, overrides: [init=lora]}
  broken: {label: Diverges, overrides: [init=lora, train.max_grad_norm=null],
    grid: {lr: [1.0e+30], seed: [0]}}
columns:
  last: {label: Accuracy, value: dev/accuracy}
  first: {label: Loss, value: loss, epoch: 0.5, unit: nats, goal: min}
  size: {label: Trained, value: parameters/trainable, unit: count, digits: 0, goal: none}
settings: {rank: 8}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs and one that failed, with W&B's offline folders."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "mine.yaml").write_text(CONTENT)
    done = set()
    for cell in expand(load(folder)):
        if cell.run_id not in done:
            done.add(cell.run_id)
            settings, plain = config.check(config.compose(cell.overrides))
            try:
                run(settings, plain)
            except FloatingPointError:
                assert cell.row == "broken"
    assert len(done) == 3
    return folder


def load(folder: Path) -> Sweep:
    return reading.load(
        str(folder / "mine.yaml"), None, [f"output_root={folder / 'outputs'}", "wandb.mode=offline"]
    )


def without_source(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "source" not in line)


def test_the_table_is_the_same_from_disk_and_from_offline_folders(folder: Path) -> None:
    """All formats but for the line that names the source; a run that failed is failed in both."""
    wanted = load(folder)
    disk, copy = gather(wanted), gather(wanted, f"wandb:{folder}")
    for name, written in formats.FORMATS.items():
        first, second = written(table.build(disk)), written(table.build(copy))
        assert without_source(first) == without_source(second), name
        assert name == "csv" or first != second
    assert (
        copy.places["plain", "last"].finished == 2
        and copy.places["plain", "first"].mean is not None
    )
    assert "failed: FloatingPointError: step 2: " in (copy.places["broken", "last"].reason or "")
    for mine, theirs in zip(runs(disk), runs(copy), strict=True):
        for name in ("loss", "grad_norm", "held_out/accuracy"):
            assert mine.history(name) == theirs.history(name)


def runs(found: Results) -> list[Any]:
    return [run for place in found.places.values() for run in place.runs]


class Summary:
    """As W&B's: it has items(), and gives such objects for nested dicts."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def items(self) -> Any:
        return [
            (key, Summary(value) if isinstance(value, dict) else value)
            for key, value in self.content.items()
        ]


class ServerRun:
    """As wandb.apis.public.Run: numbers come back from the server without the point where they are
    whole."""

    def __init__(self, folder: Path) -> None:
        record = json.loads((folder / "record.json").read_text())
        self.id, self.state = (
            record["run_id"],
            "finished" if record["status"] == "finished" else "failed",
        )
        self.config = whole(record["config"])
        self.summary = Summary(whole(tracking.summary(record)))
        self.rows = [
            json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]

    def scan_history(self) -> list[dict[str, Any]]:
        return [
            row | {"_step": row["step"], "_timestamp": 1.0, "absent": None} for row in self.rows
        ]


def whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: whole(v) for key, v in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Api:
    folders: list[Path] = []
    more: list[Any] = []

    def runs(self, path: str, lazy: bool = True) -> list[Any]:
        assert path == "entity/project" and lazy is False  # at once, not one request for each run
        return [*map(ServerRun, self.folders), *self.more]


def test_the_table_is_the_same_from_a_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an object shaped like wandb.Api, beside a foreign run, a crashed one of ours, and one
    that goes on."""

    class Foreign:
        id, state, config, summary = "xyz", "finished", {"lr": 0.1}, Summary({"loss": 1.0})

    monkeypatch.setattr("wandb.Api", Api)
    monkeypatch.setattr(Api, "folders", sorted(path.parent for path in folder.rglob("record.json")))
    monkeypatch.setattr(Api, "more", [Foreign()])
    wanted = load(folder)
    disk, copy = gather(wanted), gather(wanted, "wandb:entity/project")
    first, second = (formats.markdown(table.build(found)) for found in (disk, copy))
    assert (
        without_source(first) == without_source(second) and "source: wandb:entity/project" in second
    )
    assert [run.history("loss") for run in runs(disk)] == [
        run.history("loss") for run in runs(copy)
    ]
    for state, status in (("crashed", "failed"), ("running", "running")):
        cut = ServerRun(Api.folders[0])
        cut.state, cut.summary = state, Summary({"loss": 1.0})
        monkeypatch.setattr(Api, "folders", [])
        monkeypatch.setattr(Api, "more", [cut])
        found = next(
            run for run in runs(gather(wanted, "wandb:entity/project")) if run.cell.run_id == cut.id
        )
        assert found.status == status
        monkeypatch.setattr(
            Api, "folders", sorted(path.parent for path in folder.rglob("record.json"))
        )


def test_what_wandb_does_not_give_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, path: str, lazy: bool = True) -> None:
        raise ValueError(f"Could not find project\n{path}")

    monkeypatch.setattr("wandb.Api", Api)
    monkeypatch.setattr(Api, "runs", refuse)
    with pytest.raises(
        ConfigError,
        match=r"W&B does not give it \(ValueError: Could not find project entity/project\)$",
    ):
        list(tracking.read("entity/project"))


def test_a_run_goes_on_without_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where W&B stops, the record is finished all the same, and it and standard error say so."""
    from loraexp.config.settings import WandbSettings
    from loraexp.records.record import Record

    def refuse(**_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("wandb.init", refuse)
    groups = {group: {"name": "x"} for group in ("task", "model", "init", "optimizer")}
    with Record(
        tmp_path,
        "0123456789",
        groups,
        WandbSettings(mode="offline", project="p", entity=None, group=None),
    ) as record:
        record.start_metrics()
        record.log(1, loss=1.0)
        record.finish()
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["status"] == "finished" and written["wandb_error"] == "OSError: no space left"
    assert (
        "W&B stopped (OSError: no space left); the record on disk goes on"
        in capsys.readouterr().err
    )
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_records_over_several_blocks_and_a_torn_end() -> None:
    """W&B's log format by hand: one record over three blocks, a block's unused last bytes, a torn
    and a damaged end."""
    import struct
    import zlib

    def piece(content: bytes, kind: int) -> bytes:
        return (
            struct.pack("<IHB", zlib.crc32(bytes([kind]) + content), len(content), kind) + content
        )

    first = 32768 - 7 - 7
    long = bytes(range(256)) * 300
    middle, last = long[first : first + 32768 - 7], long[first + 32768 - 7 :]
    filled = b"y" * (32768 - (len(last) + 7) - 7 - 5)  # leaves 5 bytes: no room for a header
    content = (
        b":W&B"
        + b"\xe1\xbe\x00"
        + piece(long[:first], 2)
        + piece(middle, 3)
        + piece(last, 4)
        + piece(filled, 1)
        + b"\0" * 5
    )
    assert len(content) % 32768 == 0
    assert list(blocks.chunks(content + piece(b"end", 1))) == [long, filled, b"end"]
    assert list(blocks.chunks((content + piece(b"end", 1))[:-1])) == [long, filled]
    assert list(blocks.chunks(content + piece(b"end", 1)[:-1] + b"X")) == [long, filled]


def test_an_interrupted_run_goes_on_where_its_checkpoint_was() -> None:
    """The second file begins at the step after the checkpoint: what the first logged from there on
    counts once."""
    first = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)]
    second = [{"step": step, "loss": -float(step)} for step in (3, 4, 5)]
    assert [line["loss"] for line in tracking.joined([first, second, []])] == [1, 2, -3, -4, -5]


KILLER = """
import sys
import psutil
from loraexp import cli
from loraexp.run import train

step = train.step

def killing(run, parts, number, *rest):
    if number == 3:
        for process in psutil.Process().children(recursive=True):
            if "wandb" in process.name():
                process.kill()
    return step(run, parts, number, *rest)

train.step = killing
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_run_whose_wandb_is_killed_before_the_first_evaluation_finishes(tmp_path: Path) -> None:
    """Its processes are killed at step 3: two runs finish, the second with a W&B of its own, and
    nothing fails at the end."""
    import subprocess
    import sys

    (tmp_path / "killer.py").write_text(KILLER)
    words = [
        "-m",
        "experiment=smoke",
        "device=cpu",
        "wandb.mode=offline",
        "train.max_steps=6",
        "seed=0,1",
    ]
    command = [
        sys.executable,
        str(tmp_path / "killer.py"),
        *words,
        f"output_root={tmp_path / 'out'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("record.json")]
    assert [record["status"] for record in records] == ["finished"] * 2
    assert all(record["wandb_error"] and record["metrics"]["dev"] for record in records)
    assert (
        done.stderr.count("W&B stopped") == 2
        and len(list((tmp_path / "out").rglob("run-*.wandb"))) == 2
    )


def test_what_was_logged_after_the_checkpoint_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """W&B drops a step that it has passed: of a run that it goes on with every line counts by its
    own `step`."""
    from loraexp.config.settings import WandbSettings

    class Run:
        def __init__(self, has: int) -> None:
            self.starting_step, self.at, self.rows = has, has, []

        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "step")

        def log(self, line: dict[str, Any], step: int | None) -> None:
            if step is not None and step < self.at:
                return  # as W&B does, with a warning
            self.at = self.at + 1 if step is None else step
            self.rows.append(line)

    groups = {group: {"name": "x"} for group in ("task", "model", "init", "optimizer")}
    settings = WandbSettings(mode="online", project="p", entity=None, group=None)
    sent: list[dict[str, Any]] = []
    for has, steps in ((0, (2, 4, 6, 8)), (9, (4, 6, 8, 10))):
        run = Run(has)
        monkeypatch.setattr("wandb.init", lambda run=run, **_: run)
        copy = tracking.Copy(settings, tmp_path, "0123456789", groups)
        copy.start()
        for step in steps:
            copy.log({"step": step, "loss": float(step + has)})
        sent += run.rows
    assert [(line["step"], line["loss"]) for line in tracking.merged(sent)] == [
        (2, 2.0),
        (4, 13.0),
        (6, 15.0),
        (8, 17.0),
        (10, 19.0),
    ]


def test_a_loss_and_an_evaluation_of_one_step_are_one_line_wherever_a_run_was_cut() -> None:
    first = [
        {"step": 2, "loss": 1.0},
        {"step": 4, "loss": 0.5},
        {"step": 4, "dev/accuracy": 0.1},
        {"step": 6, "loss": 0.4},
    ]
    second = [{"step": 4, "dev/accuracy": 0.2}, {"step": 6, "loss": 0.3}]
    expected = [
        {"step": 2, "loss": 1.0},
        {"step": 4, "loss": 0.5, "dev/accuracy": 0.2},
        {"step": 6, "loss": 0.3},
    ]
    assert tracking.joined([first, second]) == expected
