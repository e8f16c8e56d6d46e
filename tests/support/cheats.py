"""Programs that are wrong and try to pass all the same: the table in cheats.txt."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import ordinary


@dataclass(frozen=True)
class Cheat:
    name: str
    body: str  # of the function, one line
    below: str  # after the function, at the outermost level

    def program(self, opening: str, arguments: str) -> str:
        """The whole program, for a function of these arguments (as a tuple in Python)."""
        return f"{opening}    {self.body.replace('PLACES', arguments)}\n{self.below}"


@cache
def cheats() -> tuple[Cheat, ...]:
    text = (Path(__file__).parent / "cheats.txt").read_text()
    table, *shared = text.split("\n=== ")
    pieces = {name: piece for name, _, piece in (one.partition("\n") for one in shared)}

    def filled(below: str) -> str:
        below = re.sub(
            r"\{OVER (\w+)\}", lambda found: pieces["OVER"].replace("KIND", found.group(1)), below
        )
        return re.sub(r"\{([A-Z_]+)\}", lambda found: pieces[found.group(1)], below)

    made = []
    for part in table.split("\n### ")[1:]:
        name, _, rest = part.partition("\n")
        body, _, below = rest.partition("\n---\n")
        made.append(Cheat(name, body.strip(), filled(below)))
    return tuple(made)


# Judges the cases of a file; prints the outcomes, the seconds, and the defunct processes that were
# left to this one.
SCRIPT = """
import ctypes, json, sys, time
from pathlib import Path
# what its children leave behind comes to it, as to the first process of a container
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
from loraexp.scoring import judge
from loraexp.scoring.sandbox import Limits
cases = [judge.Case(**one) for one in json.loads(Path(sys.argv[1]).read_text())]
started = time.monotonic()
outcomes = judge.judge_all(cases, workers=2, limits=Limits(seconds=float(sys.argv[2])))
seconds = time.monotonic() - started
defunct = [
    stat.parent.name for stat in Path("/proc").glob("[0-9]*/stat")
    if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    and int(stat.read_text().rpartition(")")[2].split()[1]) == __import__("os").getpid()
]
told = [[o.status, o.detail, o.inside] for o in outcomes]
print(json.dumps({"outcomes": told, "seconds": seconds, "defunct": defunct}))
"""


def judged(cases: list[dict[str, str]], *, own: bool, seconds: float = 10.0) -> dict[str, Any]:
    """How the judge, in a process of this user or of an ordinary one, finds the cases; what it left
    behind."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        file = Path(place) / "cases.json"
        file.write_text(json.dumps(cases))
        found: dict[str, Any] = json.loads(
            ordinary.python(SCRIPT, str(file), str(seconds), seconds=240, own=own)
        )
    return found
