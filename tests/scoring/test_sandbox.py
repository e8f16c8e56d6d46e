"""The sandbox against what a model's program might do; the table of attacks is in
test_attacks.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loraexp.scoring import jail, sandbox
from loraexp.scoring.sandbox import Limits, Outcome, SandboxError

needs_sandbox = pytest.mark.skipif(sandbox.problem() is not None, reason=str(sandbox.problem()))
QUICK = Limits(seconds=5.0)


def run(program: str, **limits: Any) -> Outcome:
    return sandbox.run(program, limits=Limits(**({"seconds": 5.0} | limits)))


def processes(marker: str) -> list[str]:
    """Command lines of this machine that hold the marker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line:
            found.append(line)
    return found


def gone(marker: str) -> bool:
    """The kernel takes a moment to clear a namespace away."""
    deadline = time.monotonic() + 3
    while processes(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes(marker)


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("print('x'); assert 1 + 1 == 2", "passed", ""),
        (
            "if __name__ == '__main__':\n    import math, heapq, typing, hashlib, random",
            "passed",
            "",
        ),
        ("assert 1 + 1 == 3, 'sum'", "failed", "AssertionError: sum"),
        ("def broken(:", "failed", "SyntaxError"),
        # leaving before the tests is not passing them
        ("import sys; sys.exit(0)", "failed", "SystemExit: 0"),
        ("import os; os._exit(0)", "failed", "ended early with status 0"),
        ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
        ("print('é' * 10, '\\ud800'.encode('utf-8', 'surrogatepass'))", "passed", ""),
        ("input()", "failed", "EOFError"),
    ],
)
def test_a_program_passes_only_by_coming_to_its_end(program: str, status: str, words: str) -> None:
    outcome = run(program)
    assert (outcome.status, words in outcome.detail) == (status, True), outcome


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time\nsignal.pthread_sigmask(0, range(1, 65))\ntime.sleep(60)",
    ],
)
def test_an_endless_loop_is_ended(program: str) -> None:
    outcome = run(program, seconds=1.0)
    assert outcome.status == "timeout" and outcome.seconds < 3 and "1 seconds" in outcome.detail


@needs_sandbox
def test_a_fork_bomb_meets_the_limit_and_leaves_nothing() -> None:
    marker = f"bomb-{os.getpid()}"
    bomb = (
        "import os, subprocess, sys, time\nstarted = 0\ntry:\n  while True:\n   "
        f" subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{marker}'])\n   "
        " started += 1\nexcept OSError as error:\n  print(started, type(error).__name__); raise"
    )
    outcome = run(bomb, processes=16)
    assert outcome.status == "failed" and "BlockingIOError" in outcome.output
    assert gone(marker)
    endless = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    assert run(endless, seconds=1.0).status == "timeout"
    assert run("print(1)").passed  # the machine can still start one


@needs_sandbox
def test_memory_is_limited_for_one_process_and_for_all() -> None:
    assert "MemoryError" in run("x = bytearray(10 * 2**30)").output
    many = (
        "import os, time\nfor _ in range(12):\n  if os.fork() == 0:\n    x = bytearray(60 *"
        " 2**20)\n    time.sleep(60)\ntime.sleep(60)"
    )
    outcome = run(many, memory=400 * 2**20)
    assert (outcome.status, "400 MiB" in outcome.detail) == ("memory", True)
    filling = (
        "import itertools\nfor i in itertools.count():\n  open(f'/tmp/{i}',"
        " 'wb').write(bytes(2**20))"
    )
    assert "No space left" in run(filling, tmp_bytes=8 * 2**20).output


@needs_sandbox
def test_nothing_can_be_written_but_a_small_private_tmp(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    tried = [
        str(outside),
        "/usr/x",
        "/etc/x",
        "/home/sandbox/x",
        "/x",
        "/dev/x",
        str(Path(sandbox.__file__).parent / "x"),
    ]
    program = f"""
open("/tmp/mine", "w").write("kept for a moment")
for path in {tried!r}:
    try:
        open(path, "w")
    except OSError:
        continue
    raise SystemError("wrote " + path)
"""
    assert run(program).passed and not outside.exists()
    # Of the system's /tmp only the interpreter is seen, where it happens to be installed there.
    interpreter = {Path(sys.prefix).parts[2]} if sys.prefix.startswith("/tmp/") else set()
    seen = run(
        f"import os; assert set(os.listdir('/tmp')) <= {interpreter!r} | set(), os.listdir('/tmp')"
    )
    assert not Path("/tmp/mine").exists() and seen.passed, seen.output
    assert (
        "File too large"
        in run("with open('/tmp/x', 'wb') as file: file.write(bytes(4096))", file_bytes=1024).output
    )


@needs_sandbox
def test_home_and_environment_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-tell")
    outcome = run("import os; print(dict(os.environ)); print(open('/proc/1/environ').read())")
    assert "do-not-tell" not in outcome.output and "SECRET" not in outcome.output
    hidden = [
        str(Path.home() / ".bashrc"),
        "/root/.profile",
        "/etc/passwd",
        "/etc/shadow",
        str(Path(__file__).resolve()),
    ]
    assert run(
        f"import os\nfor path in {hidden!r}: assert not os.path.exists(path), path\nassert"
        " os.listdir(os.path.expanduser('~')) == []"
    ).passed
    assert run(
        "import os; assert os.getuid() != 0 and"
        " open('/proc/self/status').read().count('CapEff:\\t0000000000000000') == 1"
    ).passed
    assert run("import os; assert len([p for p in os.listdir('/proc') if p.isdigit()]) < 5").passed


@needs_sandbox
def test_there_is_no_network() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        for address in (server.getsockname(), ("192.0.2.1", 80)):
            outcome = run(f"import socket\nsocket.create_connection({address!r}, timeout=2)")
            assert outcome.status == "failed" and "Error" in outcome.detail
    assert run("import socket\nassert [n for _, n in socket.if_nameindex()] == ['lo']").passed


@needs_sandbox
def test_the_parent_cannot_be_killed() -> None:
    for program in (
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        f"import os, signal\nos.kill({os.getpid()}, signal.SIGKILL)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
    ):
        run(program, seconds=2.0)
    assert run("print('still here')").passed


@needs_sandbox
def test_output_is_limited() -> None:
    started = time.monotonic()
    outcome = run("while True: print('x' * 2**20)", output=2**20)
    assert (
        outcome.status == "output"
        and len(outcome.output) <= 2**20
        and time.monotonic() - started < 4
    )
    assert run("import sys\nfor _ in range(1000): sys.stdout.write('x' * 2**20)").status == "output"


@needs_sandbox
@pytest.mark.parametrize("end", ["pass", "os._exit(1)"])
def test_children_that_outlive_their_parent_are_ended(end: str) -> None:
    marker = f"orphan-{os.getpid()}"
    # twice forked, of a session of its own
    sleeper = "import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(60)"
    program = (
        f"import os, subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {sleeper!r},"
        f" {marker!r}])\ntime.sleep(0.5)\n{end}"
    )
    outcome = run(program)
    assert outcome.status == ("passed" if end == "pass" else "failed") and outcome.seconds < 4
    assert gone(marker)
    # a zombie of its own
    assert run("import os, time\nif os.fork() == 0: os._exit(0)\ntime.sleep(0.2)").passed


def test_without_a_sandbox_it_refuses_and_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sandbox.problem.cache_clear()
    monkeypatch.setattr(jail.shutil, "which", lambda name: None)
    try:
        with pytest.raises(SandboxError) as caught:
            sandbox.run("print(1)")
        message = str(caught.value)
        assert (
            "apt-get install bubblewrap" in message
            and "evaluate.unsafe_code=true" in message
            and "\n" not in message
        )
    finally:
        sandbox.problem.cache_clear()


def test_a_sandbox_that_does_not_start_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sandbox.problem.cache_clear()
    try:
        with pytest.raises(
            SandboxError,
            match=r"bwrap fails here \(bwrap: No permissions to create new namespace\)",
        ):
            sandbox.require()
    finally:
        sandbox.problem.cache_clear()


def test_unsafe_code_is_the_only_way_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "problem", lambda: "none here")
    assert sandbox.run("assert True", unsafe_code=True).passed
    assert (
        sandbox.run("while True: pass", limits=Limits(seconds=0.5), unsafe_code=True).status
        == "timeout"
    )
    marker = f"unsafe-{os.getpid()}"
    sandbox.run(
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time;"
        f" time.sleep(60)', {marker!r}]).wait()",
        limits=Limits(seconds=1.0),
        unsafe_code=True,
    )
    assert gone(marker)
    with pytest.raises(SandboxError):
        sandbox.run("print(1)")


@needs_sandbox
def test_sandboxes_in_several_threads_have_their_own_limits() -> None:
    outcomes: list[Outcome] = []
    hold = (
        "import os, time\nfor _ in range(10):\n  if os.fork() == 0:\n    time.sleep(1.5);"
        " os._exit(0)\ntime.sleep(0.5)"
    )
    threads = [
        threading.Thread(target=lambda: outcomes.append(run(hold, processes=16))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.status for outcome in outcomes] == ["passed"] * 3


@needs_sandbox
def test_pages_that_processes_share_honestly_count_once() -> None:
    """Eight children read the array of their parent: it is there once."""
    sharing = """
import os, time
held = bytes(100 * 2**20)
for _ in range(8):
    if os.fork() == 0:
        assert held.count(b"\\0") == len(held)
        time.sleep(1.5); os._exit(0)
time.sleep(1)
"""
    outcome = run(sharing, memory=300 * 2**20, seconds=10.0)
    assert outcome.passed, outcome


@needs_sandbox
def test_the_end_of_the_supervisor_is_the_end_of_the_sandbox(tmp_path: Path) -> None:
    marker = f"left-{os.getpid()}"
    program = (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time;"
        f" time.sleep(60)', {marker!r}])"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", f"from loraexp.scoring import sandbox; sandbox.run({program!r})"]
    )
    deadline = time.monotonic() + 20
    while not processes(f"time.sleep(60) {marker}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(f"time.sleep(60) {marker}")
    supervisor.kill()
    supervisor.wait()
    assert gone(f"time.sleep(60) {marker}")


@needs_sandbox
def test_what_a_program_writes_cannot_steer_a_terminal() -> None:
    outcome = run(
        "print('\\x1b[2J\\x1b]0;title\\x07', '\\x9b31m', '\\u202e', 'é 字\\ttab')\nraise"
        " ValueError('\\x1b[31mred\\r!')"
    )
    assert "\\u001b[2J\\u001b]0;title\\u0007 \\u009b31m \\u202e é 字\ttab" in outcome.output
    assert outcome.detail == "ValueError: \\u001b[31mred\\u000d!"


def test_limits_hold_without_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for an ordinary user to whom none is delegated: the supervisor looks at the memory
    of all processes."""
    if sandbox.problem() is not None:
        pytest.skip(str(sandbox.problem()))
    monkeypatch.setattr(jail.usage, "group", lambda *_: None)
    many = (
        "import os, time\nfor _ in range(12):\n  if os.fork() == 0:\n    x = bytearray(60 *"
        " 2**20)\n    time.sleep(60)\ntime.sleep(60)"
    )
    assert run(many, memory=300 * 2**20).status == "memory"
