"""`python -m benchmarks.house`: what the house is held to, counted from its own files.

Packages and floors, circles of imports (those inside functions count), files and functions that
have grown, parameters, statements, wide lines, `Any`. Docstrings are not counted.
"""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "loraexp"
LINES, BODY, PARAMETERS, WIDTH = 350, 50, 8, 100
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


def parameters(function: Function) -> int:
    """Named ones, `self` and `cls` apart."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in names)


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


def main() -> None:
    paths = sorted(LIBRARY.rglob("*.py"))
    texts = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    floors = contract["importlinter:contract:floors"]["layers"].split("\n")
    bodies, given = {}, {}
    for path, tree in trees.items():
        for one in functions(tree):
            name = f"{name_of(path).removeprefix('loraexp.')}.{one.name}:{one.lineno}"
            bodies[name] = size(one)
            given[name] = parameters(one)
    lines = {str(path.relative_to(ROOT)): len(text.splitlines()) for path, text in texts.items()}
    every = "".join(texts.values())
    packages = [path for path in LIBRARY.iterdir() if (path / "__init__.py").exists()]
    print(f"packages {len(packages)}, floors {sum(bool(line.strip()) for line in floors)}")
    print(f"circles of imports {circles(import_graph(trees)) or 0}")
    print(f"modules {len(paths)}, lines {len(every.splitlines())}")
    print(f"statements {sum(map(statements, trees.values()))}")
    print(f"files over {LINES} lines {over(LINES, lines)}")
    print(f"functions over {BODY} lines {over(BODY, bodies)}")
    print(f"functions over {PARAMETERS} parameters {over(PARAMETERS, given)}")
    print(f"lines over {WIDTH} columns {sum(len(x) > WIDTH for x in every.splitlines())}")
    for what, pattern in (
        ("Any", r"\bAny\b"),
        ("dict[str, Any]", r"dict\[str, Any\]"),
        ("type: ignore", r"type: ignore"),
    ):
        print(f"{what} {len(re.findall(pattern, every))}")


if __name__ == "__main__":
    main()
