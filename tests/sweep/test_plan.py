"""`loraexp plan`: counts that are exact, a memory model that is what autograd keeps, and nothing
started or downloaded."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from loraexp import cli, config, models
from loraexp.adapter.adapted import attach
from loraexp.adapter.layer import Factors
from loraexp.records.content import SCHEMA
from loraexp.run.components import make
from loraexp.sweep import duration, estimate, peaks, reading, sizes
from loraexp.sweep import plan as plans
from loraexp.sweep.cells import expand
from tests.support.small_sweep import TINY, cells_of, go, written
from tests.support.thin import loaded, thin, variants

# Numbers of parameters of the published checkpoints, by their model cards and safetensors indices
# (RoBERTa: with a head of two labels).
PUBLISHED = {
    "roberta-base": 124_647_170,
    "roberta-large": 355_361_794,
    "t5-base": 222_903_552,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "gemma-2-9b": 9_241_705_984,
}


def settings_of(*overrides: str) -> Any:
    settings, _ = config.check(config.compose(list(overrides)))
    return sizes.offline(settings)


def fitting(model: str) -> list[str]:
    kind = config.read_yaml("model", model)["kind"]
    return [
        f"model={model}",
        {"encoder": "task=cola", "seq2seq": "task=cola_t5", "causal": "task=metamath"}[kind],
    ]


@pytest.mark.parametrize("model", PUBLISHED)
def test_known_architectures_have_the_published_number_of_parameters(model: str) -> None:
    settings = settings_of(*fitting(model))
    bare = estimate.bare(settings.model, torch.float32, 2)
    assert sum(p.numel() for p in bare.parameters()) == PUBLISHED[model]
    assert models.open(settings.model).targets()


def test_every_model_has_an_architecture_without_a_hub(monkeypatch) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the hub was asked"))
    for model in config.names("model"):
        # its weights are in a package, in a form that is converted first
        if model not in ("smollm2-135m", "hf"):  # and hf is whatever its path is
            assert models.open(settings_of(*fitting(model)).model).config is not None


def test_parts_of_the_memory_are_counted_exactly() -> None:
    """Rank 8 on query and value of MiniLM (384 wide, 6 layers), its head of 384·3 + 3; Adam keeps
    two numbers of each and a counter."""
    memory, numbers = estimate.counted(
        sizes.shape_of(settings_of("task=tweets", "init=pissa", "init.start=shifted"), length=32)
    )
    adapter, head = (
        12 * 2 * 8 * 384,
        384 * len(settings_of("task=tweets").task["label_names"])
        + len(settings_of("task=tweets").task["label_names"]),
    )
    assert numbers["adapter"] == adapter and numbers["trainable"] == adapter + head
    assert memory.adapter == memory.gradients - 4 * head == 4 * adapter
    assert 0 <= memory.optimizer - 2 * 4 * (adapter + head) < 100
    assert memory.weights == 4 * (numbers["total"] - adapter)
    full, count = estimate.counted(
        sizes.shape_of(settings_of("task=tweets", "init=full"), length=32)
    )
    assert (
        full.adapter == 0
        and full.gradients == full.weights == 4 * count["total"]
        and count["trainable"] == count["total"]
    )


def test_memory_follows_precision_batch_length_rule_and_checkpointing() -> None:
    def memory(*overrides: str, length: int = 64) -> sizes.Memory:
        return estimate.counted(
            sizes.shape_of(settings_of("model=tiny-llama", "task=gsm8k", *overrides), length=length)
        )[0]

    one = memory("init=lora", "train.batch_size=4")
    assert memory("init=lora", "train.batch_size=4", "precision=bf16").weights * 2 == one.weights
    step = one.activations + one.gradients  # of them, before gradients take the place of some
    eight = memory("init=lora", "train.batch_size=8")
    assert eight.activations + eight.gradients > 1.9 * step
    cut = memory("init=lora", "train.batch_size=8", "train.micro_batches=2")
    # a second pass beside the gradients of the first
    assert 0 < cut.activations - one.activations <= 2 * one.gradients
    long = memory("init=lora", "train.batch_size=4", length=128)
    assert long.activations + long.gradients > 1.9 * step
    assert (
        memory("init=lora", "train.batch_size=4", "model.gradient_checkpointing=true").activations
        < one.activations
    )
    assert (
        memory("init=lora", "train.batch_size=4", "optimizer=lora_pro").optimizer
        > 2 * one.optimizer
    )
    assert memory("init=lora").statistics < memory("init=lora_ga").statistics
    eager = memory("init=lora", "train.batch_size=4", "model.attention=eager")
    # the scores of every token for every other are kept
    assert eager.activations > one.activations + 4 * 2 * 4 * 64 * 64


def test_a_step_needs_what_is_counted_on_real_tensors() -> None:
    """The count on the meta device against every byte that is alive in a step of a model with
    numbers, unfused as on a CPU with dropout."""
    words = ["model=tiny-bert", "task=tweets", "init=lora", "train.batch_size=4", "device=cpu"]
    settings = settings_of(*words)
    planned = estimate.counted(sizes.shape_of(settings, length=24))[0]
    base = models.open(settings.model)
    model = base.load(dtype=torch.float32, head_seed=0, num_labels=3)
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: Factors(
            A=torch.randn(settings.rank, m.in_features, generator=generator),
            B=torch.zeros(m.out_features, settings.rank),
            start="shifted",
        )
        for name, m in base.targets(model).items()
    }
    adapters = attach(model, factors, 1.0, base.head)
    optimizer = make(settings.optimizer)(adapters, lr=1e-3, weight_decay=0.0)
    alive = peaks.resident(model, *(x for s in optimizer.state.values() for x in s.values()))
    model.train()
    tokens = torch.zeros(4, 24, dtype=torch.long)
    with alive:
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        torch.nn.functional.cross_entropy(logits, tokens[:, 0], reduction="sum").backward()
        optimizer.step()
    assert planned.train == pytest.approx(alive.peak, rel=0.1)


# --------------------------------------------------------------------------------------------------
# the verb


def said(capsys: Any, *arguments: str) -> str:
    assert cli.main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_plan_counts_runs_and_takes_times_from_records(tmp_path: Path, capsys, monkeypatch) -> None:
    from loraexp.models import load
    from loraexp.run import experiment

    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    path, out = (
        written(tmp_path, hours={"hardware": "2 CPU cores", "hours": 0.5, "how": "guessed"}),
        tmp_path / "out",
    )
    before = said(capsys, str(path), f"output_root={out}")
    assert (
        "runs    4: 0 finished, 4 to do" in before
        and "4 runs by 4·N FLOPs" in before
        and "0.5 h on 2 CPU cores (guessed)" in before
    )
    assert not out.exists()
    for cell, status in zip(cells_of(path, out)[:2], ("finished", "failed"), strict=True):
        cell.folder.mkdir(parents=True)
        cost = {
            "init_seconds": 1.0,
            "train_seconds": 99.0,
            "eval_seconds": 0.0,
            "init_peak_bytes": 2**30,
            "train_peak_bytes": 3 * 2**30,
        }
        (cell.folder / "record.json").write_text(
            json.dumps(
                {
                    "schema": SCHEMA,
                    "config": cell.plain,
                    "status": status,
                    "cost": cost,
                    "started": None,
                    "ended": None,
                }
            )
        )
    after = said(capsys, str(path), f"output_root={out}")
    assert "runs    4: 1 finished, 3 to do, of which 1 failed before" in after
    assert "5.0 min one after another (3 runs as their finished neighbours took)" in after
    assert "recorded" in after and "3.00" in after
    assert experiment.records.read(cells_of(path, out)[2].folder) is None


def test_the_time_of_a_computed_sweep_is_said_as_one_says_it(tmp_path: Path, capsys) -> None:
    before = said(capsys, "lora_one_slides_phase_portrait", f"output_root={tmp_path}")
    assert "one experiment without runs: to do" in before
    assert "  time    7.2 s on 2 CPU cores (measured)" in before  # 0.002 h in its yaml


def test_plan_says_what_does_not_fit(tmp_path: Path, capsys) -> None:
    base = [
        "model=llama-2-7b",
        "task=gsm8k",
        "precision=bf16",
        "wandb.mode=disabled",
        "train.batch_size=1",
        "task.max_length=64",
        "train.eval_batch_size=4",
    ]
    rows = {
        "lora": {"label": "LoRA", "overrides": ["init=lora"]},
        "full": {"label": "Full", "overrides": ["init=full"]},
    }
    path = written(
        tmp_path,
        base=base,
        rows=rows,
        columns={"gsm8k": {"label": "GSM8K", "value": "test/accuracy"}},
    )
    text = said(capsys, str(path), "--budget-gb", "24")
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["full"].endswith("NO") and lines["lora"].endswith("yes")
    assert "24 GB: full: 1 of 2 cells do not fit" in text
    weights = [float(lines[row].split()[1]) for row in ("lora", "full")]
    assert weights == [12.55, 25.10]
    assert "every cell fits" in said(capsys, str(path), "--budget-gb", "500")


def test_a_model_that_is_nowhere_is_said_and_does_not_stop_the_plan(tmp_path: Path, capsys) -> None:
    rows = {
        "here": {"label": "here"},
        "away": {"label": "away", "overrides": ["model=minilm", "model.name=x", "model.path=o/x"]},
    }
    text = said(capsys, str(written(tmp_path, rows=rows)))
    assert (
        "unknown model=x: o/x is not on this machine; set model.path=DIR" in text
        and "and 2 runs of unknown size" in text
    )
    assert any(line.strip().startswith("here ") for line in text.splitlines())


def test_a_wrong_budget_is_one_line(tmp_path: Path, capsys) -> None:
    assert cli.main(["plan", str(written(tmp_path)), "--budget-gb", "-3"]) == 2
    assert "--budget-gb -3.0: expected a number above 0" in capsys.readouterr().err


def test_disk_is_what_a_run_leaves(tmp_path: Path) -> None:
    path, out = (
        written(
            tmp_path,
            rows={"pissa": {"label": "PiSSA", "overrides": ["init=pissa"]}},
            grid={"seed": 0},
        ),
        tmp_path / "out",
    )
    assert go(path, out) == 0
    (cell,) = cells_of(path, out)
    costs = plans.Costs()
    plans.estimate_cell(reading.load(str(path)), cell, costs, None, todo=True)
    left = sum(file.stat().st_size for file in cell.folder.rglob("*") if file.is_file())
    assert 0.5 < costs.disk / left < 2, (costs.disk, left)
    assert set(TINY) <= set(yaml.safe_load(path.read_text())["base"])


# --------------------------------------------------------------------------------------------------
# against the papers

# What the papers print of one epoch on one card: sweep, row, column, hours.
HOURS = {
    "lora_sb_table5 mistral train_time_epoch": 11037 / 3600,  # 0:03:57 and 3:03:57
    "lora_sb_table5 gemma train_time_epoch": 15204 / 3600,
    "lora_sb_table5 llama train_time_epoch": 17671 / 3600,
    "lora_da_table5 rank_1 train_time": 8 * 1849 / 3600,  # on eight cards
    "lora_da_table5 rank_16 train_time": 8 * 1936 / 3600,
    "lora_one_table4 lora metamathqa_time": 380 / 60,
    "lora_one_table4 lora alpaca_time": 202 / 60,
    "lora_one_table4 lora code_feedback_time": 384 / 60,
}


@pytest.mark.parametrize("place", HOURS)
def test_hours_of_training_are_within_half_and_double_of_the_papers(place: str) -> None:
    name, row, column = place.split()
    found = loaded(name)
    cell = next(cell for cell in expand(thin(found)) if (cell.row, cell.column) == (row, column))
    settings = sizes.offline(config.typed(cell.plain))
    numbers = estimate.parameters(sizes.shape_of(settings))
    alone = replace(settings, task=settings.task | {"benchmarks": []})
    assert found.hours is not None
    hours = duration.seconds(alone, numbers, found.hours.hardware) / 3600
    assert 0.5 <= hours / HOURS[place] <= 2, f"{hours:.2f} h, the paper has {HOURS[place]:.2f}"


def test_rows_and_lengths_are_the_recipes() -> None:
    """LoRA-SB trains on 50,000 rows of MetaMathQA, LoRA-One on 100,000 below 512 tokens, whatever
    max_length allows."""
    sb, one = (
        settings_of("model=llama-2-7b", "task=metamath", f"task.protocol={name}")
        for name in ("lora_sb", "lora_one")
    )
    assert duration.rows_of(sb) == 50_000 and duration.rows_of(one) == 100_000
    assert duration.longest(sb) == 1024 and duration.longest(one) == 512
    assert (
        duration.rows_of(
            settings_of(
                "model=llama-2-7b", "task=metamath", "task.protocol=lora_one", "task.limit_train=70"
            )
        )
        == 70
    )
    assert duration.tokens_of(sb) > duration.tokens_of(one) + 20  # Alpaca's prompt


@pytest.mark.parametrize(
    "name", ["A40", "A6000", "A100 40GB", "A800", "H100", "V100", "T4", "RTX 4090"]
)
def test_no_card_is_faster_than_its_sheet(name: str) -> None:
    sheet = duration.card(name)
    assert sheet is not None
    for precision in ("bf16", "fp32"):
        assert duration.speed(name, precision) < sheet[precision] * 1e12
    assert (
        duration.speed("A100", "fp32") < 19.5e12
        and duration.speed("A100", "fp32", tf32=True) < 156e12
    )


def test_tied_embeddings_are_counted_once() -> None:
    settings = settings_of("model=t5-base", "task=cola_t5")
    model = estimate.bare(settings.model, torch.float32, 2)
    assert estimate.weight_bytes(model, settings.model) == 4 * PUBLISHED["t5-base"]


@pytest.mark.parametrize(
    ("init", "pairs"), [("lora", 1), ("pissa", 2), ("lora_ga", 2), ("milora", 2)]
)
def test_an_offset_is_counted_where_there_is_one(init: str, pairs: int) -> None:
    """LoRA starts from a product of zero: nothing stands beside its factors."""
    memory, numbers = estimate.counted(
        sizes.shape_of(settings_of("model=tiny-bert", "task=tweets", f"init={init}"), length=16)
    )
    assert memory.adapter == pairs * 4 * numbers["adapter"]


def test_initialising_never_needs_the_activations_of_more_rows_than_training() -> None:
    few = settings_of(
        "model=tiny-llama",
        "task=gsm8k",
        "init=lora_one",
        "init.batch_size=64",
        "train.batch_size=8",
        "train.micro_batches=8",
    )
    memory = estimate.counted(sizes.shape_of(few, length=64))[0]
    assert memory.init_activations <= memory.activations + memory.gradients


def test_answers_are_in_hours_and_memory() -> None:
    """A token of LLaMA-2-7B keeps 512 KiB in bf16; a benchmark more takes time."""
    words = [
        "model=llama-2-7b",
        "task=metamath",
        "task.protocol=lora_sb",
        "precision=bf16",
        "init=lora",
    ]
    settings = settings_of(*words, "train.eval_batch_size=16")
    memory, numbers = estimate.counted(sizes.shape_of(settings))
    assert (
        memory.written == 16 * duration.written_tokens(settings) * 512 * 1024
        and memory.write > memory.weights
    )
    one, two = (
        replace(settings, task=settings.task | {"benchmarks": names})
        for names in (["gsm8k"], ["gsm8k", "math"])
    )
    first, second = (duration.seconds(each, numbers, "A100") for each in (one, two))
    assert (
        600
        < first
        - duration.seconds(replace(one, task=one.task | {"benchmarks": []}), numbers, "A100")
        < 3600
        and second > first
    )


@pytest.mark.parametrize(
    ("words", "budget", "key"),
    [
        (["init=lora"], 5, "model.quantise=4bit"),
        (["init=lora", "train.batch_size=32"], 40, "train.micro_batches=32"),
        (
            ["init=lora", "train.batch_size=32", "train.micro_batches=32"],
            16,
            "model.gradient_checkpointing=true",
        ),
    ],
)
def test_the_key_that_helps_is_named(words: list[str], budget: float, key: str) -> None:
    settings = settings_of(
        "model=llama-2-7b", "task=metamath", "precision=bf16", "train.eval_batch_size=1", *words
    )
    memory = estimate.counted(sizes.shape_of(settings))[0]
    assert memory.peak > budget * 1e9 and sizes.remedy(memory, settings, budget * 1e9) == key


def promised() -> list[tuple[str, str | None]]:
    """Sweeps and variants of runs that say how long they take."""
    return [
        (name, variant)
        for name in reading.names()
        for variant in variants(name)
        if loaded(name, variant).hours is not None and loaded(name, variant).compute is None
    ]


@cache
def numbers_of(model: str) -> dict[str, int]:
    """What time depends on: layers, and products of the linear ones, the same under every
    initializer."""
    return estimate.parameters(sizes.shape_of(settings_of(*fitting(model))))


@pytest.mark.parametrize(("name", "variant"), promised())
def test_hours_of_a_sweep_are_the_plans(name: str, variant: str | None) -> None:
    """An estimate is what the plan counts of the same runs; a measured time is within a factor of
    it."""
    found = loaded(name, variant)
    assert found.hours is not None
    seconds = 0.0
    for cell in {cell.folder: cell for cell in expand(found.whole())}.values():
        settings = config.typed(cell.plain)
        taken = duration.seconds(settings, numbers_of(settings.model.name), found.hours.hardware)
        assert taken is not None
        seconds += taken
    factor = found.hours.hours / (seconds / 3600)
    least, most = (0.9, 1.1) if found.hours.how.startswith("loraexp plan") else (1 / 3, 3)
    assert "estimate" not in found.hours.how and least <= factor <= most, (
        f"{found.hours.hours:g} h, the plan has {seconds / 3600:.3g} h"
    )


def test_what_is_evaluated_on_the_way_is_in_the_hours() -> None:
    """SST-2's 872 sentences every 100 of 1,000 steps are read ten times, and with a part of train
    that selects its 1,000 rows too, dev once or each time."""
    words = ["task=sst2", "train.max_steps=1000", "train.eval_every=100"]
    for more, rows in (
        (["task.protocol=paper"], 8720),
        ([], 10 * 1000 + 872),
        (["train.report_during=true"], 10 * 1872),
        (["task.limit_eval=50"], 10 * 50 + 50),
    ):
        assert duration.checked_rows(settings_of(*words, *more), 1000) == rows
    answers = settings_of("task=gsm8k", "model=llama-2-7b", "task.held_out=30", *words[1:])
    assert duration.checked_rows(answers, 1000) == 300
    once, often = (
        replace(answers, train=replace(answers.train, report_during=value))
        for value in (False, True)
    )
    numbers = {"products": 6_000_000_000, "layers": 32}
    seconds = [duration.seconds(each, numbers, "A100") for each in (once, often)]
    rate = duration.speed("A100", answers.precision)
    one = duration.answers_seconds(answers, numbers, duration.card("A100"), rate)
    assert seconds[1] - seconds[0] == pytest.approx(9 * one) and one > 60


def test_every_benchmark_that_a_task_asks_is_known_to_the_plan() -> None:
    for name in ("commonsense170k", "metamath", "gsm8k", "alpaca", "code_feedback"):
        for benchmark in settings_of(f"task={name}", "model=llama-2-7b").task["benchmarks"]:
            assert duration.questions(benchmark)["rows"] > 0
