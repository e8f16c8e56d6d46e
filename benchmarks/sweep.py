"""What a sweep in one process saves: six runs of MiniLM through the basic launcher against six
processes of their own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks import verdict

LORAEXP = str(Path(sys.executable).with_name("loraexp"))
# Short runs, as the cells of a reduced table are: what the process saves is its start, the weights
# and the tokens.
RUN = [
    "model=minilm",
    "task=tweets",
    "init=lora",
    "task.limit_train=320",
    "task.limit_eval=64",
    "train.eval_every=1000",
]
RUN += ["wandb.mode=disabled", "device=cpu", "train.max_steps=10"]
SEEDS, RATES = (0, 1, 2), (5e-4, 1e-3)
REPEATS = 3


def seconds(*commands: list[str]) -> float:
    began = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def once(folder: Path, number: int) -> tuple[float, float]:
    """Seconds of the sweep, and of the same six runs one by one."""
    path = folder / "six.yaml"
    grid = {"lr": list(RATES), "seed": list(SEEDS)}
    rows, columns = (
        {"lora": {"label": "LoRA"}},
        {"tweets": {"label": "Tweets", "value": "dev/accuracy"}},
    )
    content = {
        "title": "six runs",
        "paper": "none",
        "artifact": "bench",
        "kind": "table",
        "base": RUN,
        "grid": grid,
    }
    path.write_text(yaml.safe_dump(content | {"rows": rows, "columns": columns}))
    together = seconds([LORAEXP, "sweep", str(path), f"output_root={folder / f'sweep{number}'}"])
    points = [[f"lr={lr}", f"seed={seed}"] for lr in RATES for seed in SEEDS]
    apart = seconds(
        *([LORAEXP, *RUN, *point, f"output_root={folder / f'alone{number}'}"] for point in points)
    )
    return together, apart


def main() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # the tokens are cached for both
        seconds([LORAEXP, *RUN, "train.max_steps=0", f"output_root={folder / 'warm'}"])
        measured = [once(folder, number) for number in range(REPEATS)]
    ratios = sorted(together / apart for together, apart in measured)
    middle = ratios[len(ratios) // 2]
    for together, apart in measured:
        print(
            f"six runs of MiniLM: {together:5.1f} s in one sweep, {apart:5.1f} s in six processes,"
            f" ratio {together / apart:.2f}"
        )
    words = "sweep of six runs / six processes"
    print(f"{words:<44} {middle:5.2f}    {verdict(words, middle, most=0.7)}", flush=True)
    return {"sweep_ratio": middle}
