"""Plain values as text: what crosses the wall between a hostile program and its judge.

Nothing of the sender's is run at the receiver: a value is named by its kind and rebuilt from
built-in types alone, so a list whose `__eq__` is always true arrives as the list that it holds.
Numbers arrive bit for bit.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

LONGEST = 8 * 1024 * 1024  # bytes of one message
JSON_SAFE = 2**53  # whole numbers below it are written as they are


class NotPlain(TypeError):
    """A value that cannot cross: a function, a class, a file."""


class Stranger:
    """What stands for an object that is no plain value: equal to nothing, usable for nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<an object of class {self.kind}>"


def encode(value: Any, strict: bool = False) -> Any:
    """A value for JSON. Subclasses are written as the built-in value that they hold.

    An object of another class becomes a `Stranger`. Raises: NotPlain for it where `strict`.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -JSON_SAFE < number < JSON_SAFE else ["int", hex(number)]
    if isinstance(value, float):
        return ["float", float.hex(float.__float__(value))]
    if isinstance(value, complex):
        real, imaginary = (
            complex.__getattribute__(value, "real"),
            complex.__getattribute__(value, "imag"),
        )
        return ["complex", [real.hex(), imaginary.hex()]]
    return _encode_container(value, strict)


def _encode_container(value: Any, strict: bool) -> Any:
    if isinstance(value, dict):
        pairs = list(dict.items(value))
        return ["dict", [[encode(key, strict), encode(item, strict)] for key, item in pairs]]
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [name, [encode(item, strict) for item in list(kind.__iter__(value))]]
    if isinstance(value, (bytes, bytearray)):
        return [
            "bytearray" if isinstance(value, bytearray) else "bytes",
            bytes(memoryview(value)).hex(),
        ]
    if type(value) is range:
        return ["range", [encode(number) for number in (value.start, value.stop, value.step)]]
    if isinstance(value, Fraction):
        return ["fraction", [hex(value.numerator), hex(value.denominator)]]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if (
        type(value).__module__ == "numpy"
        and getattr(value, "ndim", None) == 0
        and hasattr(value, "item")
    ):
        return encode(value.item(), strict)
    if strict:
        raise NotPlain(f"an object of class {type(value).__name__} is no plain value")
    if isinstance(value, Iterator):
        return ["iterator", [encode(item) for item in value]]
    return ["stranger", type(value).__name__[:100]]


def decode(value: Any) -> Any:
    """The value that was written. Raises: ValueError or TypeError for what `encode` does not
    write."""
    if value is None or type(value) in (bool, str, int):
        return value
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
        raise ValueError("not a plain value")
    kind, held = value
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]([decode(item) for item in _items(held)])
    if kind == "dict":
        return {decode(key): decode(item) for key, item in map(_items, _items(held))}
    if kind not in _SCALARS:
        raise ValueError("not a plain value")
    return _SCALARS[kind](held)


def _items(held: Any) -> list[Any]:
    if type(held) is not list:
        raise ValueError("not a plain value")
    return held


_SEQUENCES: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}
_CONTAINERS: dict[str, Any] = _SEQUENCES | {
    "iterator": iter,
    "range": lambda numbers: range(*numbers),
}
_SCALARS: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "fraction": lambda parts: Fraction(*(int(part, 16) for part in parts)),
    "decimal": Decimal,
    "stranger": Stranger,
}


class Wire:
    """Messages over a socket: four bytes of length, then JSON."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)

    def send(self, message: dict[str, Any]) -> None:
        """Raises: ValueError for a message that is too long."""
        text = json.dumps(message).encode()
        if len(text) > LONGEST:
            raise ValueError(f"a value of more than {LONGEST} bytes")
        self._socket.sendall(len(text).to_bytes(4, "big") + text)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where the other side has gone. Raises: ValueError for what is no
        message."""
        head = self._exactly(4)
        if head is None:
            return None
        length = int.from_bytes(head, "big")
        if length > LONGEST:
            raise ValueError("a message that is too long")
        text = self._exactly(length)
        message = None if text is None else json.loads(text)
        if message is not None and type(message) is not dict:
            raise ValueError("not a message")
        return message

    def _exactly(self, length: int) -> bytes | None:
        pieces = bytearray()
        while len(pieces) < length:
            try:
                piece = self._socket.recv(min(length - len(pieces), 65536))
            except ConnectionError:
                return None
            if not piece:
                return None
            pieces += piece
        return bytes(pieces)
