"""`sweeps/RESULTS.md` in its parts: the lines of its overview, its sections, commands, claims."""

from __future__ import annotations

import re

from tests.support.helpers import REPOSITORY

SWEEPS = REPOSITORY / "sweeps"
TEXT = (SWEEPS / "RESULTS.md").read_text()
SECTION = re.compile(r"^## (?P<title>[^\n]+)\n(?P<body>.*?)(?=^##? |\Z)", re.M | re.S)
SECTIONS = {found["title"]: found["body"] for found in SECTION.finditer(TEXT)}
LINE = re.compile(
    r"^\| \[(?P<title>[^]]+)\]\(#(?P<anchor>[^)]+)\) \| (?P<what>[^|]+) \| (?P<time>[^|]+) \|"
    r" (?:(?P<holds>\d+) of (?P<claims>[1-9]\d*)|none made) \|$",
    re.M,
)
OVERVIEW = {found["title"]: found for found in LINE.finditer(TEXT)}
COMMAND = re.compile(r"`loraexp sweep ([^`]+)`(?: · (\d[\d. a-z]*))?")
VERDICT = re.compile(r"\| (holds|does not hold|not measured|not judged)[^|]*\|$", re.M)
