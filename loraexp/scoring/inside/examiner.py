"""The judge: it runs a benchmark's own tests on a function that lives in another sandbox, and tells
what came out.

Tests, expected values and the verdict are here alone. The function of the tests is a stand-in that
sends its arguments to the program and takes back a plain value. A program that ends, or answers
with what is no value, has failed, whatever the tests make of it.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from typing import Any

from loraexp.scoring.inside.plain import Stranger, Wire, decode, encode


class Ended(BaseException):
    """The program has gone, or has sent what is no value."""


class Trial:
    """The conversation with one program."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.over = ""  # why, once it is

    def end(self, reason: str) -> Ended:
        self.over = self.over or reason
        return Ended(self.over)

    def heard(self) -> dict[str, Any]:
        """The program's next message. Raises: Ended."""
        try:
            message = self.wire.receive()
        except (ValueError, RecursionError, MemoryError) as error:
            raise self.end(f"an answer that is no plain value ({error})") from None
        if message is None:
            raise self.end("gone")
        return message

    def ask(self, function: str, places: tuple[Any, ...], names: dict[str, Any]) -> Any:
        """What the program's function returns or raises for these arguments, which it may
        change."""
        if self.over:
            raise Ended(self.over)
        sent = {
            "function": function,
            "places": encode(list(places), strict=True),
            "names": encode(names, strict=True),
        }
        try:
            self.wire.send(sent)
        except OSError:
            raise self.end("gone") from None
        told = self.heard()
        try:
            if "changed" in told:
                changed_places, changed_names = (decode(part) for part in told["changed"])
                renew(places, changed_places)
                renew(tuple(names.values()), list(changed_names.values()))
            if "raised" in told:
                raised = exception([str(name) for name in told["raised"]], str(told["text"]))
            else:
                return decode(told["value"])
        except Exception as error:
            raise self.end(
                f"an answer that is no plain value ({type(error).__name__}: {error})"[:200]
            ) from None
        raise raised


def renew(values: tuple[Any, ...], after: list[Any]) -> None:
    """Give the containers among the arguments the content that the program left in its copies."""
    for value, new in zip(values, after, strict=True):
        if type(value) is not type(new) or isinstance(new, Stranger):
            continue
        if type(value) in (list, bytearray):
            value[:] = new
        elif type(value) in (dict, set):
            value.clear()
            value.update(new)


def exception(names: list[str], text: str) -> Exception:
    """An exception of the first of these classes that is built in."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError takes more than words
                continue
    return RuntimeError(text)


def examine(task: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """Run the tests: `passed`, and else why not."""
    entry, space = task["entry"], {"__name__": "__main__"}

    def function(*places: Any, **names: Any) -> Any:
        return trial.ask(entry, places, names)

    try:
        if trial.heard() != {"loaded": True}:
            raise trial.end("not loaded")
        exec(compile(task["opening"], "<opening>", "exec"), space)
        space[entry] = function  # type: ignore[assignment]
        exec(compile(task["test"], "<test>", "exec"), space)
        exec(compile(f"check({entry})", "<call>", "exec"), space)
    except Ended:
        pass
    except BaseException as error:
        words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return {"passed": False, "ended": trial.over, "detail": words[:1000]}
    return {"passed": not trial.over, "ended": trial.over, "detail": ""}


def main(task: dict[str, Any], report: int, channel: int) -> None:
    sys.modules["__main__"] = type(sys)("__main__")
    verdict = examine(task, Trial(Wire(channel)))
    sys.stdout.flush()
    os.write(report, json.dumps(verdict).encode() + b"\n")
    os._exit(0)
