"""Whether two expressions in LaTeX are equal, as math-verify and sympy find it, in a process that
can be ended.

A model's text may ask for 9^{9^{9}}: no alarm ends a product of big integers, so the comparison has
its own process, with limits of memory and of time for each question. It is started by the first
question and ends with this process.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.metadata import version

SECONDS = 5.0  # for one question
START_SECONDS = 60.0  # for the process's imports
MEMORY = 2 * 1024**3  # bytes of its address space
LONGEST = 300  # characters of an expression that is worth asking about
LIBRARY = "math-verify"

# It reads a JSON line (answer, truth) and writes one (true or false). A list that is equal as a set
# is equal: solutions have no order. Relative 1e-6 is for what has no exact form; numbers never come
# here.
SERVER = r"""
import json, logging, os, resource, sys, warnings
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
def read(text):
    return parse("\\boxed{" + text + "}", parsing_timeout=None)
print("ready", file=answers)
for line in sys.stdin:
    answer, truth = json.loads(line)
    try:
        found = bool(verify(read(truth), read(answer), timeout_seconds=None))
    except Exception:
        found = False
    print(json.dumps(found), file=answers)
"""


class Algebra:
    """`ALGEBRA.equal(answer, truth)`; what cannot be read, or is not decided in time, is not
    equal."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], bool] = {}

    @staticmethod
    def about() -> str:
        return f"{LIBRARY} {version(LIBRARY)}"

    def equal(self, answer: str, truth: str) -> bool:
        """Raises: RuntimeError where math-verify cannot be started."""
        if max(len(answer), len(truth)) > LONGEST:
            return False
        with self._lock:
            key = (answer, truth)
            if key not in self._known:
                self._known[key] = self._ask(answer, truth)
            return self._known[key]

    def _ask(self, answer: str, truth: str) -> bool:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([answer, truth]) + "\n")
            process.stdin.flush()
            line = self._line(process, SECONDS)
        except OSError:
            line = ""
        if not line:
            self.end()
        return line == "true"

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-c", SERVER, str(MEMORY)]
            pipes = {
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.DEVNULL,
            }
            self._process = subprocess.Popen(command, text=True, bufsize=1, **pipes)  # type: ignore[call-overload]
            if self._line(self._process, START_SECONDS) != "ready":
                self.end()
                raise RuntimeError(
                    f"{LIBRARY} does not start, and MATH's answers are compared by it: pip install"
                    f" {LIBRARY}"
                )
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[str], seconds: float) -> str:
        """The next line that the process writes; empty where none comes in time."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline().strip() if selector.select(timeout=seconds) else ""

    def end(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            self._process.wait()
            self._process = None


ALGEBRA = Algebra()
