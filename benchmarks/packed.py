"""Runs that share their passes over one base, beside the same runs one after another: how much
faster, and in how much of the memory.

The runs are whole ones, as a sweep makes them, stepped by hand: a lone run, two that share their
passes and six that do take turns, so that a drift of the machine meets all of them; forward,
backward and rule, without loading, evaluation or checkpoints, on rows of equal length, in one
thread. Memory: a process of its own for each number of runs, above what it held before they began.
`python -m benchmarks.packed smollm2-135m` measures the whole of that model: thirty minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import importlib
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import verdict
from loraexp import config
from loraexp.machine.measure import available_bytes, peak_bytes, reset_peak
from loraexp.machine.signals import watched
from loraexp.run import packed
from loraexp.sweep.packs import fitting
from tests.support.forks import IMPORTED
from tests.support.helpers import REPOSITORY

CPU = torch.device("cpu")
RUNS = (2, 6)
ROUNDS, WARM_UP, SECONDS = 5, 2, 0.3  # SECONDS: the least time of a lone run in a round
ROWS = 512
LEAST_AT_ONE_ROW, LEAST = 1.3, 1.0
NOISE = 0.03  # what two measurements of the same thing differ by


@dataclass(frozen=True)
class Shape:
    """Passes of a step, and of each its rows and their tokens."""

    passes: int
    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.rows} × {self.tokens}"


SHAPES = (Shape(4, 1, 64), Shape(1, 8, 16), Shape(1, 32, 16))


@dataclass(frozen=True)
class Base:
    """A model that runs share: how it is composed, and whether it is an encoder."""

    title: str
    overrides: tuple[str, ...]
    encoder: bool = False


MINILM = Base("MiniLM", ("model=minilm",), encoder=True)
SMOLLM2 = Base("SmolLM2-135M", ("model=smollm2-135m",))
# six of SmolLM2's thirty layers, over a small vocabulary and with random weights: a pass in a tenth
# of the time
SIX_LAYERS = Base(
    "LLaMA, six layers",
    (
        "model=tiny-llama",
        *(
            f"model.config.{key}={value}"
            for key, value in {
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 6,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
            }.items()
        ),
    ),
)
MODELS = {"minilm": MINILM, "smollm2-135m": SMOLLM2, "six-layers": SIX_LAYERS}
MEASURED = ("minilm", "six-layers")


def table(folder: Path) -> Path:
    """Rows that are longer than any shape, so that all are cut to its tokens."""
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["q", "a", "label"])
        rows.writerows([f"say {i}", f"{i} " + "and then " * 40, i % 2] for i in range(ROWS))
    return folder


def words(model: str, shape: Shape, folder: Path, device: str = "cpu") -> list[str]:
    base = MODELS[model]
    if base.encoder:
        task = ["task.text=[a]"]
    else:
        task = ["task.prompt='{q}:'", "task.response='{a}'", "task.held_out=8"]
    never = [f"train.{key}=1000000" for key in ("max_steps", "eval_every", "log_every")]
    return [
        *(*base.overrides, "task=data", f"task.data_dir={folder}", *task),
        *(
            f"task.max_length={shape.tokens}",
            "init=lora",
            "init.samples=2",
            f"device={device}",
            "wandb.mode=disabled",
        ),
        *(f"train.batch_size={shape.passes * shape.rows}", f"train.micro_batches={shape.passes}"),
        *(*never, "train.checkpoint_every=1000000"),
    ]


class Together:
    """Runs that share their passes, or one alone, each before its next step."""

    def __init__(self, name: str, common: Sequence[str], runs: int, stop: object) -> None:
        self.members = []
        for i in range(runs):
            own = [*common, f"lr={1 + i}e-5", f"output_root={name}"]
            settings, plain = config.check(config.compose(own))
            self.members.append(packed.Member(settings, plain, stop))  # type: ignore[arg-type]
        self.passes = packed.Passes()
        for member in self.members:
            member.go_on()
            if member.ahead is None:
                raise member.outcome  # type: ignore[misc]

    def step(self) -> None:
        if len(self.members) == 1:
            next(self.members[0].story)  # as a run goes on that nobody shares the process with
            return
        if len(self.passes.next(self.members)) < len(self.members):
            raise RuntimeError("the runs did not share their passes")
        for member in self.members:
            member.go_on()

    def seconds(self, steps: int) -> tuple[float, float]:
        """Of so many steps of every run, by the processor and by the clock."""
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.process_time() - worked, time.perf_counter() - began

    def end(self) -> None:
        for member in self.members:
            member.end(KeyboardInterrupt())


def ratios(
    model: str,
    shape: Shape,
    numbers: Sequence[int],
    rounds: int,
    least: float,
    device: str = "cpu",
) -> dict[int, list[list[float]]]:
    """Of every number of runs, by the processor and by the clock, in every round: the time of as
    many lone ones in units of theirs."""
    with tempfile.TemporaryDirectory() as place, watched() as stop:
        folder = table(Path(place))
        common = words(model, shape, folder, device)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            groups = {k: Together(f"{place}/{k}", common, k, stop) for k in (1, *numbers)}
            for group in groups.values():
                group.seconds(WARM_UP)
            steps = max(1, round(least / groups[1].seconds(1)[0]))
            found: dict[int, list[list[float]]] = {k: [[], []] for k in numbers}
            before = groups[1].seconds(steps)
            for _ in range(rounds):
                for k in numbers:
                    spent, after = groups[k].seconds(steps), groups[1].seconds(steps)
                    for i in range(2):
                        found[k][i].append(k * (before[i] + after[i]) / 2 / spent[i])
                    before = after
            for group in groups.values():
                group.end()
    return found


def memory(model: str, shape: Shape, runs: int, into: Any) -> None:
    """Bytes at the peak of a few steps of so many runs, above what the process held before; runs in
    a process of its own."""
    with (
        tempfile.TemporaryDirectory() as place,
        watched() as stop,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        common = words(model, shape, table(Path(place)))
        torch.nn.Linear(64, 64)(torch.zeros(64, 64)).sum().backward()
        gc.collect()
        reset_peak(CPU)
        resting = peak_bytes(CPU)
        group = Together(f"{place}/runs", common, runs, stop)
        reset_peak(CPU)  # loading is not training
        group.seconds(WARM_UP)
        into.put(peak_bytes(CPU) - resting)
        group.end()


def memories(model: str, shapes: Sequence[Shape]) -> dict[str, int]:
    """`memory` by `shape/runs`, each of a process that is forked from this one, which has imported
    everything."""
    torch.set_num_threads(1)
    for name in (*IMPORTED, "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    fork, found = multiprocessing.get_context("fork"), {}
    for shape in shapes:
        for runs in (1, *RUNS):
            into = fork.SimpleQueue()
            process = fork.Process(target=memory, args=(model, shape, runs, into))
            process.start()
            process.join()
            if process.exitcode:
                raise RuntimeError(f"{runs} runs of {model}, {shape}: status {process.exitcode}")
            found[f"{shape}/{runs}"] = into.get()
    return found


def in_own_process(model: str, shapes: Sequence[Shape]) -> dict[str, int]:
    """`memories`, where the allocator gives every freed block back."""
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.packed", model, f"--memory={len(shapes)}"],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def automatic(model: str, shape: Shape, device: str = "cpu") -> int:
    """How many runs `sweep.pack=auto` lets share a pass of this shape."""
    with tempfile.TemporaryDirectory() as place:
        common = words(model, shape, table(Path(place)), device)
        settings = config.check(config.compose([*common, "sweep.pack=auto"]))[0]
        return fitting(settings, available_bytes(settings.device), sharing=1)


def main(quick: bool = False, models: Sequence[str] = MEASURED) -> dict[str, float]:
    """Print the ratios of as many runs as `sweep.pack=auto` lets share a pass; returns them by
    `model/shape/runs`. `quick`: one shape, a step a round."""
    shapes = SHAPES[:1] if quick else SHAPES
    rounds, least = (2, 0.0) if quick else (ROUNDS, SECONDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread, median of"
        f" {rounds} rounds; memory in units of as many processes"
    )
    print(f"{'':36} {'runs':>4} {'processor':>21} {'clock':>6} {'memory':>7}")
    figures: dict[str, float] = {}
    for model in models:
        most = {shape: automatic(model, shape) for shape in shapes}
        held = in_own_process(model, [shape for shape in shapes if most[shape] >= min(RUNS)])
        for shape in shapes:
            name = f"{MODELS[model].title}, {shape}"
            numbers = [k for k in RUNS if k <= most[shape]]
            if len(numbers) < len(RUNS):
                print(f"{name:36} auto packs {most[shape]}", flush=True)
            if not numbers:
                continue
            found = ratios(model, shape, numbers, rounds, least)
            target, noise = (LEAST_AT_ONE_ROW, 0.0) if shape.rows == 1 else (LEAST, NOISE)
            for k in numbers:
                by_processor, by_clock = found[k]
                ratio = statistics.median(by_processor)
                share = held[f"{shape}/{k}"] / (k * held[f"{shape}/1"])
                spread = f"{ratio:.2f} ({min(by_processor):.2f} … {max(by_processor):.2f})"
                said = verdict(f"{name}, {k} runs", ratio, least=target, noise=noise)
                clock = statistics.median(by_clock)
                print(
                    f"{name:36} {k:4} {spread:>21} {clock:6.2f} {share:7.2f}   {said}",
                    flush=True,
                )
                figures |= {
                    f"{model}/{shape}/{k}": ratio,
                    f"{model}/{shape}/{k}/clock": clock,
                    f"{model}/{shape}/{k}/memory": share,
                }
    torch.set_num_threads(threads)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", choices=MODELS, default=MEASURED)
    parser.add_argument("--memory", type=int, help="of one model alone, in the first shapes")
    told = parser.parse_args()
    if told.memory:
        print(json.dumps(memories(told.models[0], SHAPES[: told.memory])))
    else:
        main(models=told.models)
