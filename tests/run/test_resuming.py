"""What a run that ended before its end leaves, and what the same command then does with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraexp import cli
from loraexp.machine.files import SEALED
from loraexp.run.checkpoint import Checkpoint
from loraexp.tasks.classification import Classification
from tests.support.forks import torchrun
from tests.support.runs import SMOKE, folder_of, metric_lines, run

LONG = ("train.max_steps=12", "train.checkpoint_every=3", "train.eval_every=6", "train.log_every=2")

SELECT = ("last", "best")
STEP = ("forward", "backward", "optimizer")


def weights(step: int) -> str:
    return f"weights-{step:07d}.safetensors"


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "factors.safetensors").read_bytes()


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def fail_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The task's metrics fail at their `call`th computation, and only then."""
    compute, calls = Classification.compute_metrics, [0]

    def failing(self: Classification, *arguments: Any) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == call:
            raise RuntimeError("the scorer broke")
        return compute(self, *arguments)

    monkeypatch.setattr(Classification, "compute_metrics", failing)


# --------------------------------------------------------------------------------------------------
# evaluation fails


@pytest.mark.parametrize("call", [2, 3], ids=["of the last step", "of the reported splits"])
def test_an_evaluation_that_fails_leaves_an_adapter_and_the_same_command_only_evaluates(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*LONG, out=tmp_path / "whole")
    folder = folder_of(*LONG, out=tmp_path / "cut")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the scorer broke"):
        fail_at(patch, call)
        run(*LONG, out=tmp_path / "cut")
    record = record_of(folder)
    assert (record["status"], record["phase"]) == ("failed", "evaluation")
    assert (folder / "adapter" / "adapter_config.json").exists() and record["adapter"]["step"] in (
        6,
        12,
    )

    def no_step(*_: Any) -> None:
        raise AssertionError("a step was made")

    with monkeypatch.context() as patch:
        patch.setattr("loraexp.run.train.step", no_step)
        again = run(*LONG, out=tmp_path / "cut")
    assert again.record["status"] == "finished" and "phase" not in again.record
    assert (
        again.record["metrics"] == whole.record["metrics"]
        and again.record["best"] == whole.record["best"]
    )
    assert adapter_bytes(again.folder) == adapter_bytes(whole.folder)
    assert metric_lines(again.folder) == metric_lines(whole.folder)
    assert [entry["step"] for entry in again.record["resumed"]] == [12]


def test_an_evaluation_that_fails_on_the_way_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ("train.max_steps=8", "train.eval_every=5", "train.log_every=1")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the scorer broke"):
        fail_at(patch, 1)
        run(*every, out=tmp_path)
    again = run(*every, out=tmp_path)
    assert again.record["resumed"][0]["step"] == 5
    assert [line["step"] for line in metric_lines(again.folder) if "loss" in line] == list(
        range(1, 9)
    )


# --------------------------------------------------------------------------------------------------
# damaged files


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    """A run that failed at its last evaluation: its checkpoint is of the last step."""
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the scorer broke"):
        fail_at(patch, 2)
        run(*LONG, *overrides, out=out)
    return folder_of(*LONG, *overrides, out=out)


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[(len(content) - SEALED) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    """A sound file of another run."""
    other = Checkpoint(path.parent, "of_another")
    other._write(path, {"factors": {}, "extra": {}})


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: list[Callable[[Path], None]] = [flip, cut, empty, foreign, directory]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["state.pt", "factors.pt"])
def test_a_damaged_checkpoint_is_set_aside_and_the_result_is_that_of_a_run_without_it(
    name: str,
    damage: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Any,
) -> None:
    folder = interrupted(tmp_path, monkeypatch, "train.keep_checkpoint=true")
    damage(folder / "checkpoint" / name)
    notes: list[str] = []
    again = run(*LONG, "train.keep_checkpoint=true", out=tmp_path, notes=notes)
    begins = "the first step" if name == "state.pt" else "the initializer"
    assert notes[0].startswith(
        f"{folder}/checkpoint/{name} is damaged; starting again from {begins} ("
    )
    assert (folder / "checkpoint" / f"{name}.damaged").exists()
    assert adapter_bytes(again.folder) == adapter_bytes(whole.folder)
    assert metric_lines(again.folder) == metric_lines(whole.folder)
    assert (
        again.record["resumed"][0]["step"] == 0
        and "is damaged" in again.record["resumed"][0]["notes"][0]
    )


def test_a_run_that_takes_its_last_weights_keeps_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So damage to them cannot send it back; another one says why it begins again."""
    for select in SELECT:
        values = iter((0.9, 0.1))  # of the sixth step, and of the last
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(
                Classification, "compute_metrics", lambda *_, of=values: {"accuracy": next(of)}
            )
            run(*LONG, f"train.select={select}", out=tmp_path)
    last, best = (folder_of(*LONG, f"train.select={select}", out=tmp_path) for select in SELECT)
    assert [path.name for path in (last / "checkpoint").glob("weights-*")] == [weights(12)]
    assert len(list((best / "checkpoint").glob("weights-*"))) == 2
    flip(best / "checkpoint" / weights(6))
    notes: list[str] = []
    again = run(*LONG, "train.select=best", out=tmp_path, notes=notes)
    assert notes[0].startswith(
        f"{best}/checkpoint/{weights(6)} is damaged; starting again from the first step: nothing"
        " else has the weights of its best step, perhaps the result ("
    )
    assert again.record["resumed"][0]["step"] == 0
    assert run(*LONG, "train.select=last", out=tmp_path).record["resumed"][0]["step"] == 12


def test_what_a_run_took_is_summed_over_its_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of the loop and the peak of memory, as the seconds of training were."""
    folder = interrupted(tmp_path, monkeypatch)
    checkpoint = Checkpoint(folder / "checkpoint", folder_of(*LONG, out=tmp_path).name)
    before = checkpoint.load().progress  # type: ignore[union-attr]
    assert before.step == 12 and min(before.parts[part] for part in STEP) > 0 and before.peak > 0
    monkeypatch.setattr("loraexp.run.train.peak_bytes", lambda _: 1)
    cost = run(*LONG, out=tmp_path).record["cost"]
    assert {part: cost["loop_seconds"][part] for part in STEP} == {
        part: before.parts[part] for part in STEP
    }
    assert cost["loop_seconds"]["evaluation"] > before.parts["evaluation"]
    assert cost["train_peak_bytes"] == before.peak
    assert cost["train_seconds"] >= before.seconds


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(*LONG, out=tmp_path_factory.mktemp("whole"))


def test_a_damaged_log_keeps_what_is_sound_and_the_record_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any
) -> None:
    folder = interrupted(tmp_path, monkeypatch)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = b'{"step": 4, "loss": \xff\n'
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    again = run(*LONG, out=tmp_path)
    kept = metric_lines(whole.folder)
    assert metric_lines(again.folder) == [kept[0], *kept[2:]]
    assert adapter_bytes(again.folder) == adapter_bytes(whole.folder)
    [note] = again.record["resumed"][0]["notes"]
    assert (
        "metrics.jsonl is damaged (kept as metrics.jsonl.damaged): 1 lines could not be read"
        in note
    )


def test_a_log_that_lost_a_digit_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(tmp_path, monkeypatch)
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(
        content.replace(b'"tokens": 1', b'"tokens": 2', 1).replace(b'"epoch": 0', b'"epoch": 1', 1)
    )
    again = run(*LONG, out=tmp_path)
    assert "0 lines could not be read" in again.record["resumed"][0]["notes"][0]


BAD = {
    "list": b"[]",
    "empty object": b"{}",
    "not utf-8": b'{"schema": 1, "status": "\xff"}',
    "deep": b"[" * 100_000,
    "NaN": (
        b'{"schema": 1, "status": "finished", "config": {}, "metrics": {"dev": {"accuracy": NaN}}}'
    ),
    "metrics as a list": b'{"schema": 1, "status": "finished", "config": {}, "metrics": [0.5]}',
    "old schema": b'{"schema": 0, "status": "finished", "config": {}}',
    "half a surrogate pair": b'{"schema": 1, "status": "finished", "config": {"a": "\\ud800"}}',
    "a long integer": b'{"schema": 1, "status": "finished", "config": {"a": ' + b"1" * 5000 + b"}}",
    "unknown status": b'{"schema": 1, "status": "done", "config": {}}',
    "half": b'{"schema": 1, "sta',
}


@pytest.mark.parametrize("kind", [*BAD, "folder"])
def test_a_bad_record_is_listed_as_unreadable_and_run_again(kind: str, tmp_path: Path) -> None:
    from loraexp import load_records

    folder = folder_of("train.max_steps=1", out=tmp_path)
    folder.mkdir(parents=True)
    if kind == "folder":
        (folder / "record.json").mkdir()
    else:
        (folder / "record.json").write_bytes(BAD[kind])
    [row] = load_records(tmp_path).to_dict("records")
    assert (
        row["status"] == "unreadable" and str(folder) in row["error"] and "\n" not in row["error"]
    )
    again = run("train.max_steps=1", out=tmp_path)
    assert not again.already and again.record["status"] == "finished"
    assert (folder / "record.json.damaged").exists() and record_of(folder)["status"] == "finished"


def test_a_newer_record_is_refused_by_the_run_and_by_the_table_in_the_same_words(
    tmp_path: Path, capsys: Any
) -> None:
    from loraexp import load_records

    outcome = run("train.max_steps=1", out=tmp_path)
    newer = record_of(outcome.folder) | {"schema": 2}
    (outcome.folder / "record.json").write_text(json.dumps(newer))
    argv = [*SMOKE, "train.max_steps=1", f"output_root={tmp_path}"]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "schema 2, expected 1: a newer loraexp wrote it" in said
    [row] = load_records(tmp_path).to_dict("records")
    assert said.endswith(row["error"])
    assert record_of(outcome.folder) == newer
    assert cli.main([*argv, "force=true"]) == 0 and record_of(outcome.folder)["schema"] == 1


# --------------------------------------------------------------------------------------------------
# several processes


def without_a_scorer(*words: str) -> int:
    """The command, in a process whose task has no metrics."""

    def broken(*_: Any) -> None:
        raise RuntimeError("the scorer broke")

    Classification.compute_metrics = broken  # type: ignore[assignment,method-assign]
    return cli.main(words)


def test_a_checkpoint_of_two_processes_goes_on_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes under torchrun end at an evaluation; one process goes on, from their step, with
    their weights."""
    argv = [*SMOKE, *LONG, f"output_root={tmp_path}"]
    status, said = torchrun(without_a_scorer, *argv, world=2, log=tmp_path / "said.txt")
    folder = folder_of(*LONG, out=tmp_path)
    record = record_of(folder)
    assert status != 0 and (record["status"], record["phase"]) == (
        "failed",
        "evaluation",
    ), said[-2000:]
    both = tmp_path / "both"
    shutil.copytree(tmp_path / folder.parent.name, both)
    again = run(*LONG, out=tmp_path)
    assert again.record["status"] == "finished"
    [entry] = again.record["resumed"]
    assert (entry["step"], entry["processes"]) == (6, 1) and "dropout draws new masks" in entry[
        "notes"
    ][0]
    assert [line["step"] for line in metric_lines(folder) if "loss" in line] == [2, 4, 6, 8, 10, 12]


def test_the_record_says_what_of_the_machine_was_used_and_by_which_algorithms(
    tmp_path: Path,
) -> None:
    import torch

    during: list[bool] = []
    plain = run("train.max_steps=1", out=tmp_path)
    assert {plain.record["environment"][key] for key in ("processes", "deterministic")} == {
        1,
        False,
    }
    assert plain.record["environment"]["devices"] == ["cpu"]

    def noted(*_: Any) -> None:
        during.append(torch.are_deterministic_algorithms_enabled())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraexp.run.train.keep_factors", noted)
        exact = run("train.max_steps=1", "train.deterministic=true", out=tmp_path)
    assert exact.record["environment"]["deterministic"] is True and exact.folder != plain.folder
    assert during == [True] and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "word",
    [
        "train.checkpoint_every=soon",
        "train.checkpoint_every=0min",
        "train.checkpoint_every=-3",
        "model.dtype=float16",
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_made(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SMOKE, word, f"output_root={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"loraexp: {word}: ")
    assert not list(tmp_path.iterdir())


def test_checkpoints_come_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes at every step: with 4s between them, checkpoints of steps 4, 8 and 12, and
    before the evaluation."""
    from loraexp.machine import signals
    from loraexp.run import train

    now, saved = [0.0], []
    step, save = train.step, Checkpoint.save
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])

    def stepping(*arguments: Any) -> Any:
        now[0] += 1.0
        return step(*arguments)

    monkeypatch.setattr(train, "step", stepping)
    monkeypatch.setattr(
        Checkpoint,
        "save",
        lambda self, state: (saved.append(state.progress.step), save(self, state)),
    )
    run("train.max_steps=14", "train.eval_every=100", "train.checkpoint_every=4s", out=tmp_path)
    assert saved == [4, 8, 12, 14]
