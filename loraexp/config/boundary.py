"""What a file that somebody else may have written can make this program do.

A `_target_` is code that is imported and run. What the user types, and the yamls of the user's own
folders, may name any. A sweep given as a file, and the config.yaml of a run that is opened again,
reach the code of loraexp, the user's own `--config-dir` code and what is typed beside them;
everything only with `--trust`. The same holds for variables of the environment, which a record
would keep: `${oc.env:NAME}` of such a sweep reads those that the user's own files name. Whether
programs that a model wrote run without a sandbox is said on the command line alone.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraexp.config import search
from loraexp.config.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

FLAG = "--trust"
UNSAFE = "evaluate.unsafe_code"
# where the functions of each group are; one of `loraexp` elsewhere is no task, and may do anything
PACKAGES = {
    "task": "loraexp.tasks",
    "init": "loraexp.initializers",
    "optimizer": "loraexp.optimizers",
    "compute": "loraexp.theory",
}
TARGET = re.compile(r"""_target_["']?\s*[:=]\s*["']?([\w.]+)""")
VARIABLE = re.compile(r"oc\.env\s*:\s*([A-Za-z_]\w*)")
UNSAFE_WORD = re.compile(r"[+~]*evaluate(?:\.unsafe_code)?(?:@.*)?(?:=.*)?", re.S)


@dataclass
class Boundary:
    """`file`: whose words are somebody else's, None while there is none; `typed`: targets and
    variables that the user named beside it."""

    file: Path | None = None
    typed: frozenset[str] = frozenset()
    trust: bool = False

    @property
    def open(self) -> bool:
        """Whether anything may be named."""
        return self.file is None or self.trust


STATE = Boundary()


@contextmanager
def command(trust: bool) -> Iterator[None]:
    """Within: a command, in which no file is somebody else's yet; what it encloses ends with it."""
    before = STATE.file, STATE.typed, STATE.trust
    STATE.file, STATE.typed, STATE.trust = None, frozenset(), trust
    try:
        yield
    finally:
        STATE.file, STATE.typed, STATE.trust = before


def enclose(file: Path, words: Sequence[str] = ()) -> None:
    """From here to the end of the command what is named is a file's, but what these words of the
    user name."""
    text = "\n".join(words)
    STATE.file = file
    STATE.typed = frozenset([*TARGET.findall(text), *VARIABLE.findall(text)])
    guard_environment()


@contextmanager
def within(file: Path) -> Iterator[None]:
    """Within: what is named is this file's."""
    before = STATE.file
    STATE.file = file
    try:
        yield
    finally:
        STATE.file = before


def admit(target: str, module: str, group: str) -> None:
    """Raises: ConfigError for a target that the file in hand may not name; nothing of it has been
    imported then."""
    if STATE.open or target in STATE.typed:
        return
    packages = [PACKAGES[group]] if group in PACKAGES else list(PACKAGES.values())
    if any(f"{module}.".startswith(f"{package}.") for package in packages):
        return
    if target in named_by_own(TARGET, tuple(search.roots())) or is_own(module.partition(".")[0]):
        return
    raise ConfigError(
        f"{STATE.file}: {group}._target_={target}: a file from elsewhere may name code of"
        f" {', '.join(packages)} alone; give the --config-dir that it belongs to, or {FLAG} to"
        " import and run what it names"
    )


def admit_function(target: str, found: object) -> None:
    """Raises: ConfigError for something in a module of loraexp that is not loraexp's, such as a
    library that it imports."""
    if STATE.open or not target.startswith("loraexp."):
        return
    if not str(getattr(found, "__module__", "")).startswith("loraexp."):
        raise ConfigError(f"{STATE.file}: {target} is no function of loraexp; {FLAG} runs it")


@functools.cache
def guard_environment() -> None:
    """From here on `${oc.env:NAME}` reads what `admit_variable` admits, however the text came
    about: an override may spell it in ways that only Hydra reads."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def env(*arguments: str | None) -> str | None:
        admit_variable(str(arguments[0]))
        return oc.env(*arguments)  # type: ignore[arg-type]

    OmegaConf.register_new_resolver("oc.env", env, replace=True)


def admit_variable(name: str) -> None:
    """Raises: ConfigError for a variable of the environment that the file in hand may not read."""
    if STATE.open or name in STATE.typed:
        return
    if name not in named_by_own(VARIABLE, (*search.roots(), *search.sweeps())):
        raise ConfigError(
            f"{STATE.file}: ${{oc.env:{name}}}: a file from elsewhere may not read your"
            f" environment, which records keep; write the value in its place, or give {FLAG}"
        )


@functools.cache
def named_by_own(pattern: re.Pattern[str], folders: tuple[Path, ...]) -> frozenset[str]:
    """What our yamls and those of the user's own folders name."""
    files = (path for at in folders for shape in ("*.yaml", "*/*.yaml") for path in at.glob(shape))
    texts = (path.read_text(errors="replace") for path in files)
    return frozenset(name for text in texts for name in pattern.findall(text))


def is_own(top: str) -> bool:
    """Whether a top-level module is the user's own: it lies where the code of a `--config-dir`
    does, or is of a package that offers its folder."""
    if top in {point.value.partition(".")[0] for point in entry_points()}:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    folders = [Path(place).parent for place in spec.submodule_search_locations or []]
    found = folders or ([Path(spec.origin).parent] if spec.origin is not None else [])
    places = {place.resolve() for path in search.own() for place in (path.parent, path / "code")}
    return any(folder.resolve() in places for folder in found)


def entry_points() -> Sequence[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=search.GROUP))


# --------------------------------------------------------------------------------------------------
# programs without a sandbox


def refuse_unsafe(content: object, where: str) -> None:
    """Raises: ConfigError where a file asks for programs without a sandbox, in an override or a
    key."""
    for word in words_of(content):
        if UNSAFE_WORD.fullmatch(word) and not word.lower().endswith("=false"):
            raise ConfigError(f"{where}: {word}: {typed_alone()}")


def words_of(node: object) -> Iterator[str]:
    """Every key and text of nested values."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from words_of(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from words_of(value)
    elif isinstance(node, str):
        yield node


def check_unsafe(cfg: DictConfig) -> None:
    """Raises: ConfigError where the run that Hydra has begun would run programs without a sandbox,
    and no word of its command line says so."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if OmegaConf.select(cfg, UNSAFE, default=False) is False:
        return
    words = HydraConfig.get().overrides.task
    if not any(UNSAFE_WORD.fullmatch(word) for word in words):
        raise ConfigError(f"{UNSAFE}=true: it stands in a yaml; {typed_alone()}")


def typed_alone() -> str:
    return (
        f"programs that a model wrote run without a sandbox where {UNSAFE}=true is typed on the"
        " command line, never by a file"
    )
