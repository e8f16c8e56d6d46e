"""The house as a newcomer sees it: every package has its page, every page is short, file names say
which room it is."""

from __future__ import annotations

from collections import Counter

import pytest

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
