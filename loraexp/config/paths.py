"""Paths as a user types them, spelled so that Hydra reads them: its grammar knows no `#`, no `~`
and no umlaut outside quotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Keys whose value is a place on this machine.
PLACES = ("output_root", "cache_root", "task.data_dir", "task.eval_data_dir")
# In place of a folder: the rows of the hub, whatever other folder there is. A folder of that name
# is written ./hub.
HUB = "hub"
PLAIN = re.compile(r"[\w./:-]+", re.ASCII)  # what Hydra's grammar takes as one word


def quoted(text: str) -> str:
    """A value that Hydra reads as this text, whatever is in it: backslashes count only before a
    quote."""
    return (
        "'"
        + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
        + "'"
    )


def unquoted(text: str) -> str:
    """The text that a quoted value stands for; of another value itself."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return text
    if text[0] == '"':
        return text[1:-1]
    return re.sub(
        r"(\\+)('|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], text[1:-1]
    )


def spelled(words: Sequence[str]) -> list[str]:
    """The same words with the paths among them quoted where Hydra could not read them, and `~` the
    home folder.

    `hydra.job.chdir=true` moves the run to another folder: what is relative is then said from the
    root.
    """
    moved = any(word.replace(" ", "").lower() == "hydra.job.chdir=true" for word in words)
    found = [spelled_one(word, moved) for word in words]
    if moved and not any(word.startswith("output_root=") for word in words):
        found.append(f"output_root={quoted(str(Path('outputs').absolute()))}")
    return found


def spelled_one(word: str, moved: bool) -> str:
    key, equals, value = word.partition("=")
    if (
        key not in PLACES
        or not equals
        or "${" in value
        or value in ("", "null", HUB)
        or value[0] in "'\"["
    ):
        return word
    whole = Path(value).expanduser()
    if moved or value.startswith("~"):
        return f"{key}={quoted(str(whole.absolute()))}"
    if PLAIN.fullmatch(value) or "," in value:  # several values of a grid are Hydra's to read
        return word
    return f"{key}={quoted(value)}"
