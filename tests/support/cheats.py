"""Programs that are wrong and try to pass all the same: the table in cheats.txt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


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
        below = re.sub(r"\{OVER (\w+)\}", lambda found: pieces["OVER"].replace("KIND", found.group(1)), below)
        return re.sub(r"\{([A-Z_]+)\}", lambda found: pieces[found.group(1)], below)

    made = []
    for part in table.split("\n### ")[1:]:
        name, _, rest = part.partition("\n")
        body, _, below = rest.partition("\n---\n")
        made.append(Cheat(name, body.strip(), filled(below)))
    return tuple(made)
