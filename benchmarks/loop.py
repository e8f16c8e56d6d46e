"""Samples per second of the training loop, beside the Trainer with PEFT and beside a bare loop,
over the same rows: by the processor, which others on the machine change little, and by the clock.

Ours is measured as it is by default, with `train.unpadded=true`, which pads nothing between a
model's first and last layer, with `train.micro_batches=auto`, which for an encoder on a CPU does
the same, and cut into at most eight passes, as `auto` does for a model that cannot. Every contender
trains MiniLM with LoRA (rank 8 on query and value, B = 0) and a new head by AdamW, batches of 32, a
linear schedule and clipping, in one thread. They take turns, A B C … A B C …, so that a drift of
the machine meets all of them. A round of one is a whole epoch over the same rows; only the loop is
timed, without loading, evaluation or checkpoints.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import verdict
from benchmarks.clocks import CPU, now
from loraexp import config, models
from loraexp.config.settings import Settings
from loraexp.machine.device import to_device
from loraexp.run import components, experiment
from loraexp.run.batches import epoch_batches, micro_batches
from loraexp.tasks.classification import Classification

GLUE = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue"
THREADS, ROUNDS, WARM_UP = 1, 7, 2
BATCH, STEPS, STEPS_PADDED_TO_128 = 32, 16, 2
MINILM = ("model=minilm",)


@dataclass(frozen=True)
class Measured:
    """One round of one contender: its rate by the processor and by the clock; `outside` are the
    seconds outside forward, backward and optimizer."""

    samples_per_second: float
    by_clock: float
    padding: float
    outside: float = math.nan


@dataclass(frozen=True)
class Bench:
    """What the contenders share: the settings and rows of one configuration, and a folder for what
    they write."""

    device: torch.device
    overrides: list[str]
    settings: Settings
    tokenizer: Any
    task: Classification
    folder: Path

    @property
    def lengths(self) -> np.ndarray:
        return self.task.splits["train"].lengths


Contender = Callable[[Bench, int, int], Measured]  # (bench, steps, seed)


def prepare(
    folder: Path, device: torch.device = CPU, steps: int = STEPS, model: Sequence[str] = MINILM
) -> Bench:
    data = ["task=cola", f"task.data_dir={GLUE}"] if (GLUE / "CoLA").is_dir() else ["task=tweets"]
    rows = [f"task.limit_train={BATCH * steps}", "task.limit_eval=32", f"train.batch_size={BATCH}"]
    places = [
        f"output_root={folder}/outputs",
        f"cache_root={folder}/cache",
        "wandb.mode=disabled",
        f"device={device.type}",
    ]
    overrides = [*model, "init=lora", *data, *rows, *places]
    settings, _ = config.check(config.compose(overrides))
    tokenizer = models.open(settings.model).tokenizer
    task = components.make(settings.task)(tokenizer=tokenizer, cache_root=Path(settings.cache_root))
    return Bench(device, overrides, settings, tokenizer, task, folder)


# --------------------------------------------------------------------------------------------------
# loraexp


def ours(
    bench: Bench,
    steps: int,
    seed: int,
    *,
    length_buckets: bool,
    parts: int | Literal["auto"] = 1,
    unpadded: bool = False,
) -> Measured:
    """A whole run, as the command line makes it; its record says what the loop took."""
    chosen = {"length_buckets": length_buckets, "micro_batches": parts, "unpadded": unpadded}
    words = [f"train.{key}={str(value).lower()}" for key, value in chosen.items()]
    settings, plain = config.check(
        config.compose([*bench.overrides, *words, f"train.max_steps={steps}", f"seed={seed}"])
    )
    cost = experiment.run(settings, plain).record["cost"]
    spent = cost["loop_seconds"]
    seconds = cost["train_seconds"] - spent["checkpoint"]  # the evaluation is not in train_seconds
    batches = epoch_batches(
        bench.lengths, BATCH, seed=seed, epoch=0, length_buckets=length_buckets
    )[:steps]
    cut = [part for rows in batches for part in micro_batches(rows, bench.lengths, parts)]
    tokens = sum(int(bench.lengths[rows].sum()) for rows in cut)
    padded = sum(len(rows) * int(bench.lengths[rows].max()) for rows in cut)
    padded = tokens if cost["train_unpadded"] else padded
    outside = seconds - spent["forward"] - spent["backward"] - spent["optimizer"]
    rates = (steps * BATCH / spent for spent in (cost["train_processor_seconds"], seconds))
    return Measured(*rates, 1 - tokens / padded, outside / seconds)


# --------------------------------------------------------------------------------------------------
# the peers


def trainer(
    bench: Bench, steps: int, seed: int, *, sampling: str = "random", pad_to: int | None = None
) -> Measured:
    """transformers' Trainer with PEFT's LoRA, as their documentation writes it.

    `group_by_length` sorts within a quarter of its data at most, ours within 50 batches: it gets
    the same rows four times over, so that its groups, too, are of as many batches as a round has
    steps.
    """
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    seen = {"tokens": 0, "cells": 0}
    pad = DataCollatorWithPadding(
        bench.tokenizer, padding="max_length" if pad_to else "longest", max_length=pad_to
    )

    def collate(rows: list[dict[str, Any]]) -> Any:
        batch = pad(rows)
        seen["tokens"] += int(batch["attention_mask"].sum())
        seen["cells"] += batch["attention_mask"].numel()
        return batch

    class Clock(TrainerCallback):
        began = ended = now()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = now(bench.device)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.ended = now(bench.device)

    arguments = TrainingArguments(
        output_dir=str(bench.folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=bench.settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=bench.settings.train.warmup_ratio,
        train_sampling_strategy=sampling,
        seed=seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=bench.device == CPU,
        bf16=bench.settings.precision == "bf16",
        dataloader_pin_memory=bench.device != CPU,
    )
    clock = Clock()
    Trainer(
        model=peft_model(bench, seed),
        args=arguments,
        train_dataset=as_dataset(bench, copies=4 if sampling == "group_by_length" else 1),
        data_collator=collate,
        callbacks=[clock],
    ).train()
    rates = (steps * BATCH / seconds for seconds in (clock.ended - clock.began).tolist())
    return Measured(*rates, 1 - seen["tokens"] / seen["cells"])


def as_dataset(bench: Bench, copies: int) -> Any:
    """The task's training rows as `Dataset.map(tokenizer)` would leave them."""
    from datasets import Dataset

    examples = bench.task.splits["train"]
    tokens = [
        examples.tokens[a:b].tolist()
        for a, b in zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
    ]
    columns: dict[str, list[Any]] = {
        "input_ids": tokens,
        "token_type_ids": [[0] * len(row) for row in tokens],
        "attention_mask": [[1] * len(row) for row in tokens],
        "labels": examples.labels.tolist(),
    }
    return Dataset.from_dict({name: column * copies for name, column in columns.items()})


def base_model(bench: Bench, seed: int) -> Any:
    settings, labels = bench.settings, components.labels(bench.task)
    dtype = models.dtype_of(settings.model, settings.precision, full=False)
    return models.open(settings.model).load(dtype=dtype, head_seed=seed, **labels).to(bench.device)


def peft_model(bench: Bench, seed: int) -> Any:
    """The model with PEFT's LoRA, of ours' rank, scaling and layers."""
    from peft import LoraConfig, TaskType, get_peft_model

    settings = bench.settings
    adapter = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.model.targets),
    )
    return get_peft_model(base_model(bench, seed), adapter)


def bare(bench: Bench, steps: int, seed: int) -> Measured:
    """A dozen lines as one writes them with PEFT, over the very batches of ours with length
    buckets, all collated beforehand: no records, no clocks, torch's own fused AdamW."""
    settings, model = bench.settings, peft_model(bench, seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    order = epoch_batches(bench.lengths, BATCH, seed=seed, epoch=0, length_buckets=True)[:steps]
    rows_of = bench.task.splits["train"]
    batches = [to_device(bench.task.collate(rows_of, rows), bench.device) for rows in order]
    lower = settings.precision == "bf16"
    cells = sum(batch["input_ids"].numel() for batch in batches)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)

    began = now(bench.device)
    model.train()
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.lr, weight_decay=settings.train.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for batch in batches:
        labels = batch.pop("labels")
        with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=lower):
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.train.max_grad_norm or math.inf)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    rates = (steps * BATCH / seconds for seconds in (now(bench.device) - began).tolist())
    return Measured(*rates, 1 - tokens / cells)


# --------------------------------------------------------------------------------------------------
# the bench

CONTENDERS: dict[str, tuple[str, Contender, int]] = {
    "unpadded": (
        "ours, length buckets, unpadded",
        partial(ours, length_buckets=True, unpadded=True),
        STEPS,
    ),
    "buckets": ("ours, length buckets", partial(ours, length_buckets=True), STEPS),
    "plain": ("ours, plain shuffle", partial(ours, length_buckets=False), STEPS),
    "auto": (
        "ours, plain shuffle, micro_batches=auto",
        partial(ours, length_buckets=False, parts="auto"),
        STEPS,
    ),
    "cut": (
        "ours, plain shuffle, micro_batches=8",
        partial(ours, length_buckets=False, parts=8),
        STEPS,
    ),
    "trainer_dynamic": ("Trainer, dynamic padding", trainer, STEPS),
    "trainer_grouped": (
        "Trainer, group_by_length",
        partial(trainer, sampling="group_by_length"),
        STEPS,
    ),
    "trainer_padded": ("Trainer, padded to 128", partial(trainer, pad_to=128), STEPS_PADDED_TO_128),
    "bare": ("bare loop with PEFT, batches of buckets", bare, STEPS),
}
# ours, the peer, and the least that ours must be of the peer; None: shown alone
RATIOS: list[tuple[str, str, float | None]] = [
    ("unpadded", "trainer_dynamic", 2.2),
    ("unpadded", "trainer_grouped", 1.25),
    ("unpadded", "bare", 1.1),
    ("auto", "unpadded", 1 / 1.15),
    ("auto", "buckets", 1 / 1.15),
    ("auto", "plain", 1.0),
    ("auto", "trainer_dynamic", None),
    ("cut", "buckets", None),
    ("cut", "plain", 1.0),
    ("buckets", "trainer_dynamic", 1.5),
    ("buckets", "trainer_grouped", 1.05),
    ("buckets", "trainer_padded", 10.0),
    ("buckets", "bare", 0.97),
    ("plain", "trainer_dynamic", None),
    ("unpadded", "buckets", None),
]


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(bench: Bench, rounds: int, most: int) -> dict[str, list[Measured]]:
    """Every contender's rounds, in turn, of `most` steps at most; round 0 warms up and is not
    kept."""
    found: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    for seed in range(rounds + 1):
        for name, (_, contender, steps) in CONTENDERS.items():
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                measured = contender(bench, min(steps, most) if seed else WARM_UP, seed)
            if seed:
                found[name].append(measured)
    return found


def main(quick: bool = False) -> dict[str, float]:
    rounds, most = (1, 2) if quick else (ROUNDS, STEPS)
    with tempfile.TemporaryDirectory() as folder, threads(THREADS):
        bench = prepare(Path(folder))
        what = (
            f"minilm, {bench.task.name}, {most} steps of {BATCH} (padded to 128:"
            f" {min(most, STEPS_PADDED_TO_128)})"
        )
        # beyond 0.5 the figures mean little
        busy = f"load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{what}, {THREADS} thread, median of {rounds} rounds, {busy}", flush=True)
        found = measure(bench, rounds, most)
    figures: dict[str, float] = {}
    print(f"{'':<42} samples/s, by the clock   padding")
    for name, (words, _, _) in CONTENDERS.items():
        rate = statistics.median(m.samples_per_second for m in found[name])
        padding = statistics.median(m.padding for m in found[name])
        clock = statistics.median(m.by_clock for m in found[name])
        figures |= {f"{name}_samples_per_second": rate, f"{name}_padding": padding}
        print(f"{words:<42} {rate:9.1f} {clock:14.1f} {padding:9.1%}")
    for mine, peer, least in RATIOS:
        pairs = zip(found[mine], found[peer], strict=True)
        ratios = [a.samples_per_second / b.samples_per_second for a, b in pairs]
        middle = figures[f"{mine}_over_{peer}"] = statistics.median(ratios)
        words = f"{CONTENDERS[mine][0]} / {CONTENDERS[peer][0]}"
        spread = f"({min(ratios):.2f} … {max(ratios):.2f})"
        said = verdict(words, middle, least=least)
        print(f"{words:<66} {middle:6.2f} {spread:<16} {said}".rstrip())
    outside = figures["outside_share"] = statistics.median(m.outside for m in found["buckets"])
    words = "loop outside forward, backward, optimizer"
    said = verdict(words, 100 * outside, most=3, unit=" %")
    print(f"{words:<66} {outside:6.2%} {'':<16} {said}")
    return figures
