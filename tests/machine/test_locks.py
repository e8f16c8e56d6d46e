"""Claims: the kernel's lock, and on a disk without it a file with its holder's host, process and
heartbeat."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loraexp.machine import heartbeat
from loraexp.machine.locks import Lock, held, locked
from loraexp.records.record import Busy
from tests.support.runs import folder_of, run


@pytest.fixture(
    params=[None, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK],
    ids=["flock", "ENOTSUP", "ENOSYS", "ENOLCK"],
)
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """A disk with the kernel's locks, and disks that answer as Lustre and NFS do."""
    if request.param is not None:
        without_flock(monkeypatch, request.param)
    return request.param


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_one_holder_at_a_time(disk: int | None, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    one, two = Lock(path), Lock(path)
    assert not held(path)
    assert one.take() and held(path) and not two.take()
    one.close()
    assert not held(path) and two.take()
    two.close()
    assert not held(path) and not (tmp_path / ".lock.held").exists()


def test_a_waiting_one_gets_it_when_it_is_free(
    disk: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "POLL", 0.02)
    path, order = tmp_path / ".lock", []
    one = Lock(path)
    one.take()

    def wait() -> None:
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    order.append("first")
    one.close()
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_a_dead_process_holds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_flock(monkeypatch, errno.ENOTSUP)
    path, soft = tmp_path / ".lock", tmp_path / ".lock.held"
    path.touch()
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    soft.write_text(f"{socket.gethostname()} {dead.stdout.strip()}\n")
    assert not held(path)
    soft.write_text("another-host 17\n")  # lives as long as it gives a sign
    assert held(path)
    old = time.time() - 2 * heartbeat.FRESH
    os.utime(soft, (old, old))
    heartbeat.seen.clear()  # as another process, which looks at it for a while: clocks may differ
    monkeypatch.setattr(heartbeat, "WATCH", 0.1)
    monkeypatch.setattr(heartbeat, "POLL", 0.02)
    lock = Lock(path)
    assert lock.take() and soft.read_text().split()[:2] == [socket.gethostname(), str(os.getpid())]
    assert list(tmp_path.iterdir()) == [path, soft] or set(tmp_path.iterdir()) == {path, soft}
    lock.close()


def test_a_holder_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_flock(monkeypatch, errno.ENOTSUP)
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    lock, soft = Lock(tmp_path / ".lock"), tmp_path / ".lock.held"
    lock.take()
    os.utime(soft, (0, 0))
    limit = time.time() + 10
    while soft.stat().st_mtime == 0 and time.time() < limit:
        time.sleep(0.02)
    assert soft.stat().st_mtime > 0
    lock.close()


def test_another_error_is_no_other_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_flock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="lock: cannot be locked: Input/output error"):
        Lock(tmp_path / ".lock").take()


def test_a_run_on_a_disk_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_flock(monkeypatch, errno.ENOTSUP)
    short = (
        "task.limit_train=64",
        "task.limit_eval=32",
        "init.samples=16",
        "train.max_steps=1",
        "init=lora",
    )
    folder = folder_of(*short, out=tmp_path)
    folder.mkdir(parents=True)
    other = Lock(folder / ".lock")
    other.take()
    with pytest.raises(Busy, match="another process is running this run"):
        run(*short, out=tmp_path)
    other.close()
    assert run(*short, out=tmp_path).record["status"] == "finished"
    assert not held(folder / ".lock")
