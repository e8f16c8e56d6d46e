"""How long a user waits: for `--help`, for `--cfg job`, and from the command to the first training
step."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import verdict

LORAEXP = str(Path(sys.executable).with_name("loraexp"))  # the console script of this environment
QUICK_REPEATS, RUN_REPEATS = 5, 3
PATIENCE = 120.0  # seconds after which a run that logs no step is given up


def answer(*arguments: str) -> float:
    """Seconds until the command has answered."""
    began = time.perf_counter()
    subprocess.run([LORAEXP, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_step() -> float:
    """Seconds from the command to the first line of metrics.jsonl: the default run, its first step
    included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [LORAEXP, f"output_root={folder}", "train.log_every=1", "train.max_steps=1"]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while not any(path.stat().st_size for path in Path(folder).glob("*/*/metrics.jsonl")):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                    raise RuntimeError(
                        f"{' '.join(command)}: no training step (exit status {process.poll()}); run"
                        " it by hand"
                    )
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            if process.poll() is None:
                # the group: W&B's own process writes in the folder too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> dict[str, float]:
    figures: dict[str, float] = {}
    # the byte code is compiled and the files are in memory, as for anyone's second command
    answer("--help")
    for name, arguments in {"help": ["--help"], "cfg": ["--cfg", "job"]}.items():
        seconds = [answer(*arguments) for _ in range(QUICK_REPEATS)]
        figures[f"{name}_seconds"] = show(f"loraexp {' '.join(arguments)}", seconds, 1.0)
    first_step()  # the tokens of the default task are cached
    seconds = [first_step() for _ in range(RUN_REPEATS)]
    figures["first_step_seconds"] = show("loraexp, to the first training step, warm", seconds, 8.0)
    return figures


def show(name: str, seconds: list[float], most: float) -> float:
    middle = statistics.median(seconds)
    spread = f"({min(seconds):.2f} … {max(seconds):.2f})"
    print(
        f"{name:<44} {middle:5.2f} s  {spread:<16} {verdict(name, middle, most=most, unit=' s')}",
        flush=True,
    )
    return middle
