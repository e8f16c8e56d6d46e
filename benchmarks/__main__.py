"""`python -m benchmarks [PART ...] [--quick]`: the named parts of the benchmark, or all of them.

`--quick` makes the parts that know how as short as shows that they work; their figures mean little.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
import traceback

from benchmarks import ASKED, Figure, summary

QUICK = "--quick"
PARTS = (
    "loop",
    "padding",
    "startup",
    "reading",
    "sweep",
    "initializers",
    "growth",
    "optimizers",
    "packed",
    "decoding",
    "gpu",
)


def main(words: list[str]) -> int:
    quick, names = QUICK in words, [word for word in words if word != QUICK]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(
            f"benchmarks: {unknown[0]}: there is no such part; choices: {', '.join(PARTS)}",
            file=sys.stderr,
        )
        return 2
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything measured is on this machine
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    figures: list[tuple[str, Figure]] = []
    failed: list[str] = []
    for name in names or PARTS:
        print(f"== {name}", flush=True)
        began, load = time.perf_counter(), os.getloadavg()[0]
        ASKED.clear()
        part = importlib.import_module(f"benchmarks.{name}").main
        short = {"quick": True} if quick and "quick" in inspect.signature(part).parameters else {}
        try:
            part(**short)
        except Exception:  # what the other parts measure is not lost
            traceback.print_exc()
            failed.append(name)
        figures += [(name, figure) for figure in ASKED]
        taken, after = time.perf_counter() - began, os.getloadavg()[0]
        print(f"   ({taken:.0f} s; load {load:.1f} before, {after:.1f} after)\n", flush=True)
    if figures:
        print(f"== targets\n{summary(figures)}")
    if failed:
        print(f"benchmarks: did not end: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
