"""Python as a user without rights, from a test that root runs (containers do); as oneself from any other."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

USER = 54321  # no account has it
REPOSITORY = Path(__file__).resolve().parents[2]


def hindrance() -> str | None:
    """Why no ordinary user can be had here."""
    if sys.platform != "linux":
        return "ordinary users are made with Linux's setpriv"
    if os.getuid() != 0:
        return None  # this is one
    for tool in ("setpriv", "unshare", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not on the PATH"
    tried = _run(["-c", "import loraexp.scoring.sandbox"], {}, 60)
    return f"no ordinary user here: {tried.stderr[-300:]}" if tried.returncode else None


def python(code: str, *arguments: str, env: dict[str, str] | None = None, seconds: float = 120.0) -> str:
    """What the code prints as an ordinary user. Raises: AssertionError with its error where it fails."""
    done = _run(["-c", code, *arguments], env or {}, seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _run(words: list[str], env: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Interpreter, packages and repository may lie where only root looks: they are mounted at places open to all."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        command, paths = [sys.executable], [str(REPOSITORY), *_packages()]
        steps = []
        if os.getuid() == 0:
            base = Path(sys.base_prefix)
            interpreter = Path(sys.executable).resolve().relative_to(base)
            sources = [str(base), *paths]
            places = [str(Path(place) / str(number)) for number in range(len(sources))]
            for source, target in zip(sources, places, strict=True):
                os.mkdir(target)
                steps.append(f"mount --bind {shlex.quote(source)} {shlex.quote(target)}")
            command, paths = [str(Path(places[0]) / interpreter)], places[1:]
        given = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), "HOME": "/nonexistent"}
        line = shlex.join([*_lower(), *command, *words])
        if os.getuid() == 0:
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", " && ".join([*steps, f"exec {line}"])]
        else:
            command = [*command, *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=given | {"PYTHONDONTWRITEBYTECODE": "1"} | env, cwd="/"
        )


def _lower() -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all"]


def _packages() -> list[str]:
    return [folder for folder in sys.path if folder.endswith("site-packages")]
