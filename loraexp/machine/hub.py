"""Where models and data come from: a source string becomes a place on this machine, or a hub id.

`package:<distribution>/<path inside site-packages>` is found through the distribution's metadata, without importing it;
`/a/path`, `./a/path`, `~/a/path` and everything that exists here are paths; the rest are hub ids (`owner/name`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import queue
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
PACKAGE = "package:"


class SourceError(ValueError):
    """A model or a data set is not where it was looked for; one line says where, and the two ways to provide it."""


def resolve(source: str, *, key: str) -> Path | str:
    """The local path that `source` names, or the hub id (a str) where it names one.

    `key` is the configuration key that set it, for the message.

    Raises: SourceError where a package, a file in it, or a path is missing.
    """
    if source.startswith(PACKAGE):
        return _in_package(source, key)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if HUB_ID.fullmatch(source):
        return source
    raise SourceError(f"{key}={source}: {path} does not exist; give a path that does, or a hub id (owner/name)")


def verify(path: Path, sha256: str | None, *, key: str) -> None:
    """Check the file's sha256 against the expected one (about 0.1 s for 90 MB, so every run does it).

    Raises: SourceError naming file, found and expected digest. `sha256=None` expects nothing.
    """
    if sha256 is None:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise SourceError(f"{path} has sha256 {found}, expected {sha256}: install the tested version again, or set {key}=null to accept it")


def _in_package(source: str, key: str) -> Path:
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    remedy = f'pip install "loraexp[offline]", or set {key} to a local path'
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise SourceError(f"{key}={source}: the package {name} is not installed in {sys.prefix}; {remedy}") from None
    path = Path(str(distribution.locate_file(inside)))
    if not path.exists():
        raise SourceError(f"{key}={source}: {path} does not exist in {name} {distribution.version}; {remedy}")
    return path


@contextmanager
def hub_session(seconds: float = 3.0) -> Iterator[bool]:
    """Within the block the hub's clients use the hub if it answers within `seconds`, else at once only their cache.

    Yields whether the hub answers. Without this an unreachable hub costs each client half a minute of retries.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    reachable = not before and _answers(constants.ENDPOINT, seconds)
    constants.HF_HUB_OFFLINE = not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def _answers(url: str, seconds: float) -> bool:
    """Whether anything answers at `url`; in a thread, because looking up a name has no time-out of its own."""
    answer: queue.Queue[bool] = queue.Queue()
    threading.Thread(target=lambda: answer.put(_head(url, seconds)), daemon=True).start()
    try:
        return answer.get(timeout=seconds)
    except queue.Empty:
        return False


def _head(url: str, seconds: float) -> bool:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "loraexp"})
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the hub's client may know certificates that this probe does not
    except OSError:
        return False


def cache_folder() -> str:
    """Where the hub's clients keep what they have downloaded, for messages."""
    return os.environ.get("HF_HOME", "~/.cache/huggingface")
