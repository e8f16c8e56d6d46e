"""What the code imports is what an installation brings, and nothing else is asked for."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator

from tests.support.helpers import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# packages of a user of a launcher or of an extra: asked for by the extra's name where missing
EXTRAS = PROJECT["optional-dependencies"]


def canonical(requirement: str) -> str:
    return re.split(r"[<>=\[;! ]", requirement)[0].lower().replace("_", "-")


REQUIRED = {canonical(word): word for word in PROJECT["dependencies"]}
OPTIONAL = {canonical(word) for words in EXTRAS.values() for word in words}


def imports() -> Iterator[tuple[str, str]]:
    """(dotted module, file) of every import of loraexp, wherever it stands."""
    for path in sorted((REPOSITORY / "loraexp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if name.split(".")[0] not in sys.stdlib_module_names | OURS:
                    yield name, str(path.relative_to(REPOSITORY))


# `_typeshed` is a type checker's own, and nothing is imported from it when the code runs
OURS = {"loraexp", "__future__", "_typeshed"}
FOUND = list(imports())
IN_A_PROGRAM = {"math-verify": "from math_verify import"}  # in a string that is run apart
BROUGHT = importlib.metadata.packages_distributions()


def brought_by(name: str) -> set[str]:
    top = name.split(".")[0]
    return {canonical(word) for word in BROUGHT.get(top, [top])}


def test_what_is_imported_is_declared() -> None:
    declared = set(REQUIRED) | OPTIONAL
    undeclared = {
        (name.split(".")[0], path) for name, path in FOUND if not brought_by(name) & declared
    }
    assert not undeclared, undeclared


def test_what_is_declared_is_imported() -> None:
    imported = {word for name, _ in FOUND for word in brought_by(name)}
    text = "".join(path.read_text() for path in (REPOSITORY / "loraexp").rglob("*.py"))
    imported |= {name for name, words in IN_A_PROGRAM.items() if words in text}
    assert set(REQUIRED) <= imported, set(REQUIRED) - imported


def test_private_parts_of_a_library_have_an_upper_bound() -> None:
    """A name with an underscore, W&B's protobuf and its `sdk` may change without notice."""
    private = {
        word
        for name, _ in FOUND
        if any(re.match(r"_[a-z]", part) for part in name.split(".")[1:])
        or re.match(r"wandb\.(proto|sdk)\b", name)
        for word in brought_by(name) & set(REQUIRED)
    }
    assert private >= {"hydra-core", "wandb"}
    unbounded = {word for word in private if "<" not in REQUIRED[word]}
    assert not unbounded, unbounded


def test_every_requirement_is_met_here() -> None:
    from packaging.requirements import Requirement

    for word in PROJECT["dependencies"]:
        requirement = Requirement(word)
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), (word, version)
