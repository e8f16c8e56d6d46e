"""What initialising costs: in forward sweeps over the same samples, against PEFT's LoRA-GA, and in
memory.

Time: the processor's of this process, in one thread. A sweep is one forward pass without gradients
over all calibration batches, timed right before and right after what is counted in it, so that a
machine that slows down slows both. An initializer's time runs from the batches to the model with
its adapters attached; PEFT's from `preprocess_loraga` to the end of `get_peft_model`. "bare" is
what PyTorch alone takes for the passes that a method reads, without a hook or a statistic: the
limit that an initializer can come near to. "by length": over the batches of a run, which sweeps the
same rows the longest first, and against bare passes over those; everything else, the sweep too,
over batches in the order of the file. What has a target takes part in every round, the rest in one
or in FEW. The clock's seconds stand beside. Memory: a process of its own for each model and
initializer, see `memory`.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import within
from benchmarks.clocks import CPU, now
from loraexp import config, models
from loraexp.adapter.adapted import attach, scaling_factor
from loraexp.adapter.layer import Factors, Layer
from loraexp.config.settings import Settings
from loraexp.machine.device import to_device
from loraexp.machine.measure import peak_bytes, reset_peak
from loraexp.run.components import labels, make
from loraexp.run.initialise import longest_first, settled, training_of
from loraexp.scoring.passes import in_batches
from loraexp.statistics import Calibration, collect, layer_generator, weight
from tests.support.helpers import REPOSITORY

THREADS = 1
BATCH = 16
GLUE = REPOSITORY.parent / "shared" / "data" / "glue"
WIDE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # RoBERTa-base's sizes


@dataclass(frozen=True)
class Subject:
    """A model to measure on: how it is composed, the batches of 16 that are swept, and how
    often."""

    title: str
    overrides: tuple[str, ...]
    batches: int
    rounds: int
    frugal: tuple[str, ...]  # timed at a budget of zero too
    memory_batches: int  # and twice as many


SUBJECTS = {
    "minilm": Subject(
        "MiniLM, 6 layers, 384 wide",
        ("model=minilm",),
        32,
        7,
        ("cg_lora",),
        2,
    ),
    "wide": Subject(
        "RoBERTa with random weights, 12 layers, 768 wide",
        ("model=tiny-roberta", *(f"model.config.{key}={value}" for key, value in WIDE.items())),
        # fewer than the targets are meant for, so that it ends in time: decompositions weigh eight
        # times as much
        4,
        1,
        (),
        1,
    ),
}
# random weights have singular moments; the cost is the same
DAMPED = ("init.damping_mode=relative", "init.damping=0.001")
# the ones with a target, timed in every round; the others once
KEY = ("lora_one", "lora_ga", "lora_da", "cg_lora")
FRUGAL = ("cg_lora", "lora_one", "lora_ga")
FEW, OWN = 2, ", by length"
SWEEPS = {"lora_one": 2.1, "lora_ga": 2.1, "lora_da": 2.2, "cg_lora": 3.1, "cg_lora pooled": 4.4}
GRADIENTS, PROBE = "bare: gradients", "bare: and a probe"
BARE = dict.fromkeys(("lora_one", "lora_ga", "lora_da"), GRADIENTS) | {"cg_lora": PROBE}
TIMES_PEFT = {"lora_one": 1.0, "lora_ga": 1.0, "lora_da": 1.0, "cg_lora": 1.4}
MEMORY = 0.05


@functools.cache
def settings_of(subject: str, initializer: str) -> Settings:
    """The settings that the command line would run with, on CoLA where its files are, on tweets
    elsewhere."""
    task = ("task=cola", f"task.data_dir={GLUE}") if GLUE.is_dir() else ("task=tweets",)
    damped = DAMPED if subject == "wide" and initializer in ("lora_da", "lora_da_fa") else ()
    overrides = [*SUBJECTS[subject].overrides, *task, f"init={initializer}", *damped]
    return config.check(config.compose(overrides))[0]


class Bench:
    """A model, its target layers and its calibration batches: real text, the first rows of the
    training file."""

    def __init__(
        self, subject: str, batches: int, equal_width: bool = False, device: torch.device = CPU
    ) -> None:
        self.subject, self.device = subject, device
        settings = settings_of(subject, "lora")
        base = models.open(settings.model)
        words = base.tokenizer
        self.task: Any = make(settings.task)(tokenizer=words, cache_root=settings.cache_root)
        self.model = base.load(dtype=torch.float32, head_seed=0, **labels(self.task)).to(device)
        self.head = models.head(self.model)
        self.names = list(models.target_layers(self.model, settings.model.targets, self.head))
        self.rank = settings.rank
        self.scaling = scaling_factor("lora", settings.alpha, settings.rank)
        rows = np.arange(batches * BATCH)
        examples = self.task.splits["train"]
        width = int(np.diff(examples.offsets[: len(rows) + 1]).max()) if equal_width else None
        self.batches: list[dict[str, Tensor]] = [
            to_device(self.task.collate(examples, part, pad_to=width), device)
            for part in in_batches(rows, BATCH)
        ]
        # as a run sweeps the same rows
        ordered = longest_first(rows, np.asarray(examples.lengths))
        self.own_batches = [
            to_device(self.task.collate(examples, x), device) for x in in_batches(ordered, BATCH)
        ]

    def targets(self) -> dict[str, nn.Module]:
        return {name: self.model.get_submodule(name) for name in self.names}

    def sweep(self) -> None:
        """One forward pass over every batch: the unit of cost."""
        with torch.no_grad():
            for batch in self.batches:
                self.task.outputs(self.model, batch)

    def factors(self, initializer: str, budget: int, own: bool = False) -> dict[str, Factors]:
        """The factors of every target layer, from nothing but model and batches; no cache, dropout
        off."""
        settings, rows = settings_of(self.subject, initializer), len(self.task.splits["train"])
        made: partial = settled(make(settings.init), training_of(settings, rows))
        function: Any = made.func
        layers: Iterator[Layer] = (
            Layer(name=n, W=weight(m, self.device)) for n, m in self.targets().items()
        )
        if function.needs:
            task, batches = self.task, self.own_batches if own else self.batches
            layers = collect(
                self.model,
                self.targets(),
                Calibration(batches, task.loss_sum, task.outputs, population=rows),
                function.needs,
                function.request(self.rank, **made.keywords),
                budget=budget,
            ).layers
        return {
            x.name: made(
                x, rank=self.rank, scaling=self.scaling, generator=layer_generator(0, x.name)
            )
            for x in layers
        }

    @contextmanager
    def initialized(self, initializer: str, budget: int, own: bool = False) -> Iterator[None]:
        """Within: the adapters are attached; the model is as before afterwards."""
        factors = self.factors(initializer, budget, own)
        adapters = attach(self.model, factors, self.scaling, self.head)
        yield
        for name, layer in adapters.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer.base)
        self.model.requires_grad_(True)

    def passes(self, probe: bool, own: bool = False) -> None:
        """One forward and backward pass over every batch that gives the target weights, and nothing
        else, a gradient: what every method that reads gradients takes at least. With `probe` a
        second backward pass of the same forward, down to the first target: what CG-LoRA takes."""
        first = self.targets()[self.names[0]].weight
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.removesuffix(".weight") in self.names)
        for batch in self.own_batches if own else self.batches:
            loss = self.task.loss_sum(self.model, batch)[0]
            loss.backward(retain_graph=probe)
            if probe:
                torch.autograd.grad(loss, [first])  # type: ignore[list-item]
        self.model.zero_grad(set_to_none=True)
        self.model.requires_grad_(True)

    @contextmanager
    def peft_lora_ga(self) -> Iterator[None]:
        """The same with PEFT's LoRA-GA at its defaults: equal batches, targets and rank."""
        from peft import LoraConfig, LoraGAConfig, get_peft_model, preprocess_loraga

        targets = self.targets()
        said = LoraConfig(
            r=self.rank,
            lora_alpha=int(self.scaling * self.rank),
            target_modules=self.names,
            init_lora_weights="lora_ga",  # type: ignore[arg-type]
            lora_ga_config=LoraGAConfig(),
        )

        def train_step() -> None:
            for batch in self.batches:
                self.model(**batch).loss.backward()

        preprocess_loraga(self.model, said, train_step)
        adapted: Any = get_peft_model(self.model, said)  # type: ignore[arg-type]
        yield
        adapted.unload()
        for module in targets.values():
            vars(module).pop("_peft_loraga_grad", None)
        self.model.requires_grad_(True).eval()


# --------------------------------------------------------------------------------------------------
# time


def seconds(work: Callable[[], Any], device: torch.device = CPU) -> np.ndarray:
    """The time until the model is ready, of the processor and of the clock; undoing it is not
    counted."""
    gc.collect()
    began = now(device)
    if not hasattr(entered := work(), "__enter__"):
        return now(device) - began
    with entered:
        return now(device) - began


def costs(
    bench: Bench, work: Mapping[str, tuple[Callable[[], Any], int]]
) -> dict[str, tuple[float, float, float, int]]:
    """The median cost of each piece of work in sweeps, its median seconds of the processor and of
    the clock, and in how many rounds; `work` says in how many of them a piece takes part."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in work}
    bench.sweep()
    # PEFT's on its hooks, and remarks on statistics, in every round again
    warnings.simplefilter("ignore")
    for round_ in range(max(rounds for _, rounds in work.values())):
        before = seconds(bench.sweep, bench.device)
        for name, (piece, rounds) in work.items():
            if round_ < rounds:
                spent = seconds(piece, bench.device)
                after = seconds(bench.sweep, bench.device)
                sweeps = 2 * spent[0] / (before[0] + after[0])
                found[name].append(np.array([sweeps, *spent]))
                before = after
    return {name: (*np.median(values, 0).tolist(), len(values)) for name, values in found.items()}


def time_of(
    subject: str, quick: bool = False, device: torch.device = CPU, **changed: Any
) -> dict[str, float]:
    """Print and return the costs on one model, in sweeps and in PEFT's LoRA-GA."""
    about = replace(SUBJECTS[subject], **changed)
    if quick:
        about = replace(about, batches=2, rounds=1, frugal=())
    bench = Bench(subject, about.batches, device=device)
    budget = settings_of(subject, "cg_lora").calibration.budget()
    tokens = sum(tokens_of(bench))
    few = min(FEW, about.rounds)
    work: dict[str, tuple[Callable[[], Any], int]] = {"peft": (bench.peft_lora_ga, few)}
    for name, probe in ((GRADIENTS, False), (PROBE, True)):
        work[name] = partial(bench.passes, probe), few
        work[name + OWN] = partial(bench.passes, probe, own=True), about.rounds
    # full has no factors to make
    others = [name for name in config.names("init") if name not in KEY and name != "full"]
    for name in [*KEY, *(() if about.rounds == 1 else others)]:
        settings_of(subject, name)  # composed before the clock starts
        work[name] = partial(bench.initialized, name, budget), few if name in KEY else 1
    for name in KEY:
        work[name + OWN] = partial(bench.initialized, name, budget, own=True), about.rounds
    # The frugal way that keeps pooled h and δ of every sample, and the most frugal one that keeps
    # sketches alone.
    pooled = int(
        1.1 * 4 * len(tokens_of(bench)) * sum(sum(m.weight.shape) for m in bench.targets().values())
    )  # type: ignore[union-attr, misc, arg-type]
    work["cg_lora pooled"] = partial(bench.initialized, "cg_lora", pooled), 1
    for name in about.frugal:
        work[f"{name} budget 0"] = partial(bench.initialized, name, 0), 1
    found = costs(bench, work)
    print(
        f"\n{about.title}; {bench.task.name}, {about.batches * BATCH} samples as {about.batches}"
        f" batches of {BATCH}, {tokens} tokens"
        f" ({cells(bench.batches)} with padding, {cells(bench.own_batches)} by length);"
        f" {len(bench.names)} layers, rank {bench.rank}"
    )
    heads = f"{'initializer':28} {'sweeps':>8} {'target':>8} {'of bare':>8} {'s':>7} {'clock':>7}"
    print(f"{heads} {'rounds':>7} {'of PEFT LoRA-GA':>16} {'target':>8}")
    figures: dict[str, float] = {}
    for name, (cost, spent, clock, rounds) in found.items():
        key, ratio = name.removesuffix(OWN), cost / found["peft"][0]
        own = name[len(key) :]
        bare = f"{cost / found[BARE[key] + own][0]:.2f}" if key in BARE else ""
        sweeps = within(f"{subject}: {name}, sweeps", cost, SWEEPS.get(key))
        line = (
            f"{'PEFT LoRA-GA' if name == 'peft' else name:28} {cost:8.2f}"
            f" {sweeps:>8} {bare:>8} {spent:7.2f} {clock:7.2f} {rounds:7}"
            f" {ratio:16.2f}"
        )
        of_peft = within(f"{subject}: {name}, of PEFT's", ratio, TIMES_PEFT.get(key))
        print(f"{line} {of_peft:>8}", flush=True)
        figures |= {f"{subject}/{name}/sweeps": cost, f"{subject}/{name}/peft": ratio}
    return figures


def tokens_of(bench: Bench) -> list[int]:
    """The tokens of every sample."""
    return [int(row.sum()) for batch in bench.batches for row in batch["attention_mask"]]


def cells(batches: Sequence[Mapping[str, Tensor]]) -> int:
    """Tokens with their padding."""
    return sum(batch["attention_mask"].numel() for batch in batches)


# --------------------------------------------------------------------------------------------------
# memory


def resident_peak(work: Callable[[], Any]) -> int:
    """Bytes of this process at the peak of `work`."""
    gc.collect()
    reset_peak(CPU)
    work()
    return peak_bytes(CPU)


def memory(subject: str, initializer: str) -> dict[str, float]:
    """Peaks of initialising at a budget of zero, and of plain forward and backward passes over the
    same batches.

    Runs in a process of its own. "plain" is the ordinary backward pass of the mean loss, batch
    after batch, in two versions: every weight of the model gets a gradient ("trained"), or only the
    target weights do ("targets", what PEFT's LoRA-GA does). Everything is relative to what the
    process held before the model was loaded.
    """
    torch.set_num_threads(1)
    settings = settings_of(subject, initializer)
    base = models.open(settings.model)
    assert base.tokenizer and base.skeleton
    warm = nn.Linear(64, 64)
    warm(torch.zeros(64, 64)).sum().backward()
    bare = resident_peak(lambda: None)
    count = SUBJECTS[subject].memory_batches
    bench = Bench(subject, 2 * count, equal_width=True)

    def plain(trained: bool) -> None:
        for name, parameter in bench.model.named_parameters():
            parameter.requires_grad_(trained or name.removesuffix(".weight") in bench.names)
        for batch in bench.batches:
            bench.model.zero_grad(set_to_none=True)
            total, number = bench.task.loss_sum(bench.model, batch)
            (total / number).backward()
        bench.model.zero_grad(set_to_none=True)
        bench.model.requires_grad_(True)

    def start() -> None:
        bench.factors(initializer, 0)

    start()  # the libraries' own buffers are there from here on
    plain(trained=True)
    twice, bench.batches = bench.batches, bench.batches[:count]
    found = {
        "trained": resident_peak(lambda: plain(True)),
        "targets": resident_peak(lambda: plain(False)),
    }
    found["once"] = resident_peak(start)
    bench.batches = twice
    found["twice"] = resident_peak(start)
    found["resting"] = resident_peak(lambda: None)
    return {name: peak - bare for name, peak in found.items()}


def in_own_process(subject: str, initializer: str) -> dict[str, float]:
    """`memory` in a fresh process, whose allocator gives every freed block back: the peak is what
    was held at once."""
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, "-m", "benchmarks.initializers", "--memory", subject, initializer]
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(subject: str, names: Sequence[str] = FRUGAL) -> dict[str, float]:
    """Print and return the extra memory of the frugal way on one model."""
    about = SUBJECTS[subject]
    print(
        f"\nPeak memory at memory_budget=0 on {about.title}: extra over a forward and backward pass"
        " of one batch, model\nincluded (all weights with gradients; in brackets, and for twice"
        f" the samples, the stricter one: only the target\nweights); {about.memory_batches} batches"
        f" of {BATCH} and twice as many, padded to one width"
    )
    print(
        f"{'initializer':22} {'plain MiB':>16} {'init MiB':>9} {'extra':>16}"
        f" {'twice the samples':>18} {'target':>8}"
    )
    figures: dict[str, float] = {}
    for name in names:
        found = in_own_process(subject, name)
        extra, strict, twice = (
            found["once"] / found["trained"] - 1,
            found["once"] / found["targets"] - 1,
            found["twice"] / found["targets"] - 1,
        )
        both = f"{found['trained'] / 2**20:.1f} ({found['targets'] / 2**20:.1f})"
        shares = f"{extra:+.1%} ({strict:+.1%})"
        line = f"{name:22} {both:>16} {found['once'] / 2**20:9.1f} {shares:>16} {twice:18.1%}"
        bound = within(f"{subject}: {name}, memory of a plain pass", max(strict, twice), MEMORY)
        print(f"{line} {bound:>8}", flush=True)
        figures |= {
            f"{subject}/{name}/extra": extra,
            f"{subject}/{name}/extra_strict": strict,
            f"{subject}/{name}/extra_twice": twice,
        }
    return figures


def main(quick: bool = False) -> dict[str, float]:
    """Print the costs of every initializer on both models; returns them by
    `model/initializer/what`. `quick`: of those with a target, on few batches of one model."""
    torch.set_num_threads(THREADS)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {THREADS} thread")
    subjects = list(SUBJECTS)[: 1 if quick else None]
    figures: dict[str, float] = {}
    for subject in subjects:
        figures |= time_of(subject, quick)
    for subject in subjects:
        figures |= memory_of(subject, FRUGAL[: 1 if quick or subject == "wide" else None])
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", nargs=2, metavar=("SUBJECT", "INITIALIZER"))
    asked = parser.parse_args().memory
    if asked:
        print(json.dumps(memory(*asked)))
    else:
        main()
