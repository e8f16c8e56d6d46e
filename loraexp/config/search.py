"""Where yamls and code are looked for: ours first, then the user's own folders and installed
packages'.

A folder of one's own is given as `--config-dir DIR` anywhere on a line, or in `LORAEXP_CONFIG_DIR`
(several, separated like PATH). It has the shape of `conf/`: `DIR/init/mine.yaml`, and
`DIR/sweeps/mine.yaml`. Code that its yamls name is imported from `DIR/..` or `DIR/code`. A package
offers its folder as an entry point of the group `loraexp.conf`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from loraexp.config.errors import ConfigError
from loraexp.config.paths import quoted

PACKAGE = Path(__file__).resolve().parent.parent
VARIABLE = "LORAEXP_CONFIG_DIR"
GROUP = "loraexp.conf"  # of entry points: `my_package = my_package.conf`


def folder(name: str) -> Path:
    """`conf` or `sweeps` of ours: inside the package when installed from a wheel, beside it in a
    checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def use(directories: Sequence[str]) -> None:
    """Look in these folders too, here and in every process that this one starts; raises ConfigError
    where one is missing."""
    own = [Path(directory).expanduser().absolute() for directory in directories]
    for path in own:
        if not path.is_dir():
            raise ConfigError(
                f"--config-dir {path}: there is no such folder; it has the shape of conf/, such as"
                " init/mine.yaml"
            )
        taken = [
            file
            for file in path.glob("*/*.yaml")
            if (folder("conf") / file.relative_to(path)).exists()
        ]
        if taken and path != folder("conf"):
            raise ConfigError(
                f"{taken[0]}: {taken[0].parent.name}={taken[0].stem} is one of loraexp itself; give"
                " yours another name"
            )
    before = [word for word in os.environ.get(VARIABLE, "").split(os.pathsep) if word]
    words = dict.fromkeys([*map(str, own), *before])
    if words:
        os.environ[VARIABLE] = os.pathsep.join(words)
    import_from(
        [
            place
            for path in map(Path, words)
            for place in (path.absolute().parent, path.absolute() / "code")
        ]
    )


def import_from(places: Sequence[Path]) -> None:
    """Code in these folders can be imported, here and in processes that start from here."""
    words = [str(place) for place in places if place.is_dir()]
    sys.path.extend(word for word in words if word not in sys.path)
    known = [word for word in os.environ.get("PYTHONPATH", "").split(os.pathsep) if word]
    if missing := [word for word in words if word not in known]:
        os.environ["PYTHONPATH"] = os.pathsep.join([*known, *missing])


def own() -> list[Path]:
    """The user's folders and those of installed packages, in the order in which they are looked
    in."""
    words = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(word).expanduser().absolute() for word in words if word] + list(installed())


@functools.cache
def installed() -> tuple[Path, ...]:
    """The folders that installed packages offer; a package is found, not imported."""
    places = []
    for point in importlib.metadata.entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.value)
        places += (
            [Path(place) for place in spec.submodule_search_locations or []]
            if spec is not None
            else []
        )
    return tuple(places)


def roots() -> list[Path]:
    """Every folder of configuration groups, in the order in which Hydra looks."""
    return [folder("conf"), *own()]


def sweeps() -> list[Path]:
    """Every folder of sweeps."""
    return [folder("sweeps"), *(path / "sweeps" for path in own())]


def names(places: Iterable[Path]) -> list[str]:
    """The yamls in these folders."""
    return sorted({path.stem for place in places for path in place.glob("*.yaml")})


def file_of(places: Iterable[Path], name: str) -> Path:
    """The yaml of that name in the first folder that has it; a path that is not there where none
    has."""
    paths = [place / f"{name}.yaml" for place in places]
    return next((path for path in paths if path.is_file()), paths[0])


def about(path: Path) -> str:
    """The first comment of a yaml: what it is, in one line."""
    lines = (line for line in path.read_text().splitlines() if not line.startswith("# @"))
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")


def overrides() -> list[str]:
    """What tells Hydra of the user's folders."""
    places = [quoted(f"file://{path}") for path in own()]
    return [f"hydra.searchpath=[{','.join(places)}]"] if places else []
