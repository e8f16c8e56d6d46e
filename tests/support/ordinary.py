"""Python as a user without rights, from a test that root runs (containers do); or in a process of
one's own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

USER = 54321  # no account has it
REPOSITORY = Path(__file__).resolve().parents[2]


@cache
def hindrance() -> str | None:
    """Why no ordinary user can be had here."""
    if sys.platform != "linux":
        return "ordinary users are made with Linux's setpriv"
    if os.getuid() != 0:
        return "only root can become another user"
    for tool in ("setpriv", "unshare", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not on the PATH"
    try:
        python("from loraexp.scoring import sandbox; sandbox.require()", seconds=60)
    except AssertionError as error:
        return f"no sandbox for an ordinary user here: {str(error)[-300:]}"
    return None


def python(
    code: str,
    *arguments: str,
    env: dict[str, str] | None = None,
    seconds: float = 120.0,
    own: bool = False,
) -> str:
    """What the code prints, run by an ordinary user, or by this one (`own`).

    Interpreter, packages and repository may lie where only root looks: they are mounted at places
    open to all.

    Raises: AssertionError with its error where it fails.
    """
    packages = [folder for folder in sys.path if folder.endswith("site-packages")]
    paths, steps, prefix = [str(REPOSITORY), *packages], [], []
    interpreter = sys.executable
    with tempfile.TemporaryDirectory() as place:
        if not own:
            os.chmod(place, 0o755)
            sources = [sys.base_prefix, *paths]
            places = [str(Path(place) / str(number)) for number in range(len(sources))]
            for source, target in zip(sources, places, strict=True):
                os.mkdir(target)
                steps.append(f"mount --bind {shlex.quote(source)} {shlex.quote(target)}")
            interpreter = str(
                Path(places[0]) / Path(sys.executable).resolve().relative_to(sys.base_prefix)
            )
            paths = places[1:]
            prefix = [
                "setpriv",
                f"--reuid={USER}",
                f"--regid={USER}",
                "--clear-groups",
                "--inh-caps=-all",
            ]
        line = f"exec {shlex.join([*prefix, interpreter, '-c', code, *arguments])}"
        shell = ["sh", "-c", " && ".join([*steps, line])]
        done = subprocess.run(
            shell if own else ["unshare", "--mount", "--propagation", "private", *shell],
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(paths),
                "HOME": "/nonexistent",
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            | (env or {}),
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
