"""Claims where something is wrong: no right to write, a full disk, a file server that forgot, a
folder that is gone, clocks that disagree, numbers of processes that were given again."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraexp.machine import heartbeat
from loraexp.machine.files import DiskFull, check_writable
from loraexp.machine.locks import Lock, held
from loraexp.records.claim import Lost
from loraexp.run import train
from tests.support.runs import folder_of, run

NOBODY = 65534
HOUR = 3600.0


def fails(number: int) -> Any:
    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return failing


@pytest.fixture
def soft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a claim on a disk without locks, looked at by a process that has seen none."""
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOTSUP))
    monkeypatch.setattr(heartbeat, "POLL", 0.02)
    monkeypatch.setattr(heartbeat, "WATCH", 0.3)
    monkeypatch.setattr(heartbeat, "seen", {})
    (tmp_path / ".lock").touch()
    yield tmp_path / ".lock.held"


# --------------------------------------------------------------------------------------------------
# no right to write


def as_nobody(what: Any, path: Path, said: Any) -> None:
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        what(path)
    except OSError as error:
        said.put((type(error).__name__, str(error.args[-1])))
    else:
        said.put(("", ""))


def told(what: Any, path: Path) -> tuple[str, str]:
    """What befalls a user who is not root."""
    fork = multiprocessing.get_context("fork")
    said = fork.SimpleQueue()
    process = fork.Process(target=as_nobody, args=(what, path, said))
    process.start()
    process.join(30)
    answer: tuple[str, str] = said.get()
    return answer


def take(path: Path) -> None:
    assert Lock(path).take()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody can look into."""
    for place in (tmp_path, *tmp_path.parents):
        if place.owner() == tmp_path.owner() and str(place) != "/":
            place.chmod(place.stat().st_mode | 0o055)
    return tmp_path


def test_a_folder_that_takes_no_writes_is_one_line(shared: Path) -> None:
    folder = shared / "mine"
    folder.mkdir()
    folder.chmod(0o555)
    kind, line = told(take, folder / ".lock")
    assert kind == "PermissionError" and "\n" not in line
    assert f"{folder}/.lock: cannot be locked: Permission denied; it belongs to " in line
    assert "set output_root to a folder of your own" in line
    kind, line = told(check_writable, folder / "tweets" / "run")
    assert kind == "PermissionError" and "/tweets/run: cannot be written: Permission denied" in line


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a file to somebody else")
def test_a_lock_of_somebody_else_is_nobody_who_runs_it(shared: Path) -> None:
    path = shared / ".lock"
    path.touch(mode=0o644)
    shared.chmod(0o777)
    os.chown(path, 12345, 12345)
    kind, line = told(take, path)
    assert kind == "PermissionError" and "it belongs to user 12345; set output_root" in line

    def look(path: Path) -> None:
        assert not held(path)

    assert told(look, path) == ("", "")


def test_a_disk_that_is_read_only_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", fails(errno.EROFS))
    with pytest.raises(OSError, match="Read-only file system; the disk takes no writes; set outp"):
        Lock(tmp_path / ".lock").take()
    assert not held(tmp_path / ".lock")


def test_a_run_says_where_nothing_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from loraexp import cli
    from tests.support.runs import SMOKE

    (tmp_path / "out").write_text("a file")
    assert cli.main([*SMOKE, f"output_root={tmp_path}/out"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"loraexp: {tmp_path}/out/")
    assert "Not a directory; a file stands where a folder is to be; set output_root to" in last


# --------------------------------------------------------------------------------------------------
# disks that fail


def test_a_full_disk_is_said_and_leaves_no_claim_of_nobody(
    soft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdopen

    class Full:
        def __init__(self, descriptor: int) -> None:
            self.file = real(descriptor, "w")

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        write = fails(errno.ENOSPC)

    monkeypatch.setattr(os, "fdopen", lambda descriptor, *_: Full(descriptor))
    with pytest.raises(DiskFull, match="no space left on the disk"):
        Lock(soft.with_name(".lock")).take()
    assert not soft.exists()
    monkeypatch.setattr(os, "fdopen", real)
    assert Lock(soft.with_name(".lock")).take()
    monkeypatch.setattr(Path, "open", fails(errno.ENOSPC))
    with pytest.raises(DiskFull):
        Lock(soft.with_name(".other")).take()


def test_a_server_that_forgot_is_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = Path.open, [errno.ESTALE]

    def forgetful(self: Path, *how: Any, **more: Any) -> Any:
        if answers:
            fails(answers.pop())()
        return real(self, *how, **more)

    monkeypatch.setattr(Path, "open", forgetful)
    lock = Lock(tmp_path / ".lock")
    assert lock.take()
    answers += [errno.ESTALE] * 2
    with pytest.raises(OSError, match=r"\.lock: cannot be locked: Stale file handle; its server"):
        Lock(tmp_path / ".lock").take()
    monkeypatch.setattr(Path, "stat", fails(errno.ESTALE))
    assert lock.kept()  # nothing says that it is not
    lock.close()
    monkeypatch.undo()
    monkeypatch.setattr(fcntl, "flock", fails(errno.ESTALE))
    with pytest.raises(OSError, match="Stale file handle; its server"):
        Lock(tmp_path / ".lock").take()
    assert not held(tmp_path / ".lock")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO])
def test_a_lock_that_is_refused_is_no_other_process(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(number))
    with pytest.raises(OSError, match=f"cannot be locked: {os.strerror(number)}"):
        Lock(tmp_path / ".lock").take()
    assert not held(tmp_path / ".lock")


# --------------------------------------------------------------------------------------------------
# gone, or taken over


def test_a_file_that_was_removed_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, removed = tmp_path / ".lock", fcntl.flock, iter([True])

    def flock(*how: Any) -> None:
        if next(removed, False):
            path.unlink()
        real(*how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(path)
    assert lock.take() and held(path)
    lock.close(remove=True)
    assert not path.exists()


@pytest.mark.parametrize("anew", [False, True])
def test_a_run_whose_folder_is_removed_says_so(
    anew: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train.max_steps=4", "train.eval_every=2", "init=lora")
    folder, real = folder_of(*words, out=tmp_path), train.step

    def step(run: Any, made: Any, number: int, *rest: Any) -> Any:
        if number == 1:
            shutil.rmtree(folder)
            if anew:
                folder.mkdir()
        return real(run, made, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(Lost, match="removed while its run went on"):
        patch.setattr(train, "step", step)
        run(*words, out=tmp_path)
    assert not (folder / "record.json").exists()
    assert run(*words, out=tmp_path).record["status"] == "finished"


def test_a_lock_whose_file_is_removed_is_taken_anew_unless_another_has_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock, other = Lock(path), Lock(path)
    assert lock.take()
    path.unlink()
    assert lock.kept() and held(path)
    path.unlink()
    assert other.take() and not lock.kept()
    assert not lock.kept() and held(path)
    other.close()


def test_a_claim_that_was_taken_over_is_known_and_left_alone(
    soft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    lock = Lock(soft.with_name(".lock"))
    assert lock.take() and lock.kept()
    soft.write_text("another-host 17 - - token\n")
    os.utime(soft, (0, 0))
    assert not lock.kept()
    time.sleep(0.2)
    assert soft.stat().st_mtime == 0  # no sign of life of the other one comes from here
    lock.close()
    assert soft.read_text().startswith("another-host")


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    path, ended = tmp_path / ".lock", threading.Event()
    path.touch()

    def look() -> None:
        while not ended.is_set():
            held(path)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            lock = Lock(path)
            assert lock.take()
            lock.close()
    finally:
        ended.set()
        for thread in threads:
            thread.join()


# --------------------------------------------------------------------------------------------------
# clocks and numbers


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_holder_whose_clock_is_off_lives_as_long_as_it_gives_signs(
    hours: int, soft: Path
) -> None:
    soft.write_text("another-host 17 - - token\n")
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            when = time.time() + hours * HOUR
            os.utime(soft, (when, when))
            ended.wait(0.05)

    thread = threading.Thread(target=beat)
    thread.start()
    time.sleep(0.1)
    try:
        assert not Lock(soft.with_name(".lock")).take() and held(soft.with_name(".lock"))
    finally:
        ended.set()
        thread.join()
    began = time.monotonic()
    lock = Lock(soft.with_name(".lock"))
    assert lock.take() and time.monotonic() - began < 5
    lock.close()


def test_a_number_that_another_process_has_by_now_is_no_holder(soft: Path) -> None:
    host, pid, space = socket.gethostname(), os.getpid(), heartbeat.space()
    began = heartbeat.begun(pid)
    assert began and space
    soft.write_text(f"{host} {pid} {space} {began} token\n")
    assert held(soft.with_name(".lock"))
    soft.write_text(f"{host} {pid} {space} {int(began) - 1} token\n")
    assert not held(soft.with_name(".lock"))
    lock = Lock(soft.with_name(".lock"))
    assert lock.take()
    lock.close()


def test_numbers_of_another_container_say_nothing(soft: Path) -> None:
    """Of the same name, on another machine or beside this one: its process is none of ours."""
    soft.write_text(f"{socket.gethostname()} 999999999 boot/pid:[1] 5 token\n")
    assert held(soft.with_name(".lock"))  # by its sign, which is new


def test_a_process_that_ended_and_was_not_asked_for_its_status_is_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert heartbeat.begun(pid) is None
    os.waitpid(pid, 0)
    assert heartbeat.begun(pid) is None
