"""The house as a newcomer sees it: every package has its page, every page is short, file names say
which room it is."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks import house
from tests.support.helpers import REPOSITORY

PACKAGES = sorted(path.parent.name for path in REPOSITORY.glob("loraexp/*/__init__.py"))
# on two floors, on purpose
TWICE = {
    "__init__",
    "reading",
    "sweep",
    "plan",
    "cache",
    "records",
    "formats",
    "alignment",
    "finished",
    "costs",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_a_page_of_at_most_ten_lines(package: str) -> None:
    text = (REPOSITORY / "loraexp" / package / "README.md").read_text()
    assert text.startswith(f"# {package}\n")
    assert len(text.splitlines()) <= 10
    assert "Read `" in text, "what to read first"
    named = [
        word.strip("`") for word in text.split() if word.startswith("`") and word.endswith(".py`")
    ]
    assert all((REPOSITORY / "loraexp" / package / name).exists() for name in named), named


def test_a_file_name_is_used_once_but_for_those_that_are_meant_twice() -> None:
    methods = {"initializers", "optimizers", "tasks"}  # named after what they are about
    names = Counter(
        path.stem for path in REPOSITORY.glob("loraexp/*/*.py") if path.parent.name not in methods
    )
    assert {name for name, count in names.items() if count > 1} <= TWICE


def own_names(tree: ast.Module) -> set[str]:
    """What a test file has of the library, by the name that it has there."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loraexp")
        for alias in node.names
    }


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def trespasses(tree: ast.Module) -> Iterator[str]:
    """Where a test reads, patches or imports a private place of the library, or imports from
    another test."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if any(part.startswith("test_") for part in (node.module or "").split(".")):
                yield f"line {node.lineno}: imports from {node.module}"
            if (node.module or "").startswith("loraexp"):
                yield from (
                    f"line {node.lineno}: imports {alias.name}"
                    for alias in node.names
                    if private(alias.name)
                )
        elif isinstance(node, ast.Attribute) and private(node.attr):
            root: ast.expr = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in own:
                yield f"line {node.lineno}: reads {root.id}…{node.attr}"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            name = next((word for word in words if isinstance(word, str)), "")
            whole = name.startswith("loraexp.") or getattr(node.args[0], "id", "") in own
            if whole and private(name.rpartition(".")[2]):
                yield f"line {node.lineno}: patches {name}"


@pytest.mark.parametrize(
    "code",
    [
        "from tests.run.test_train import adapted",
        "from loraexp.statistics.probes import _draw",
        "from loraexp.scoring import generate\ngenerate._parts()",
        "from loraexp.data import tokens\nmonkeypatch.setattr(tokens, '_tokenise', None)",
        "monkeypatch.setattr('loraexp.data.tokens._tokenise', None)",
    ],
)
def test_a_trespass_is_seen(code: str) -> None:
    assert len(list(trespasses(ast.parse(code)))) == 1


def test_tests_use_public_places_and_share_by_way_of_support() -> None:
    found = {
        str(path.relative_to(REPOSITORY)): list(trespasses(ast.parse(path.read_text())))
        for folder in ("tests", "benchmarks")
        for path in REPOSITORY.glob(f"{folder}/**/*.py")
    }
    assert not {path: lines for path, lines in found.items() if lines}


def test_no_module_reaches_itself_by_imports_those_inside_functions_included() -> None:
    trees = {path: ast.parse(path.read_text()) for path in house.LIBRARY.rglob("*.py")}
    assert house.circles(house.import_graph(trees)) == []
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_no_file_and_no_function_outgrows_the_house() -> None:
    """350 lines, 50 lines without the docstring, 8 parameters: what is larger is two things."""
    large = house.sizes(house.texts_of()).large
    assert large == {"lines": {}, "bodies": {}, "parameters": {}}


def function_of(parameters: list[str], lines: int, docstring: int = 0) -> str:
    words = "a line\n" * docstring
    body = "\n".join(f"    x = {i}" for i in range(lines))
    return f'def f({", ".join(parameters)}):\n    """{words}"""\n{body}\n'


NINE = [f"a{i}" for i in range(9)]


def test_what_outgrows_the_house_is_seen() -> None:
    where = house.LIBRARY / "cli" / "not_there.py"
    for text, large in (
        (function_of(NINE[1:], 49, docstring=60), {}),  # a docstring is no line of code
        (function_of(NINE, 49), {"parameters": {"cli.not_there.f": 9}}),
        (function_of([], 50), {"bodies": {"cli.not_there.f": 51}}),
        ("\n" * 350, {}),
        ("\n" * 351, {"lines": {"loraexp/cli/not_there.py": 351}}),
    ):
        found = house.sizes({where: text}).large
        assert {kind: sizes for kind, sizes in found.items() if sizes} == large


def test_a_method_has_the_parameters_that_its_yaml_names_and_eight_others() -> None:
    where = house.LIBRARY / "initializers" / "lora_ga.py"
    keys = sorted(house.keys_of_yamls()["initializers.lora_ga.lora_ga"] & {"gamma", "flavour"})
    assert len(keys) == 2
    for extra, large in (([], {}), (["of_no_yaml"], {"initializers.lora_ga.lora_ga": 9})):
        text = function_of([*NINE[1:], *keys, *extra], 1).replace("def f", "def lora_ga")
        assert house.sizes({where: text}).large["parameters"] == large
        other = text.replace("def lora_ga", "def another")  # no yaml names it
        assert set(house.sizes({where: other}).large["parameters"]) == {
            "initializers.lora_ga.another"
        }
