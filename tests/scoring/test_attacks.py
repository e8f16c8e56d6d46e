"""Every attack of the table is held, whoever runs the sandbox: root (as in a container) and an
ordinary user."""

from __future__ import annotations

import ctypes
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from loraexp.scoring import sandbox, seccomp
from tests.support import ordinary
from tests.support.attacks import CAMPAIGN, GROUPS, attacks, held

needs_sandbox = pytest.mark.skipif(sandbox.problem() is not None, reason=str(sandbox.problem()))
SECRET = "do-not-tell"


@pytest.fixture()
def secrets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What an attack could find: a token in the environment, a key of the session, a file, and a
    server that listens."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    file = Path("/tmp/loraexp-test")
    file.write_text(SECRET)
    libc = ctypes.CDLL(None, use_errno=True)
    add, revoke = seccomp.REFUSED["add_key"][seccomp.machine().column], 3
    key = libc.syscall(add, b"user", b"loraexp-test-key", SECRET.encode(), len(SECRET), -3)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0loraexp-test")
        server.listen()
        yield key
    file.unlink()
    if key > 0:
        libc.syscall(seccomp.keyctl(), revoke, key)


@needs_sandbox
@pytest.mark.parametrize("user", ["own", "ordinary"])
@pytest.mark.parametrize("group", GROUPS)
def test_an_attack_is_tried_and_held(group: str, user: str, secrets: int) -> None:
    if user == "ordinary":
        if os.getuid() != 0:
            pytest.skip("the tests are run by an ordinary user already")
        if (reason := ordinary.hindrance()) is not None:
            pytest.skip(reason)
        text = ordinary.python(CAMPAIGN, group, env={"WANDB_API_KEY": SECRET})
    else:
        text = ordinary.python(CAMPAIGN, group, env={"WANDB_API_KEY": SECRET}, own=True)
    outcomes = json.loads(text)
    table = {attack.name: attack for attack in attacks()}
    assert (
        [one[0] for one in outcomes]
        == [attack.name for attack in attacks() if attack.group == group]
        != []
    )
    assert [one for one in outcomes if not held(table[one[0]], one[1], one[2])] == []


def test_the_attacks_are_attacks() -> None:
    """Without walls those that look and call get there, so that what the table asserts can fail."""
    harmless = [
        "memory that belongs to a file (memfd)",
        "System V memory",
        "IPv6",
        "many processes seen",
        "the machine's /tmp",
    ]
    Path("/tmp/loraexp-test").write_text(SECRET)
    program = (
        "import json, sys\nfrom loraexp.scoring import sandbox\nfrom tests.support.attacks import"
        f" attacks\nfor one in attacks():\n    if one.name in {harmless!r}:\n       "
        " print(json.dumps([one.name, sandbox.run(one.program.replace('REACHED', 'GOT'),"
        " unsafe_code=True).output]))"
    )
    lines = ordinary.python(program, env={"WANDB_API_KEY": SECRET}, own=True).splitlines()
    Path("/tmp/loraexp-test").unlink()
    assert sorted(name for name, output in map(json.loads, lines) if "GOT" in output) == sorted(
        harmless
    ), lines


@needs_sandbox
def test_the_caller_has_what_the_attacks_look_for(secrets: int) -> None:
    assert Path("/tmp/loraexp-test").read_text() == SECRET == os.environ["WANDB_API_KEY"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0loraexp-test")
