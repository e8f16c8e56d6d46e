"""`python -m benchmarks.house`: what the house is held to, counted from its own files.

Packages and floors, circles of imports (those inside functions count), files and functions that
have grown, parameters, statements, wide lines, `Any`. Docstrings are not counted.
"""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "loraexp"
LINES, BODY, PARAMETERS, WIDTH = 350, 50, 8, 100
PRAGMA = re.compile(r"\s+# (?:noqa|type: ignore)")  # what a tool is told, which ruff does not count
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """The library's own modules that a module imports, wherever in it, but for type checking."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner_name = f"{node.module}.{alias.name}"
                yield inner_name if inner_name in modules else str(node.module)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach one another, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[-len(part) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def size(function: Function) -> int:
    """Its lines, its docstring apart."""
    first = function.body[0]
    words = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    said = (first.end_lineno or first.lineno) - first.lineno + 1 if words else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - said


def parameters(function: Function) -> set[str]:
    """Named ones, `self` and `cls` apart."""
    given = function.args
    names = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
    return names - {"self", "cls"}


def keys_of_yamls(folder: Path = ROOT / "conf") -> dict[str, set[str]]:
    """The keys of each component's yaml by the function that it names: a method has as many
    hyper-parameters as its paper, and a person gives them by these names."""
    keys: dict[str, set[str]] = {}
    for path in folder.rglob("*.yaml"):
        node = yaml.safe_load(path.read_text())
        if isinstance(node, dict) and "_target_" in node:
            function = str(node["_target_"]).removeprefix("loraexp.")
            keys.setdefault(function, set()).update(node)
    return keys


def statements(tree: ast.Module) -> int:
    """All statements but docstrings."""
    return sum(
        isinstance(node, ast.stmt)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.walk(tree)
    )


def over(limit: int, sizes: dict[str, int]) -> str:
    wide = sorted(
        ((size, name) for name, size in sizes.items() if size > limit), key=lambda pair: -pair[0]
    )
    shown = ", ".join(f"{name} {size}" for size, name in wide)
    return f"{len(wide)}{f': {shown}' if wide else ''}"


def import_graph(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    modules = {name_of(path) for path in trees}
    return {
        name_of(path): set(imports(tree, modules)) - {name_of(path)} for path, tree in trees.items()
    }


@dataclass(frozen=True)
class Sizes:
    """Lines of files, lines and parameters of functions, by name."""

    lines: dict[str, int]
    bodies: dict[str, int]
    parameters: dict[str, int]

    @property
    def large(self) -> dict[str, dict[str, int]]:
        """What is larger than the house allows."""
        limits = {"lines": LINES, "bodies": BODY, "parameters": PARAMETERS}
        return {
            kind: {name: size for name, size in getattr(self, kind).items() if size > limit}
            for kind, limit in limits.items()
        }


def sizes(texts: Mapping[Path, str]) -> Sizes:
    """Of parameters, those that are not keys of the function's own yaml."""
    found, keys = Sizes({}, {}, {}), keys_of_yamls()
    for path, text in texts.items():
        found.lines[str(path.relative_to(ROOT))] = len(text.splitlines())
        for one in functions(ast.parse(text)):
            name = f"{name_of(path).removeprefix('loraexp.')}.{one.name}"
            found.bodies[name] = max(size(one), found.bodies.get(name, 0))
            own = len(parameters(one) - keys.get(name, set()))
            found.parameters[name] = max(own, found.parameters.get(name, 0))
    return found


def texts_of(folder: Path = LIBRARY) -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(folder.rglob("*.py"))}


def main() -> None:
    texts = texts_of()
    trees = {path: ast.parse(text) for path, text in texts.items()}
    counted = sizes(texts)
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    floors = contract["importlinter:contract:floors"]["layers"].split("\n")
    every = "".join(texts.values())
    wide = sum(len(PRAGMA.split(line)[0]) > WIDTH for line in every.splitlines())
    packages = [path for path in LIBRARY.iterdir() if (path / "__init__.py").exists()]
    print(f"packages {len(packages)}, floors {sum(bool(line.strip()) for line in floors)}")
    print(f"circles of imports {circles(import_graph(trees)) or 0}")
    print(f"modules {len(texts)}, lines {len(every.splitlines())}")
    print(f"statements {sum(map(statements, trees.values()))}")
    print(f"files over {LINES} lines {over(LINES, counted.lines)}")
    print(f"functions over {BODY} lines {over(BODY, counted.bodies)}")
    print(f"functions over {PARAMETERS} parameters {over(PARAMETERS, counted.parameters)}")
    print(f"lines over {WIDTH} columns {wide}")
    for what, pattern in (
        ("Any", r"\bAny\b"),
        ("dict[str, Any]", r"dict\[str, Any\]"),
        ("type: ignore", r"type: ignore"),
    ):
        print(f"{what} {len(re.findall(pattern, every))}")


if __name__ == "__main__":
    main()
