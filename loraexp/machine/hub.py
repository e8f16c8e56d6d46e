"""Where models and data come from: a source string becomes a place on this machine, or a hub id.

`package:<distribution>/<path inside site-packages>` is found through the distribution's metadata,
without importing it;
`/a/path`, `./a/path`, `~/a/path` and everything that exists here are paths; the rest are hub ids
(`owner/name`).
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

from loraexp.machine import demo
from loraexp.machine.files import sha256 as digest_of
from loraexp.machine.words import SourceError as SourceError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
PACKAGE = "package:"


class Unreachable(SourceError):
    """The hub cannot be asked, or refused: nothing that was typed is wrong, and the same command
    may succeed later.
    """


def resolve(source: str, *, key: str, revision: str | None = None) -> Path | str:
    """The local path that `source` names, or the hub id (a str) where it names one.

    `key` is the configuration key that set it, for the message. `revision` names a commit of the
    hub, which a folder does not have: a word that could mean both a repository there and a folder
    here is refused with it.

    Raises: SourceError where a package, a file in it, or a path is missing, or where the word could
    mean two things.
    """
    if source.startswith(PACKAGE):
        return _in_package(source, key)
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None and HUB_ID.fullmatch(source):
            group = key.partition(".")[0]
            raise SourceError(
                f"{key}={source}: {path.absolute()} is a folder here, and "
                f"{group}.revision={revision} names a commit of the "
                f"hub; set {key}=./{source} {group}.revision=null to read the folder, or go to "
                "another folder to read the hub"
            )
        return path
    if HUB_ID.fullmatch(source):
        return source
    raise SourceError(
        f"{key}={source}: {path} does not exist; give a path that does, or a hub id (owner/name)"
    )


def verify(path: Path, sha256: str | None, *, key: str) -> None:
    """Check the file's sha256 against the expected one (about 0.1 s for 90 MB, so every run does
    it).

    Raises: SourceError naming file, found and expected digest. `sha256=None` expects nothing.
    """
    if sha256 is None:
        return
    found = digest_of(path)
    if found != sha256:
        raise SourceError(
            f"{path} has sha256 {found}, expected {sha256}: install the tested version again, or"
            f" set {key}=null to accept it"
        )


def _in_package(source: str, key: str) -> Path:
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    remedy = f"loraexp fetch-demo gets it, or set {key} to a local path"
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        if (fetched := demo.find(name, inside)) is not None:
            return fetched
        raise SourceError(
            f"{key}={source}: the package {name} is not installed in {sys.prefix}; {remedy}"
        ) from None
    path = Path(str(distribution.locate_file(inside)))
    if not path.exists():
        raise SourceError(
            f"{key}={source}: {path} does not exist in {name} {distribution.version}; {remedy}"
        )
    return path
