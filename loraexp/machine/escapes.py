"""Text that somebody else wrote, made safe to show: nothing in it can steer a terminal or turn a
line around."""

from __future__ import annotations

import re

# Control characters but tab and line feed; marks that reorder text; line separators; halves of
# surrogate pairs.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""The text with each unsafe character as `\u001b`, for a terminal, a page, or inside JSON,
    which reads it back.

    >>> printable("\x1b[2J red\ttab")
    '\\u001b[2J red\ttab'
    """
    return UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
