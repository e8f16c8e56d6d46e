"""How long a run will take before it is started: tokens to train on and to write, at the speed of a
named accelerator.

Training costs its operations, at a share of what the card's sheet says, and for each micro-batch a
little for every layer: one row at a time is slow on any card. Both constants are fitted to the
hours that the papers print; a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from loraexp import config
from loraexp.config.settings import Settings
from loraexp.data.draw import HELD_OUT_FRACTION, HELD_OUT_MOST
from loraexp.scoring import protocols
from loraexp.sweep.accepted import ours
from loraexp.tasks.recipes import TRAINING_SETS, Recipe

UTILISATION = 0.28  # share of the sheet's FLOP/s that training reaches
SINGLE = 0.6  # the same of float32 without TF32, whose sheet is low
# of a micro-batch on an accelerator, forward and backward: launches, and products too small for the
# card
LAYER_SECONDS = 6.5e-3
WRITE_SECONDS = 7e-4  # of a layer, for one token of every row that is being written
OVERHEAD_SECONDS = 10.0  # a run's loading, evaluation of a split and writing
LETTERS = 4  # of a token, about
TEXTS = ("query", "response", "question", "answer", "instruction", "output")
SAMPLE = {"type": "GSM", "input": "", **dict.fromkeys(TEXTS, "a b c #### 1")}


@cache
def known() -> dict[str, Any]:
    sizes: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "known.yaml").read_text())
    return sizes


# --------------------------------------------------------------------------------------------------
# how much


def recipe_of(settings: Settings) -> Recipe | None:
    """How a text task's rows are put and which of them train; None of any other task."""
    recipes = TRAINING_SETS.get(str(settings.task.get("training_set")), {})
    asked = settings.task.get("protocol") or ""
    first = asked.split(",")[0].strip() if isinstance(asked, str) else str(asked[0])
    return recipes.get(settings.task.get("recipe") or first.removesuffix("_released"))


def longest(settings: Settings) -> int:
    """Tokens of the longest row that trains: `task.max_length`, or what the recipe takes rows
    below."""
    limit = int(settings.task.get("max_length", 512))
    recipe = recipe_of(settings)
    return min(limit, recipe.below) if recipe is not None and recipe.below else limit


def rows_of(settings: Settings) -> int | None:
    """Rows that train: those there are, those the recipe takes, and what `task.rows` and
    `task.limit_train` leave of them."""
    recipe, task = recipe_of(settings), settings.task
    there = (settings.facts.get("task") or {}).get("rows")
    of_recipe = recipe.rows if recipe is not None and task.get("rows") is None else None
    counts = [
        count for count in (there, of_recipe, task.get("rows"), task.get("limit_train")) if count
    ]
    return min(counts) if there else None


def tokens_of(settings: Settings) -> float:
    """Mean tokens of a row with the prompt of its recipe; the longest there may be where the mean
    is not known."""
    most = longest(settings)
    mean = (settings.facts.get("task") or {}).get("tokens")
    return most if mean is None else min(mean + prompt_tokens(recipe_of(settings)), most)


def prompt_tokens(recipe: Recipe | None) -> float:
    """What a recipe's prompt adds to a row's own text."""
    if recipe is None:
        return 0.0
    try:
        pair = recipe.pair(SAMPLE)
    except (LookupError, ValueError):
        return 0.0
    return 0.0 if pair is None else max(0, len(pair.prompt) - len(SAMPLE["query"])) / LETTERS


def steps_and_tokens(settings: Settings) -> tuple[int, int] | None:
    """Steps, and tokens trained on; None for a task of unknown size without max_steps."""
    train = settings.train
    examples = train.batch_size * train.gradient_accumulation
    if train.max_steps is not None:
        return train.max_steps, int(train.max_steps * examples * tokens_of(settings))
    rows = rows_of(settings)
    if rows is None:
        return None
    return math.ceil(train.epochs * math.ceil(rows / examples)), int(
        train.epochs * rows * tokens_of(settings)
    )


def evaluations(settings: Settings, steps: int) -> int:
    """How often the splits that are watched are evaluated: every `train.eval_every` steps or once
    an epoch, and at the end."""
    per_epoch = math.ceil(steps / max(1, math.ceil(settings.train.epochs)))
    return max(1, math.ceil(steps / max(1, settings.train.eval_every or per_epoch)))


def checked_rows(settings: Settings, steps: int) -> int:
    """Rows that the evaluations of a whole run read: of the split that selects, each time; of what
    is reported, once, or each time with `train.report_during`. Benchmarks' questions are not among
    them."""
    task, times = settings.task, evaluations(settings, steps)
    limit = task.get("limit_eval") or math.inf
    dev = min((settings.facts.get("task") or {}).get("dev", 0), limit)
    if task.get("benchmarks"):
        return int(times * min(task.get("held_out") or 0, limit))
    if "paper" in (task.get("protocol"), task.get("selection")):
        return int(times * dev)
    held_out = min((rows_of(settings) or 0) // HELD_OUT_FRACTION, HELD_OUT_MOST, limit)
    return int(times * held_out + (times if settings.train.report_during else 1) * dev)


def flops(settings: Settings, numbers: Mapping[str, int], tokens: int) -> float:
    """2·N a token forward, 2·N backward to the activations, and 2·N to the weights where they all
    train; N in linear layers."""
    return (6.0 if full(settings) else 4.0) * numbers["products"] * tokens


def full(settings: Settings) -> bool:
    """Whether every weight trains: of ours that is `full` alone, which is said without importing
    what initialises."""
    if ours(settings.init):
        return str(settings.init["_target_"]).endswith(".full")
    return config.Component.of(settings.init, "init").full


# --------------------------------------------------------------------------------------------------
# how fast


def card(hardware: str) -> dict[str, float] | None:
    """What is known of an accelerator; None of one that is not known."""
    found = [name for name in known()["cards"] if name.lower() in hardware.lower()]
    return known()["cards"][max(found, key=len)] if found else None


def speed(hardware: str, precision: str, tf32: bool = False) -> float | None:
    """FLOP/s that training reaches on an accelerator of that name: a share of its sheet in that
    precision."""
    found = card(hardware)
    if found is None:
        return None
    if "reached" in found:
        return found["reached"] * 1e12
    if precision == "bf16" or (tf32 and "tf32" in found):
        return found["bf16" if precision == "bf16" else "tf32"] * UTILISATION * 1e12
    return found["fp32"] * SINGLE * 1e12


def seconds(settings: Settings, numbers: Mapping[str, int], hardware: str) -> float | None:
    """Of a whole run on one accelerator; None where its speed or the size of its task is not
    known."""
    found = card(hardware)
    rate = speed(hardware, settings.precision, bool(getattr(settings.train, "tf32", False)))
    work = steps_and_tokens(settings)
    if found is None or rate is None or work is None:
        return None
    steps, tokens = work
    launches = 0.0
    if "bandwidth" in found:
        parts = settings.train.gradient_accumulation * min(
            settings.train.equal_parts, settings.train.batch_size
        )
        launches = steps * parts * numbers["layers"] * LAYER_SECONDS
    training = flops(settings, numbers, tokens) / rate + launches
    checks = checks_seconds(settings, numbers, found, rate, steps)
    answers = answers_seconds(settings, numbers, found, rate)
    times = evaluations(settings, steps) if settings.train.report_during else 1
    return OVERHEAD_SECONDS + training + checks + times * answers


def checks_seconds(
    settings: Settings,
    numbers: Mapping[str, int],
    found: Mapping[str, float],
    rate: float,
    steps: int,
) -> float:
    """Of the forward passes over the rows that select and those that are reported."""
    rows = checked_rows(settings, steps)
    batches = rows / settings.train.eval_batch_size
    launches = batches * numbers["layers"] * LAYER_SECONDS / 3 if "bandwidth" in found else 0.0
    return 2.0 * numbers["products"] * rows * tokens_of(settings) / rate + launches


def answers_seconds(
    settings: Settings, numbers: Mapping[str, int], found: Mapping[str, float], rate: float
) -> float:
    """Of writing, or choosing, the answers to the benchmarks' questions under every protocol asked
    for."""
    total = 0.0
    for benchmark, protocol in asked(settings):
        facts = questions(benchmark)
        if not facts:
            continue
        rows = min(facts["rows"], settings.task.get("limit_eval") or facts["rows"])
        reading = 2.0 * numbers["products"] * rows * facts["prompt"] * max(1, protocol.shots) / rate
        total += reading
        if protocol.decoding is None:
            continue
        batches = math.ceil(rows * protocol.decoding.samples / settings.train.eval_batch_size)
        # the longest of a batch ends it
        written = min(protocol.decoding.max_new_tokens, 2 * facts["answer"])
        weights = (
            2 * numbers["products"] / (found["bandwidth"] * 1e12) if "bandwidth" in found else 0.0
        )
        products = 2.0 * numbers["products"] * settings.train.eval_batch_size / rate
        each = max(weights, products) + (
            numbers["layers"] * WRITE_SECONDS if "bandwidth" in found else 0.0
        )
        total += batches * written * each * max(1, protocol.decoding.beams)
    return total


def questions(benchmark: str) -> dict[str, int]:
    """What its yaml knows of a benchmark: questions, and mean tokens of one and of its answer."""
    return config.read_yaml("benchmark", benchmark).get("facts") or {}


def asked(settings: Settings) -> list[tuple[str, protocols.Protocol]]:
    """Every benchmark of a text task with each of its protocols that is asked for."""
    names = settings.task.get("protocol") or []
    wanted = [word.strip() for word in names.split(",")] if isinstance(names, str) else list(names)
    found = []
    for benchmark in settings.task.get("benchmarks") or []:
        there = [name for name in wanted if (benchmark, name) in protocols.known()]
        found += [(benchmark, protocols.find(benchmark, name)) for name in there]
    return found


def written_tokens(settings: Settings) -> int:
    """Tokens of the longest question with its answer, whose keys and values are kept while it is
    written; 0: none is."""
    lengths = [
        questions(benchmark).get("prompt", 128) * 2 + protocol.decoding.max_new_tokens
        for benchmark, protocol in asked(settings)
        if protocol.decoding is not None
    ]
    return max(lengths, default=0)
