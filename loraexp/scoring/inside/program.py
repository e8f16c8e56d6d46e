"""A program that passes by coming to its end: it runs, and then a secret that it was not told is
written.

The secret is bound before the program is loaded. Whoever searches the memory of its own process
finds it: where a program must not be able to, `candidate` and `examiner` take its place.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any


def main(task: dict[str, Any], report: int, channel: int) -> None:
    secret, program = task.pop("secret").encode(), task.pop("program")
    write, leave, flush, output, errors = (
        os.write,
        os._exit,
        sys.stdout.flush,
        sys.stdout,
        sys.stderr,
    )
    space = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(compile(program, "<program>", "exec"), space.__dict__)
    except SystemExit as leaving:
        print("SystemExit:", leaving.code, file=errors)
        output.flush()
        leave(1)
    except BaseException:
        flush()  # before what the interpreter says of it
        raise
    flush()
    write(report, secret + b"\n")
    leave(0)
