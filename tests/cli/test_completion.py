"""Tab, as bash calls it: the script is sourced, the function is called with a line, COMPREPLY is
what a person is offered."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import REPOSITORY

OFFERED = [
    ("loraexp sw", ["sweep", "sweep.pack=", "sweep="]),
    ("loraexp table cg_lora_tab", ["cg_lora_table1", "cg_lora_table2", "cg_lora_table3"]),
    ("loraexp plot lora_one_fig1", ["lora_one_fig1b", "lora_one_fig1c"]),
    (
        "loraexp verify outputs/a/",
        ["outputs/a/lora-s0-0123456789", "outputs/a/lora-s1-0123456789"],
    ),
    ("loraexp init=pi", ["pissa"]),
    ("loraexp -m seed=0,1 init=lora,piss", ["lora,pissa"]),
    ("loraexp task=cola precision=", ["fp32", "bf16"]),
    ("loraexp train.length_buckets=t", ["true"]),
    ("loraexp train.warmup", ["train.warmup_ratio="]),
    ("loraexp table cg_lora_table1 --fo", ["--format"]),
    ("loraexp list mo", ["models"]),
    ("loraexp new ta", ["task"]),
    ("loraexp help ve", ["verify"]),
    ("loraexp compare milo", ["milora"]),
    ("loraexp --config-dir conf init=mi", ["milora", "mine"]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs, an initializer of one's own, and `loraexp` on the path."""
    place = tmp_path_factory.mktemp("somewhere")
    for seed in (0, 1):
        folder = place / "outputs" / "a" / f"lora-s{seed}-0123456789"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")
        os.utime(folder / "record.json", (10 - seed, 10 - seed))
    (place / "conf" / "init").mkdir(parents=True)
    (place / "conf" / "init" / "mine.yaml").write_text("name: mine\n")
    (place / "bin").mkdir()
    command = place / "bin" / "loraexp"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m loraexp "$@"\n')
    command.chmod(0o755)
    return place


def bash(place: Path, script: str) -> list[str]:
    environment = os.environ | {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "LORAEXP_CONFIG_DIR": str(place / "conf"),
    }
    done = subprocess.run(
        ["bash", "-c", f'eval "$(loraexp completion bash)"\n{script}'],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_tab_offers_verbs_sweeps_runs_keys_and_values(place: Path) -> None:
    calls = "\n".join(
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()\n"
        '_loraexp 2>/dev/null; (IFS=" "; echo "${COMPREPLY[*]}")'
        for line, _ in OFFERED
    )
    found = bash(place, calls)
    assert [line.split() for line in found] == [wanted for _, wanted in OFFERED]


def test_it_is_the_completion_of_the_command(place: Path) -> None:
    assert bash(place, "complete -p loraexp") == ["complete -o default -F _loraexp loraexp"]
    [first, *_] = bash(place, "loraexp completion zsh")
    assert "bashcompinit" in first
