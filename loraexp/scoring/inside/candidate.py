"""The program on trial: it is loaded, and its functions are called with plain values as its judge
asks.

All that it can do to its judge is to answer with other plain values.
"""

from __future__ import annotations

import os
import sys
import traceback
import types
from typing import Any

from loraexp.scoring.inside.plain import Wire, decode, encode


def answer(space: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Call what is asked for; its result, or its exception by the names of its classes; arguments
    that it changed."""
    places, names = decode(asked["places"]), decode(asked["names"])
    before = [encode(value) for value in (places, names)]
    try:
        value = encode(space[asked["function"]](*places, **names))
    except Exception as error:
        told = {
            "raised": [kind.__name__ for kind in type(error).__mro__],
            "text": str(error)[:1000],
        }
    else:
        told = {"value": value}
    after = [encode(value) for value in (places, names)]
    return told if after == before else {**told, "changed": after}


def load(program: str) -> dict[str, Any]:
    space = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program, "<program>", "exec"), space.__dict__)
    return space.__dict__


def main(task: dict[str, Any], report: int, channel: int) -> None:
    os.close(report)
    wire, status = Wire(channel), 1
    try:
        space = load(task["program"])
        wire.send({"loaded": True})
        while (asked := wire.receive()) is not None:
            wire.send(answer(space, asked))
        status = 0
    except SystemExit as leaving:
        print("SystemExit:", leaving.code, file=sys.stderr)
    except BaseException:
        sys.stdout.flush()
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)
