"""What a researcher waits for when he reads: a table, a plan and a report of a sweep of hundreds of
runs, and ten thousand records in a notebook."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import verdict
from loraexp.records.reading import load_records
from loraexp.sweep import cells, reading

LORAEXP = str(Path(sys.executable).with_name("loraexp"))
SWEEP = "cg_lora_table1"  # 540 runs
MANY = 10_000
REPEATS = 3
TINY = ["experiment=smoke", "wandb.mode=disabled", "device=cpu", "train.max_steps=2"]


def template(folder: Path) -> dict[str, Any]:
    """The record of a real run."""
    subprocess.run(
        [LORAEXP, *TINY, f"output_root={folder}"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    record: dict[str, Any] = json.loads(next(folder.glob("*/*/record.json")).read_bytes())
    return record


def write(folder: Path, record: dict[str, Any], config: dict[str, Any], run_id: str) -> None:
    """A finished run of a configuration, as far as readers look."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "record.json"
    path.write_text(json.dumps(record | {"config": config, "run_id": run_id}, indent=1))
    # as records are when they are read: written a while ago
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)


def column_metrics(record: dict[str, Any], place: int) -> dict[str, Any]:
    """Metrics that every column of the table finds its value in."""
    names = ("accuracy", "matthews_correlation", "pearson", "f1", "log_likelihood")
    values = {name: 0.5 + 0.001 * (place % 97) for name in names}
    return record | {"metrics": {"dev": values, "test": values}}


def records_of_sweep(root: Path, record: dict[str, Any]) -> int:
    wanted = cells.expand(reading.load(SWEEP, None, [f"output_root={root}"]))
    for i, cell in enumerate(wanted):
        write(cell.folder, column_metrics(record, i), cell.plain, cell.run_id)
    return len(wanted)


def records_of_many(root: Path, record: dict[str, Any]) -> None:
    for i in range(MANY):
        config = record["config"] | {"seed": i, "output_root": str(root)}
        write(root / "tweets-tiny" / f"lora-s{i}-{i:010d}", record, config, f"{i:010d}")


Measured = tuple[float, float]  # seconds by the clock, and of the processor


def processor() -> float:
    """Seconds of the processor, of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def seconds(function: Callable[[], Any]) -> Measured:
    began, used = time.perf_counter(), processor()
    function()
    return time.perf_counter() - began, processor() - used


def show(name: str, measured: list[Measured], most: float) -> float:
    """Medians, and the target of the processor's: on a machine of one's own both are the same."""
    clock, used = (statistics.median(values) for values in zip(*measured, strict=True))
    print(
        f"{name:<44} {used:5.2f} s ({clock:5.2f} by the clock)"
        f"  {verdict(name, used, most=most, unit=' s')}",
        flush=True,
    )
    return used


def command(*words: str) -> Callable[[], Any]:
    return lambda: subprocess.run(
        [LORAEXP, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def expansion() -> float:
    """Cells a second, of a sweep that this process has seen once: its files are parsed."""
    wanted = reading.load(SWEEP)
    count = len(cells.expand(wanted))
    return statistics.median(
        count / seconds(lambda: cells.expand(wanted))[1] for _ in range(REPEATS)
    )


def main() -> dict[str, float]:
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = template(folder / "template")
        root, many = folder / "outputs", folder / "many"
        count = records_of_sweep(root, record)
        where = f"output_root={root}"
        os.environ["LORAEXP_CACHE"] = str(folder / "cache")
        for verb, most in {"table": 2.0, "plan": 3.0}.items():
            run = command(verb, SWEEP, where)
            first = seconds(run)  # of a version of the program: it checks and counts
            print(f"{f'loraexp {verb}, the first time':<44} {first[1]:5.2f} s", flush=True)
            measured = [seconds(run) for _ in range(REPEATS)]
            figures[verb] = show(f"loraexp {verb} of {count} runs with records", measured, most)
        run = command("report", where, "--to", str(folder / "report"))
        run()
        figures["report"] = show(
            "loraexp report of everything", [seconds(run) for _ in range(REPEATS)], 15.0
        )
        figures["cells"] = expansion()
        cells_said = verdict("cells a second", figures["cells"], least=1000)
        print(f"{'cells a second':<46} {figures['cells']:5.0f}    {cells_said}", flush=True)
        records_of_many(many, record)
        first = seconds(lambda: load_records(many))
        figures["load"] = show(f"load_records of {MANY:,}, first", [first], 5.0)
        again = [seconds(lambda: load_records(many)) for _ in range(REPEATS)]
        figures["again"] = show(f"load_records of {MANY:,}, again", again, 5.0)
    return figures


if __name__ == "__main__":
    main()
