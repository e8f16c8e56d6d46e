"""Disk, memory and file descriptors that are not enough: one line that names what, where and the
key; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import cli
from loraexp.machine import measure
from loraexp.machine.files import DiskError, DiskFull, on_disk
from loraexp.run.phases import OutOfMemory
from loraexp.tasks.classification import Classification
from tests.support.own import own_base
from tests.support.runs import SMOKE, folder_of, metric_lines, run

LONG = ("train.max_steps=12", "train.checkpoint_every=3", "train.eval_every=6", "train.log_every=2")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here (not root)")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all of the space but `leave` bytes."""
    path = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    path.write_bytes(b"x" * max(0, free - leave))
    return path


def test_a_disk_that_fills_up_leaves_a_record_and_the_run_goes_on_bitwise(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the second step's line on: nothing but the record, in the space kept
    for it, is written."""
    from loraexp.records.record import Record

    whole = run(*LONG, out=tmp_path / "whole")
    log = Record.log

    def filling(self: Record, step: int, **values: Any) -> None:
        log(self, step, **values)
        if step == 4:
            fill(small_disk, 0)

    with (
        monkeypatch.context() as patch,
        pytest.raises(DiskFull, match=f"no space left on the disk {small_disk}"),
    ):
        patch.setattr(Record, "log", filling)
        run(*LONG, out=small_disk)
    folder = folder_of(*LONG, out=small_disk)
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "failed" and record["error"]["type"] == "DiskFull"
    assert str(folder) in record["error"]["message"] and not list(folder.rglob(".*.[0-9]*"))
    (small_disk / "filler").unlink()
    again = run(*LONG, out=small_disk)
    adapters = [
        (f / "adapter" / "factors.safetensors").read_bytes() for f in (again.folder, whole.folder)
    ]
    assert adapters[0] == adapters[1] and metric_lines(again.folder) == metric_lines(whole.folder)
    assert again.record["resumed"][0]["step"] == 3


def test_a_disk_that_is_full_at_the_start_is_one_line_that_points_to_no_record(
    small_disk: Path, capsys: Any
) -> None:
    filler = fill(small_disk, 64 * 2**10)
    assert cli.main([*SMOKE, *LONG, f"output_root={small_disk}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last.startswith("loraexp: DiskFull: ")
        and f"the disk {small_disk}" in last
        and "(no record could be written)" in last
    )
    filler.unlink()
    assert cli.main([*SMOKE, *LONG, f"output_root={small_disk}"]) == 0


STALE = "its server no longer knows it; when the disk is mounted again, the same command goes on"


def refuses(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """From now on a disk answers as an NFS server does that forgot its files: `kind` of writes, or
    whatever is asked."""

    def stale(real: Any) -> Any:
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            if str(folder) in str(path):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
            return real(path, *rest, **more)

        return call

    calls: dict[str, list[tuple[Any, str]]] = {
        "replacing": [(os, "replace")],
        "opening": [(Path, "open")],
        "all": [(os, "replace"), (os, "stat"), (os, "unlink"), (os, "mkdir"), (Path, "open")],
    }
    for place, name in calls[kind]:
        patch.setattr(place, name, stale(getattr(place, name)))
    if kind == "all":
        for name in ("stat", "unlink", "exists"):
            patch.setattr(Path, name, stale(getattr(Path, name)))


@pytest.mark.parametrize("kind", ["replacing", "opening", "log", "all"])
def test_a_disk_that_goes_away_is_one_line_and_the_run_goes_on_bitwise(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the fifth step's line on: what was saved before is there when it is mounted again."""
    from loraexp.records.record import Record

    whole = run(*LONG, out=tmp_path / "whole")
    out = tmp_path / "out"
    folder, log = folder_of(*LONG, out=out), Record.log
    with monkeypatch.context() as patch:

        class Gone:
            def write(self, text: bytes) -> int:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

            def close(self) -> None:
                self.write(b"")

        def leaving(self: Record, step: int, **values: Any) -> None:
            if step == 6 and kind == "log":
                self.metrics.close()  # type: ignore[union-attr]
                self.metrics = Gone()  # type: ignore[assignment]
            log(self, step, **values)
            if step == 4 and kind != "log":
                refuses(kind, folder, patch)

        patch.setattr(Record, "log", leaving)
        assert cli.main([*SMOKE, *LONG, f"output_root={out}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("loraexp: DiskError: ") and f"Stale file handle; {STALE}" in last, last
    assert last.count("cannot be") == 1 and f"{folder}/" in last
    again = run(*LONG, out=out)
    assert again.record["resumed"][0]["step"] in (3, 6)
    assert metric_lines(again.folder) == metric_lines(whole.folder)
    adapters = [f / "adapter" / "factors.safetensors" for f in (again.folder, whole.folder)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only file system"), "the disk takes no writes; set output_r"),
        (OSError(errno.EIO, "Input/output error"), "the disk does not answer; when it does, the"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "the disk does not ans"),
        (OSError(errno.EKEYEXPIRED, "Key has expired"), r"its server wants a new ticket \(kinit\)"),
        (RuntimeError("I/O error: Stale file handle (os error 116)"), STALE),  # safetensors
    ],
)
def test_what_a_disk_says_comes_with_what_to_do(error: Exception, said: str) -> None:
    place = Path("/runs/weights")
    line = f"/runs/weights: cannot be written: .*; {said}"
    with pytest.raises(DiskError, match=line) as told, on_disk(Path("/runs")), on_disk(place):
        raise error
    assert told.value.__cause__ is error and "\n" not in str(told.value)


def test_what_is_no_matter_of_the_disk_is_left_as_it_is() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "rows.csv"), ValueError("a row")):
        with pytest.raises(type(error)) as told, on_disk(Path("/runs")):
            raise error
        assert told.value is error


# --------------------------------------------------------------------------------------------------
# memory

SAID = {
    "RuntimeError: could not create a primitive": (
        RuntimeError("could not create a primitive"),
        "",
    ),
    "oneDNN malloc": (RuntimeError("malloc of size 64"), " (0.0 MiB were asked for)"),
    "allocator": (
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
            " 104857600 bytes."
        ),
        " (100.0 MiB were asked for)",
    ),
    "CUDA": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
        " (2.50 GiB were asked for)",
    ),
    "Python": (MemoryError(), ""),
}
PHASES = {
    "training": (
        "loss_sum",
        "while training",
        r"raise train\.micro_batches \(now 1; the step's gradient stays the same\)",
    ),
    "evaluation": (
        "compute_metrics",
        "while evaluating",
        r"lower train\.eval_batch_size \(now \d+\)",
    ),
    "initialisation": (
        "loss_sum",
        "while initialising",
        r"raise train\.micro_batches \(now 1; its passes have as many rows as training's\)",
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_running_out_of_memory_says_the_phase_how_much_and_the_key(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, asked = SAID[said]
    for name, (method, where, remedy) in PHASES.items():
        steps = "train.max_steps=0" if name == "initialisation" else "train.max_steps=2"
        initializer = "init=lora_one" if name == "initialisation" else "init=lora"
        with monkeypatch.context() as patch:
            run_method = getattr(Classification, method)
            probes = [0]

            def refuse(
                self: Any,
                *arguments: Any,
                run_method: Any = run_method,
                name: str = name,
                probes: list[int] = probes,
            ) -> Any:
                probes[0] += 1
                if name == "training" and not torch.is_grad_enabled():
                    # the probes of the initializer are not what runs out
                    return run_method(self, *arguments)
                raise error

            patch.setattr(Classification, method, refuse)
            with pytest.raises(OutOfMemory) as caught:
                run(steps, initializer, "init.cache=false", out=tmp_path / name)
        line = str(caught.value)
        assert re.match(f"out of memory {where}{re.escape(asked)}: {remedy}", line), line
        if name != "evaluation":
            assert line.endswith("or set model.gradient_checkpointing=true")


def test_what_is_no_lack_of_memory_is_left_as_it_is() -> None:
    assert not measure.ran_out(ValueError("lr")) and not measure.ran_out(
        RuntimeError("shape mismatch")
    )
    assert not measure.ran_out(KeyError("out of memory"))


def test_too_many_open_files_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Classification, "compute_metrics", refuse)
    with pytest.raises(
        OSError,
        match=(
            r"too many open files while evaluating \(the limit is \d+\): raise it, for example"
            r" ulimit -n 4096"
        ),
    ):
        run("train.max_steps=1", out=tmp_path)


# --------------------------------------------------------------------------------------------------
# weights


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_found_at_loading(
    value: str, tmp_path: Path, capsys: Any
) -> None:
    from safetensors.torch import load_file, save_file

    base = own_base(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["bert.encoder.layer.0.output.dense.weight"][3, 5] = float(value)
    save_file(weights, path, metadata={"format": "pt"})
    words = [*SMOKE, *base, f"output_root={tmp_path / 'out'}"]
    assert cli.main(words) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        "1 of 1024 values of bert.encoder.layer.0.output.dense.weight" in last
        and "are NaN or infinite" in last
    )
