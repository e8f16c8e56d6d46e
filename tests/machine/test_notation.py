"""JSON and YAML from elsewhere: the value, or one line with the place and what is wrong there."""

import re
from pathlib import Path

import pytest

from loraexp.machine import notation
from loraexp.machine.files import Damaged

WRONG = {
    b"": "line 1: not JSON (Expecting value at column 1)",
    b'{"a": 1,\n "b": }': "line 2: not JSON (Expecting value at column 7)",
    b'{"a":\n "\xff"}': "line 2: not UTF-8 (byte 0xff)",
    b'["\\ud83d\\ude00",\n\n "\\udc00 x"]': "line 3: \\udc00 is half of a surrogate pair",
    b'{"question": "\\ud800"}': "line 1: \\ud800 is half of a surrogate pair",
    b"[1,\n" + b"9" * 5000 + b"]": "line 2: a number of 5000 digits",
    b"[1,\n" * 2000 + b"]" * 2000: "line 901: brackets nested too deeply",
    b"[" * 100_000 + b"]" * 100_000: "line 1: brackets nested too deeply",
    b'{"a": "NaN",\n "b": NaN}': "line 2: NaN is not JSON",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:20]))
def test_what_is_wrong_with_json_is_said_with_its_line(text: bytes) -> None:
    with pytest.raises(Damaged, match=f"^{re.escape(WRONG[text])}"):
        notation.parsed(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": ["\\ud83d\\ude00", 1.5]}', {"a": ["\U0001f600", 1.5]}),
        (b'"\\\\ud800"', "\\ud800"),  # a backslash and letters, no escape
        ('"ä"', "ä"),
        (b"9" * 4300, int("9" * 4300)),
    ],
)
def test_json_that_is_right_is_read(text: bytes | str, value: object) -> None:
    assert notation.parsed(text) == value


def test_a_file_of_another_kind_is_named_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"[]")
    with pytest.raises(
        Damaged, match=f"^{re.escape(str(path))}: holds a list, expected an object$"
    ):
        notation.read_json(path, dict)
    path.write_bytes(b"{}")
    assert notation.read_json(path, dict) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: 1\nb: ]", "line 2: not YAML"),
        (b"a: 1\nb: \xff", "line 2: not UTF-8 (byte 0xff)"),
        (b"- 1", "holds a list, expected an object"),
        (b"", "holds nothing, expected an object"),
        (b"a: " + b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"- " * 100_000, "nested too deeply"),
        (b"a: !!python/object/apply:os.system [id]", "not YAML"),
        (b"a: " + b"9" * 5000, "Exceeds the limit"),
    ],
    ids=lambda part: repr(part[:12]),
)
def test_what_is_wrong_with_yaml_is_said_with_its_file(
    text: bytes, said: str, tmp_path: Path
) -> None:
    """Also what would overflow the stack of the reader in C, which ends the process."""
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(Damaged, match=f"{re.escape(str(path))}.*{re.escape(said)}"):
        notation.read_yaml(path, dict)
