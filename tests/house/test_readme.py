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
from loraexp.cli.completion import flags_of
from loraexp.cli.main import VERBS
from loraexp.sweep import reading
from tests.support.helpers import REPOSITORY

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "sweeps/README.md",
    "sweeps/RESULTS.md",
    "benchmarks/README.md",
    "examples/README.md",
]
TEXTS = {page: (REPOSITORY / page).read_text() for page in PAGES}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
OF_HYDRA = {"-m", "--multirun", "--help", "--config-dir", "--cfg", "--version"}
RUN = re.compile(r"\bRUN\b|FULL_RUN|\bNAME\b|\bDIR\b")


def commands() -> list[tuple[str, str]]:
    """(page, command line without its comment) of every `loraexp …` in a block or between
    backticks."""
    found = []
    for page, text in TEXTS.items():
        bodies = [body.replace("\\\n", " ") for lang, body in BLOCK.findall(text) if not lang]
        # behind a $ is a command, and under it its output, which test_outputs.py compares
        blocks = "\n".join(
            "\n".join(line for line in body.splitlines() if line.startswith("$ "))
            if re.search(r"^\$ ", body, re.M)
            else body
            for body in bodies
        )
        lines = [line.removeprefix("$ ") for line in blocks.splitlines()]
        lines += re.findall(r"`(loraexp [^`\n]+)`", BLOCK.sub("", text))
        for line in lines:
            words = re.split(r"\s+#|\s+&&|;", line)[0].strip()
            if words.startswith("loraexp") and not words.startswith("loraexp/"):
                found.append((page, words))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one(page: str, line: str) -> None:
    """The verb and its flags are there, a sweep and its variant too, and the overrides compose."""
    if "--config-dir" in line or "hydra/sweeper=" in line:
        return  # the examples are run from a wheel, and the search in a test of its own
    words = shlex.split(re.sub(r"[\[\]]", "", line) if "[" in line and "=[" not in line else line)[
        1:
    ]
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    flags = {word for word in words if word.startswith("-")}
    open_end = RUN.search(line) or "…" in line or "..." in line  # something stands for any
    verb = words[0] if words and words[0] in VERBS else None
    assert flags <= (set(flags_of(VERBS[verb])) if verb else OF_HYDRA) | {"-v"}, flags
    if words[:1] == ["help"]:
        assert words[1:] == ["VERB"] or set(words[1:]) <= set(VERBS)
    elif verb in ("sweep", "plan", "table", "plot"):
        if len(words) > 1 and not open_end:
            at = words.index("--variant") + 1 if "--variant" in words else None
            of_runs = [word for word in overrides if not word.startswith("hydra")]
            reading.load(words[1], words[at] if at else None, of_runs)
    elif verb is None:
        bare = [word for word in words if word not in overrides and word not in flags]
        assert not bare or open_end or flags & {"--cfg", "-c"}, bare
    if verb in (None, "show") and overrides and not open_end:
        for cell in config.expand(overrides)[:3]:
            config.check(config.compose(cell))


def test_the_ids_are_of_today() -> None:
    _, plain = config.check(config.compose([]))
    for page in ("README.md", "sweeps/RESULTS.md"):
        ids = set(re.findall(r"tweets-minilm/cg_lora-s0-(\w{10})", TEXTS[page]))
        assert ids == {config.run_id(plain)}, page


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
