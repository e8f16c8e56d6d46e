"""`python -m benchmarks [PART ...] [--quick]`: the named parts of the benchmark, or all of them.

`--quick` makes the parts that know how as short as shows that they work; their figures mean little.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time

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
    for name in names or PARTS:
        print(f"== {name}", flush=True)
        began, load = time.perf_counter(), os.getloadavg()[0]
        part = importlib.import_module(f"benchmarks.{name}").main
        part(**{"quick": True} if quick and "quick" in inspect.signature(part).parameters else {})
        taken, after = time.perf_counter() - began, os.getloadavg()[0]
        print(f"   ({taken:.0f} s; load {load:.1f} before, {after:.1f} after)\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
