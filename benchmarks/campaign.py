"""`python -m benchmarks.campaign [PART ...]`: everything that may befall a run or a sandbox, tried;
a table of what held.

Bounded and seeded: the same seed tries the same. Exit status 0 where all held, 1 where something
did not, with the reason and the words that try it alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import caches, damage, disks, hostile, kills, launchers, mistakes, preemption
from benchmarks.cases import Case, Reference, reference

PARTS: dict[str, tuple[str, Callable[[Reference, bool], list[Case]]]] = {
    "kills": ("a run killed with -9", kills.kills),
    "sweeps": ("two commands of a sweep, killed with -9", kills.sweeps),
    "damage": ("files damaged in a stopped run", damage.stopped),
    "finished": ("files damaged in a finished run", damage.finished),
    "disks": ("disks that are full or read-only", disks.disks),
    "caches": ("caches damaged, or their disk full", caches.caches),
    "launchers": ("torchrun, accelerate and sweep launchers", launchers.launchers),
    "signals": ("signals, and limits of the system", preemption.preemption),
    "inputs": ("wrong settings and files", mistakes.mistakes),
    "sandbox": ("attacks on the sandbox", hostile.attacks),
    "cheats": ("wrong programs that try to pass", hostile.cheats),
}


@dataclass
class Tally:
    tried: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""


def tally(cases: list[Case], place: Path, only: str | None) -> Tally:
    """Try each case in a folder of its own."""
    result, began = Tally(), time.monotonic()
    for number, case in enumerate(cases):
        if only is not None and only not in case.name:
            continue
        folder = place / str(number)
        folder.mkdir(parents=True)
        result.tried += 1
        try:
            reason = case.attempt(folder)
        except Exception as error:  # noqa: BLE001 - what the campaign did not expect did not hold either
            reason = f"{type(error).__name__}: {error}"
        if reason:
            result.failed.append((case.name, reason))
            print(f"  NOT HELD  {case.name}: {reason}", flush=True)
        with suppress(OSError):
            shutil.rmtree(folder)
    result.seconds = time.monotonic() - began
    return result


def table(results: dict[str, Tally]) -> str:
    rows = [("", "tried", "held", "seconds"), ("---", "---:", "---:", "---:")]
    for name, result in results.items():
        what = PARTS[name][0] + (f" ({result.note})" if result.note else "")
        rows.append(
            (
                what,
                str(result.tried),
                str(result.tried - len(result.failed)),
                f"{result.seconds:.0f}",
            )
        )
    tried, failed = (
        sum(one.tried for one in results.values()),
        sum(len(one.failed) for one in results.values()),
    )
    rows.append(
        (
            "all",
            str(tried),
            str(tried - failed),
            f"{sum(one.seconds for one in results.values()):.0f}",
        )
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without one"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a few cases of each part")
    parser.add_argument("--only", metavar="WORDS", help="cases whose name has these words")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)}: expected {', '.join(PARTS)}")
    results: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        place = Path(folder)
        wanted = options.parts or list(PARTS)
        like = (
            reference(place, options.seed)
            if set(wanted) - {"sandbox", "cheats"}
            else Reference(place, place, 0.0, hostile.NO_CHANCE)
        )
        for name in wanted:
            like.rng.seed(f"{options.seed} {name}")
            print(f"== {name}: {PARTS[name][0]}", flush=True)
            try:
                results[name] = tally(
                    PARTS[name][1](like, options.small), place / "cases" / name, options.only
                )
            except disks.NotHere as reason:
                results[name] = Tally(note=f"not tried: {reason}")
            print(table({name: results[name]}).splitlines()[2], flush=True)
    print(f"\n{table(results)}\n")
    failed = [
        (name, case, reason) for name, result in results.items() for case, reason in result.failed
    ]
    for name, case, reason in failed:
        print(f"{name}: {case}: {reason}")
        print(f"  python -m benchmarks.campaign {name} --seed {options.seed} --only {case!r}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
