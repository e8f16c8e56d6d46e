"""What the READMEs say is typed: every command composes, every name is there, every snippet runs,
every id is of today."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from loraexp import config
from loraexp.cli.main import VERBS
from loraexp.sweep import reading
from tests.support.helpers import REPOSITORY

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "sweeps/README.md",
    "benchmarks/README.md",
    "examples/README.md",
]
TEXTS = {page: (REPOSITORY / page).read_text() for page in PAGES}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
RUN = re.compile(r"\bRUN\b|FULL_RUN|\bNAME\b|\bDIR\b")


def commands() -> list[tuple[str, str]]:
    """(page, command line without its comment) of every `loraexp …` in a block or between
    backticks."""
    found = []
    for page, text in TEXTS.items():
        bodies = [body for language, body in BLOCK.findall(text) if not language]
        # behind a $ is a command, and under it its output, which test_outputs.py compares
        blocks = "\n".join(
            "\n".join(line for line in body.splitlines() if line.startswith("$ "))
            if re.search(r"^\$ ", body, re.M)
            else body
            for body in bodies
        )
        blocks = blocks.replace("\\\n", " ")
        lines = [line.removeprefix("$ ") for line in blocks.splitlines()]
        lines += re.findall(r"`(loraexp [^`\n]+)`", BLOCK.sub("", text))
        for line in lines:
            words = re.split(r"\s+#|\s+&&|;", line)[0].strip()
            if (
                words.startswith("loraexp")
                and "…" not in words
                and not words.startswith("loraexp/")
            ):
                found.append((page, words))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one(page: str, line: str) -> None:
    if "--config-dir" in line or "hydra/sweeper=" in line:
        return  # the examples are run from a wheel, and the search in a test of its own
    words = shlex.split(line.replace("[", "").replace("]", "") if "RUN" in line else line)[1:]
    if words and words[0] in VERBS or words[:1] == ["help"]:
        if (
            words[0] in ("sweep", "plan", "table", "plot")
            and len(words) > 1
            and not RUN.search(line)
        ):
            reading.load(words[1], None, [])
        return
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    flags = {word for word in words if word.startswith("-")}
    assert flags <= {"-m", "--multirun", "--help", "--config-dir", "--cfg", "--version"}, flags
    if RUN.search(line) or not overrides:
        return
    for cell in config.expand(overrides)[:3]:
        config.check(config.compose(cell))


def test_the_ids_are_of_today() -> None:
    _, plain = config.check(config.compose([]))
    ids = set(re.findall(r"tweets-minilm/cg_lora-s0-(\w{10})", TEXTS["README.md"]))
    assert ids == {config.run_id(plain)}


def test_what_is_linked_is_there() -> None:
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in target or (REPOSITORY / page).parent.joinpath(target).exists(), (
                page,
                target,
            )


def test_the_readme_is_short_and_names_only_what_there_is() -> None:
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 150
    for path in re.findall(r"`(loraexp/[\w/]+\.py)`", text):
        assert (REPOSITORY / path).exists(), path
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert f"\n{target}:" in (REPOSITORY / "Makefile").read_text()


def test_the_snippets_run_as_they_are_pasted(tmp_path: Path) -> None:
    snippets = [
        body for language, body in BLOCK.findall(TEXTS["README.md"]) if language == "python"
    ]
    code = "\n".join(snippets)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
