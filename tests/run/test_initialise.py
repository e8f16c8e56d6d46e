"""Initialising end to end: descent at step 0, the ledger, the cache, the order of the data, every
saved adapter."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from loraexp import cli, config, models
from loraexp.adapter.adapted import attach, scaling_factor
from loraexp.adapter.layer import Factors, Training
from loraexp.initializers.lora_sb import lora_sb
from loraexp.machine import measure
from loraexp.machine.device import Runtime
from loraexp.machine.processes import Processes
from loraexp.run import components, initialise
from loraexp.run.initialise import (
    Made,
    calibration_rows,
    initialize,
    longest_first,
    settled,
    shares,
    statistics_of,
    training_of,
)
from tests.support.helpers import shared_data
from tests.support.runs import run

INITS = [name for name in config.names("init") if name != "full"]
HAS_START = [
    name for name in INITS if "start" in config.read_yaml("init", name) and name != "one_step"
]
CELLS = [(name, start) for name in HAS_START for start in ("pretrained", "shifted")] + [
    ("one_step", "shifted")
]


@pytest.mark.parametrize(("init", "start"), CELLS)
def test_every_saved_adapter_is_the_same_function_on_the_original_base(
    init, start, tmp_path: Path, capsys
) -> None:
    """`loraexp verify`: our layer, PEFT on the original checkpoint, and merged, for every
    initializer and start."""
    outcome = run("train.max_steps=2", f"init={init}", f"init.start={start}", out=tmp_path)
    assert cli.main(["verify", str(outcome.folder)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "PEFT" in printed and "merged" in printed and printed.rstrip().endswith("agree")


def test_apart_in_bf16_is_better_than_an_edited_weight(tmp_path: Path, capsys) -> None:
    """PiSSA's offset is as large as the weight's leading part, a gradient start far smaller: both
    lose when edited in."""
    for init in ("cg_lora", "lora_one"):
        outcome = run(
            "model=minilm",
            "task.limit_eval=32",
            "train.max_steps=1",
            f"init={init}",
            "init.samples=32",
            out=tmp_path,
        )
        cli.main(["verify", str(outcome.folder)])
        rms = {
            line.split("rms")[0].strip(): float(line.split()[-5])
            for line in capsys.readouterr().out.splitlines()
            if "rms" in line
        }
        assert rms["bf16, kept apart"] < rms["bf16, weight edited"]


def prepared(*overrides: str) -> tuple:
    settings, _ = config.check(
        config.compose(
            ["task=tweets", "task.limit_train=512", "init.samples=64", "init.rows=head", *overrides]
        )
    )
    task = components.make(settings.task)(
        tokenizer=models.open(settings.model).tokenizer, cache_root=Path(settings.cache_root)
    )
    model = models.open(settings.model).load(
        dtype=torch.float32, head_seed=0, **components.labels(task)
    )
    head = models.head(model)
    return settings, task, model, head, models.target_layers(model, settings.model.targets, head)


def made_for(settings, task, model, targets):
    scaling = scaling_factor(settings.adapter.scaling, settings.alpha, settings.rank)
    initializer = components.make(settings.init)
    return scaling, initialize(
        model,
        targets,
        task,
        initializer,
        scaling=scaling,
        settings=settings,
        runtime=Runtime(device=torch.device("cpu"), precision="fp32", processes=Processes("cpu")),
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("init=cg_lora", "init.start=shifted", "init.gamma=32"),
        ("init=lora_one", "init.batch_size=64", "init.mode=eval"),
        ("init=lora_sb", "lr=1e-3", "init.batch_size=64"),
    ],
    ids=lambda o: o[0],
)
def test_a_shifted_start_descends_and_its_negative_climbs(overrides: tuple[str, ...]) -> None:
    """On the calibration rows themselves, with a small scale: the loss at step 0 is below the
    pretrained one; with the sign flipped on purpose it is above."""
    settings, task, model, head, targets = prepared(*overrides)
    scaling, made = made_for(settings, task, model, targets)
    before = made.ledger["loss"]["before"]
    adapters = attach(model, made.factors, scaling, head)
    below = made.finish()["loss"]["after"]
    with torch.no_grad():
        for layer in adapters:
            layer.lora_B.neg_()
    above = made.probe()
    assert below < before - 1e-4 and above > before + 1e-4, (below, before, above)


@pytest.mark.parametrize(
    ("start", "after", "warned"),
    [("shifted", 1.2, True), ("shifted", 0.9, False), ("pretrained", 1.2, False)],
)
def test_a_rising_loss_is_said(start, after: float, warned: bool) -> None:
    """Only where the start moved the function, and with the remedy."""
    factors = {"x": Factors(A=torch.ones(1, 2), B=torch.ones(2, 1), start=start)}
    made = Made(factors, {}, {"loss": {"before": 1.0}, "warnings": []}, probe=lambda: after)
    warnings = made.finish()["warnings"]
    assert bool(warnings) == warned
    assert all(
        "the loss rose from 1.0000 to 1.2000" in w and "init.start=pretrained" in w
        for w in warnings
    )


@pytest.mark.parametrize("init", INITS)
def test_the_ledger_says_what_was_seen_and_made(init: str, tmp_path: Path) -> None:
    outcome = run(f"init={init}", "init.cache=false", "train.max_steps=0", out=tmp_path)
    ledger = json.loads((outcome.folder / "init" / "ledger.json").read_text())
    assert len(ledger["layers"]) == 4
    for line in ledger["layers"].values():
        assert line["relative_norm"] >= 0 and line["singular_values"] == sorted(
            line["singular_values"], reverse=True
        )
        if line["energy"] is not None:
            assert 0 <= line["energy"]["share"] <= 1 + 1e-5
    statistics = ledger["statistics"]
    data_driven = bool(config.target(config.read_yaml("init", init), "init").needs)
    assert (statistics["samples"] > 0) == (statistics["forward_sweeps"] > 0) == data_driven
    assert ledger["loss"]["before"] > 0 and ledger["loss"]["after"] > 0


def test_a_grid_over_lr_computes_its_statistics_once(tmp_path: Path) -> None:
    """And a changed seed, row choice or mode is never served from the cache."""
    common = (f"cache_root={tmp_path / 'cache'}", "init=cg_lora", "train.max_steps=1")

    def hit(*overrides: str) -> tuple[bool, bytes]:
        outcome = run(*common, *overrides, out=tmp_path)
        ledger = json.loads((outcome.folder / "init" / "ledger.json").read_text())
        return (
            ledger["statistics"]["cache_hit"],
            (outcome.folder / "init" / "factors.safetensors").read_bytes(),
        )

    first, second = hit("lr=1e-3"), hit("lr=2e-3")
    assert (first[0], second[0]) == (False, True) and first[1] == second[1]
    for changed in (
        "seed=1",
        "init.rows=head",
        "init.samples=16",
        "init.basis=2r",
        "task.max_length=24",
        "model.weights_seed=1",
    ):
        assert not hit(changed)[0], changed
    assert hit("init.gamma=4")[0]  # what does not enter the statistics does not make them anew


# LoRA-SB's Table 7 at lr 2e-3
TRAINING = Training(lr=2e-3, factor=1 / 32, warmup_ratio=0.02, steps=1563, epochs=1.0, rows=50_000)


@pytest.mark.parametrize(
    ("hyper", "step"),
    [
        ({}, 2e-3 / 32),  # the scheduled first step of 1,563 with a warm-up of 0.02
        ({"flavour": "released"}, 2e-3 / (0.02 * 1563)),
        # eg_bs of the code's train_arithmetic.py
        ({"flavour": "released", "loader_batch": 3}, 2e-3 / (0.02 * 16_667)),
        ({"step_size": 0.1, "flavour": "released"}, 0.1),
    ],
)
def test_the_step_of_lora_sb_is_that_of_the_schedule(hyper: dict, step: float) -> None:
    assert lora_sb.settle(hyper, TRAINING)["step_size"] == pytest.approx(step, rel=1e-12)


def test_the_schedule_of_a_run_gives_the_first_step() -> None:
    """LoRA-SB's Table 7: 50,000 rows in batches of 32 are 1,563 steps, 32 of them of warm-up,
    whichever way they are counted."""
    common = [
        "init=lora_sb",
        "task=metamath",
        "model=tiny-llama",
        "lr=1e-4",
        "train.warmup_ratio=0.02",
        "train.scheduler=cosine",
    ]
    for how in (["train.epochs=1"], ["train.max_steps=1563"], ["train.max_steps=0"]):
        settings, _ = config.check(config.compose([*common, "train.batch_size=32", *how]))
        training = training_of(settings, 50_000)
        assert (training.steps, training.factor) == (1563, pytest.approx(1 / 32))
        assert settled(components.make(settings.init), training).keywords[
            "step_size"
        ] == pytest.approx(1e-4 / 32)
    settings, _ = config.check(
        config.compose([*common, "train.warmup_ratio=0", "init.flavour=released"])
    )
    with pytest.raises(
        config.ConfigError,
        match=r"init.flavour=released divides lr by train.warmup_ratio, which is 0",
    ):
        components.check_model(settings, models.open(settings.model))


def step_zero(*overrides: str) -> tuple[float, float, dict]:
    """The loss on the same rows before and after initialising, and the ledger."""
    settings, _ = config.check(config.compose(["init=lora_sb", "device=cpu", *overrides]))
    base = models.open(settings.model)
    task = components.tokenise(settings, base)
    model = base.load(dtype=torch.float32, head_seed=0, **components.labels(task))
    scaling, made = made_for(settings, task, model, base.targets(model))
    attach(model, made.factors, scaling, models.head(model))
    ledger = made.finish()
    return ledger["loss"]["before"], ledger["loss"]["after"], ledger


def test_the_scheduled_step_lowers_the_loss_of_an_encoder() -> None:
    common = (
        "model=minilm",
        "task=tweets",
        "task.limit_train=1024",
        "task.limit_eval=8",
        "lr=2e-3",
        "rank=8",
        "alpha=8",
        "init.samples=64",
    )
    # 128 steps, 26 of warm-up
    common += ("train.warmup_ratio=0.2", "train.batch_size=8", "train.epochs=1")
    before, after, ledger = step_zero(*common)
    assert after < before and ledger["hyper_parameters"]["step_size"] == pytest.approx(2e-3 / 26)
    _, peak, _ = step_zero(*common, "init.step_size=2e-3")
    assert abs(peak - before) > 5 * (before - after)  # 26 times the step


@pytest.mark.slow
def test_the_scheduled_step_lowers_the_loss_of_a_causal_model() -> None:
    """SmolLM2 on GSM8K at lr 2e-3 and LoRA-SB's warm-up: below the pretrained loss, where the peak
    rate takes it far above."""
    data = shared_data("gsm8k")
    common = (
        "model=smollm2-135m",
        "task=gsm8k",
        f"task.data_dir={data}",
        "task.limit_train=7473",
        "task.limit_eval=8",
        "lr=2e-3",
    )
    common += (
        "rank=32",
        "alpha=32",
        "init.samples=16",
        "train.warmup_ratio=0.02",
        "train.batch_size=4",
        "train.epochs=1",
    )
    before, after, ledger = step_zero(*common)  # 37 steps of warm-up
    assert after < before and ledger["hyper_parameters"]["step_size"] == pytest.approx(2e-3 / 37)
    _, peak, _ = step_zero(*common, "init.step_size=2e-3")
    assert peak > before + 1


def test_initialising_does_not_change_what_comes_after() -> None:
    """The global generator, the train/eval mode, requires_grad and hooks are as they were: the data
    order is the seed's."""
    settings, task, model, _, targets = prepared(
        "model=tiny-bert", "init=cg_lora", "init.mode=eval"
    )
    model.train()
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made_for(settings, task, model, targets)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and [p.requires_grad for p in model.parameters()] == flags
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()
    )


@pytest.mark.parametrize(("world", "most"), [(1, 12), (2, 6)])
def test_a_pass_has_the_rows_of_training_and_statistics_are_the_same(
    world: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the paper draws together, and each process its share of them."""
    words = ("init=lora_one", "init.cache=false", "train.batch_size=24", "train.micro_batches=2")
    settings, task, model, _, targets = prepared(*words, "init.batch_size=64")
    collate, sizes = task.collate, list[int]()

    def watched(examples: Any, rows: Any, *more: Any, **how: Any) -> Any:
        sizes.append(len(rows))
        return collate(examples, rows, *more, **how)

    monkeypatch.setattr(task, "collate", watched)
    found = []
    for rank in range(world):
        processes = cast(Processes, SimpleNamespace(world=world, rank=rank))
        initializer = components.make(settings.init)
        runtime = Runtime(device=torch.device("cpu"), precision="fp32", processes=processes)
        statistics = statistics_of(model, targets, initializer, task, settings, runtime)
        found.append(statistics.report.samples)
    assert max(sizes) == most and sum(sizes) == 64 * world and sum(found) == 64


@pytest.mark.parametrize("equal", [False, True])
def test_processes_share_batches_by_their_tokens_or_by_their_number(equal: bool) -> None:
    """In one run of batches each, so that a sample keeps its place; nobody has more than half a
    batch beside a fair share."""
    batches = [{"x": torch.zeros(4, n)} for n in (40, 31, 22, 13, 8, 5, 4, 3, 2, 1)]
    sizes = [1 if equal else batch["x"].numel() for batch in batches]
    for world in (1, 2, 3, 12):
        first = shares(batches, world, equal)
        assert first == sorted(first) and (first[0], first[-1], len(first)) == (0, 10, world + 1)
        own = [sum(sizes[a:b]) for a, b in pairwise(first)]
        assert max(own) <= sum(sizes) / world + max(sizes)
    if not equal:
        assert shares(batches, 2, equal) == [0, 2, 10]


def test_calibration_rows_of_a_batch_have_about_one_length() -> None:
    """The longest first; rows of one length as they were drawn."""
    lengths = np.array([3, 9, 5, 9, 1, 7])
    assert longest_first(np.array([4, 3, 0, 1, 5]), lengths).tolist() == [3, 1, 5, 0, 4]


def test_the_order_of_the_calibration_rows_is_nothing_to_a_statistic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("model=tiny-bert", "init=lora_da", "init.mode=eval", "train.batch_size=16")
    settings, task, model, _, targets = prepared(*words, "init.cache=false")
    runtime = Runtime(device=torch.device("cpu"), precision="fp32", processes=Processes("cpu"))
    found = []
    for order in (longest_first, lambda rows, lengths: rows):
        monkeypatch.setattr(initialise, "longest_first", order)
        made = components.make(settings.init)
        collected = statistics_of(model, targets, made, task, settings, runtime)
        found.append({layer.name: layer.statistics for layer in collected.layers})
    assert list(found[0]) == list(found[1]) == list(targets)
    for statistic in ("gradient", "input_moment", "output_moment"):
        one, other = ([of[name][statistic] for name in targets] for of in found)
        assert one[0].abs().max() > 0
        rounding = 1e-5 * max(float(x.abs().max()) for x in one)
        pairs = zip(one, other, strict=True)
        assert all(torch.allclose(x, y, rtol=1e-4, atol=rounding) for x, y in pairs)


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (("init=lora",), 1),
        (("init=cg_lora",), 1),
        (("init=cg_lora", "init.start=shifted"), 4),
    ],
    ids=["zero", "taken off again", "shifted"],
)
def test_a_start_that_leaves_the_function_alone_is_seen_on_one_batch(
    words: tuple[str, ...], again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are run only where it moves, or where it should not have."""
    settings, task, model, head, targets = prepared(
        "model=tiny-bert", *words, "init.samples=64", "train.batch_size=16"
    )
    scaling, made = made_for(settings, task, model, targets)
    adapters = attach(model, made.factors, scaling, head)
    passes = []
    sums = made.probe.sums
    monkeypatch.setattr(made.probe, "sums", lambda b: passes.append(len(b)) or sums(b))
    loss = made.finish()["loss"]
    assert passes == ([4] if again == 4 else [1])
    assert loss["after"] == pytest.approx(made.probe(), rel=1e-6)
    if words == ("init=lora",):
        assert loss["after"] == loss["before"]
    with torch.no_grad():
        for layer in adapters:
            layer.lora_B.add_(1.0)  # what no start says it does
    passes.clear()
    assert made.finish()["loss"]["after"] == made.probe() != loss["before"]
    assert passes == ([4, 4] if again == 4 else [1, 4, 4])


def test_calibration_rows() -> None:
    settings, _ = config.check(config.compose(["init=cg_lora", "init.samples=8"]))
    head, _ = config.check(config.compose(["init=cg_lora", "init.samples=8", "init.rows=head"]))
    assert calibration_rows(100, head.calibration, 0).tolist() == list(range(8))
    drawn = calibration_rows(100, settings.calibration, 0)
    assert len(set(drawn.tolist())) == 8 and not np.array_equal(
        drawn, calibration_rows(100, settings.calibration, 1)
    )
    assert np.array_equal(drawn, calibration_rows(100, settings.calibration, 0))


def test_frugal_and_fast_ways_give_the_same_factors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for init in ("cg_lora", "lora_one", "lora_ga", "lora_sb", "lora_da"):
        products = []
        for budget in ("init.memory_budget=0", "init.memory_budget=1e9"):
            outcome = run(
                f"init={init}",
                budget,
                "init.mode=eval",
                "init.cache=false",
                "train.max_steps=0",
                out=tmp_path,
            )
            parts = load_file(outcome.folder / "init" / "factors.safetensors")
            names = {key.rpartition(".")[0] for key in parts if key.endswith("lora_A")}
            found = {}
            for name in names:
                middle = parts.get(f"{name}.lora_R", torch.eye(8))
                found[name] = parts[f"{name}.lora_B"] @ middle @ parts[f"{name}.lora_A"]
            products.append(found)
        for name, product in products[0].items():
            scale = float(product.abs().max())
            torch.testing.assert_close(
                product,
                products[1][name],
                rtol=1e-3,
                atol=2e-3 * scale,
                msg=lambda m, i=init: f"{i}: {m}",
            )


def test_auto_is_a_share_of_what_the_device_has_free_beside_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number stays what it is, a host's memory is everybody's, and an accelerator's share is what
    the statistics keep to: the same factors as with that number, in as many sweeps."""
    settings, _ = config.check(config.compose(["init=cg_lora"]))
    assert settings.calibration.memory_budget == "auto"
    shares = [settings.calibration.budget(free) for free in (None, 10**9, -5)]
    assert shares == [2 * 10**9, 75 * 10**7, 0]
    one, _ = config.check(config.compose(["init=cg_lora", "init.memory_budget=7"]))
    assert [one.calibration.budget(free) for free in (None, 10**9)] == [7, 7]
    assert measure.free_bytes(torch.device("cpu")) is None

    words = ("init=lora_one", "init.cache=false", "train.max_steps=0")
    taken: list[int] = []

    def beside(device: torch.device, work: Any) -> int:
        work()  # nothing of it may be seen in the statistics
        taken.append(1)
        return 53_334

    monkeypatch.setattr(measure, "bytes_beside", beside)
    half = run(*words, out=tmp_path / "half")
    assert taken == [1]
    monkeypatch.undo()
    typed = run(*words, "init.memory_budget=40000", out=tmp_path / "typed")
    plenty = run(*words, out=tmp_path / "plenty")
    told = [
        json.loads((one.folder / "init" / "ledger.json").read_text())["statistics"]["way"]
        for one in (half, typed, plenty)
    ]
    assert told[0] == told[1] != told[2]
    parts = [(one.folder / "init" / "factors.safetensors").read_bytes() for one in (half, typed)]
    assert parts[0] == parts[1]
