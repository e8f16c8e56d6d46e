"""What tests/README.md holds without a device, on one: skipped where there is no CUDA device."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraexp import cli, config
from loraexp.machine.signals import Interrupted
from loraexp.run import batches, evaluate, experiment, initialise, kept, loop, packed, train
from loraexp.scoring import generate
from loraexp.statistics.sweeps import Sweeper
from loraexp.sweep import cards, estimate, sizes
from loraexp.tasks import text
from tests.support.cards import Watched, watched
from tests.support.pretend import counted
from tests.support.runs import metric_lines, run
from tests.support.shortened import shortened
from tests.support.text_data import overrides, write_all
from tests.support.together import WITHOUT_DROPOUT, factors, farthest

pytestmark = pytest.mark.gpu
INITS = [name for name in config.names("init") if name != "full"]
RULES = config.names("optimizer")
KINDS = {"encoder": None, "causal": "gsm8k", "seq2seq": "cola_t5"}
PAPERS = "task.protocol=cg_lora"
STEPS = 6
TRAINING = ("train.max_steps=6", "train.log_every=3", "train.eval_every=0", "train.batch_size=8")
NEVER = ("train.checkpoint_every=1h", "train.micro_batches=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


def words_of(kind: str, data: Path) -> list[str]:
    task = KINDS[kind]
    if task is None:
        return ["device=cuda"]
    given = [word for word in overrides(data)[task] if "protocol" not in word]
    return ["device=cuda", *given, "task.protocol=[lora_ga]" if kind == "causal" else PAPERS]


def init_of(rule: str) -> str:
    return "init=lora_fa" if rule == "lora_fa" else "init=lora"


def products(folder: Path, init: str) -> dict[str, torch.Tensor]:
    """What of the factors of every layer is no matter of signs: B A, or what A and B span.

    LoRA-GA pairs the first singular vectors of one side with the next ones of the other, LoRA-XS
    draws R in a basis of singular vectors, and B is zero in LoRA.
    """
    parts, made = load_file(folder / "init" / "factors.safetensors"), {}
    for key in parts:
        name, _, kind = key.rpartition(".")
        if kind == "lora_A":
            A, B = parts[key], parts[f"{name}.lora_B"]
            R = parts.get(f"{name}.lora_R", torch.eye(len(A)))
            apart = init in ("lora_ga", "lora_xs") or not float(B.abs().max())
            made |= {name: A.mT @ A, f"{name}, B": B @ B.mT} if apart else {name: B @ R @ A}
    return made


# --------------------------------------------------------------------------------------------------
# the same numbers


@pytest.mark.parametrize("init", INITS)
def test_initial_factors_are_those_of_the_cpu(init: str, tmp_path: Path) -> None:
    """Test matrices are drawn on the CPU, so products agree up to rounding on every device."""
    found = []
    for device in ("cpu", "cuda"):
        words = (f"init={init}", f"device={device}", "init.mode=eval", "init.cache=false")
        folder = run(*words, "train.max_steps=0", out=tmp_path / device).folder
        found.append(products(folder, init))
    cpu, cuda = found
    assert cpu and cpu.keys() == cuda.keys()
    for name, value in cpu.items():
        near = 1e-2 if init.startswith("lora_da") else 2e-3  # which inverts moments of few rows
        torch.testing.assert_close(
            cuda[name], value, rtol=1e-3, atol=near * float(value.abs().max())
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_goes_the_way_that_it_goes_on_the_cpu(
    rule: str, kind: str, data: Path, tmp_path: Path
) -> None:
    """Losses of six steps, without dropout, whose draws are another device's."""
    losses = []
    words = [*words_of(kind, data), *TRAINING, "train.log_every=1"]
    dropout = {"encoder": WITHOUT_DROPOUT, "seq2seq": ("+model.config.dropout_rate=0",)}
    for device in ("cpu", "cuda"):
        given = [*words, f"optimizer={rule}", init_of(rule), *dropout.get(kind, ())]
        given += [f"device={device}", "lr=1e-3", "train.select=last"]
        outcome = run(*given, out=tmp_path / device)
        lines = metric_lines(outcome.folder)
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == STEPS and losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[0][0] != losses[0][-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_trains_records_and_verifies(rule: str, precision: str, tmp_path: Path) -> None:
    words = (f"optimizer={rule}", init_of(rule), f"precision={precision}", "device=cuda")
    outcome = run(*words, out=tmp_path)
    record = json.loads((outcome.folder / "record.json").read_text())
    assert record["cost"]["train_peak_bytes"] > 0 and record["environment"]["hardware"]["gpus"]
    spent = record["cost"]["loop_seconds"]
    assert min(spent["forward"], spent["backward"], spent["optimizer"]) > 0
    for command in ("verify", "eval"):
        assert cli.main([command, str(outcome.folder)]) == 0


@pytest.mark.parametrize("init", config.names("init"))
def test_every_initializer_works_in_bf16(init: str, tmp_path: Path) -> None:
    """The loss before it starts is that of float32, and what is made is in float32."""
    words = (f"init={init}", "init.cache=false", "precision=bf16", "device=cuda")
    outcome = run(*words, out=tmp_path)
    assert outcome.record["status"] == "finished"
    if init == "full":
        return
    plain = run("init=lora", "device=cpu", "train.max_steps=0", out=tmp_path / "cpu")
    before, exact = (
        json.loads((o.folder / "init" / "ledger.json").read_text())["loss"]["before"]
        for o in (outcome, plain)
    )
    assert before == pytest.approx(exact, rel=0.02)
    made = load_file(outcome.folder / "init" / "factors.safetensors")
    assert {x.dtype for x in made.values()} == {torch.float32}
    assert all(bool(x.isfinite().all()) for x in made.values())


# --------------------------------------------------------------------------------------------------
# the same bits


def telling(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A signal to stop arrives before a step."""
    step = train.step

    def told(made: Any, parts: Any, number: int, *rest: Any) -> Any:
        if number == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(made, parts, number, *rest)

    monkeypatch.setattr(train, "step", told)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deterministic_run_goes_on_to_the_bit(
    kind: str, precision: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout on; stopped after three steps of six, and a second time from the start."""
    words = [*words_of(kind, data), *TRAINING, f"precision={precision}", "init=lora_one"]
    words += ["train.deterministic=true", "lr=1e-3"]
    whole = run(*words, out=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        telling(patch, 3)
        run(*words, out=tmp_path / "cut")
    cut = run(*words, out=tmp_path / "cut")
    assert cut.record["resumed"] and whole.record["status"] == "finished"
    again = run(*words, out=tmp_path / "again")
    for other in (cut, again):
        assert farthest(whole.folder, other.folder) == 0
        assert metric_lines(whole.folder) == metric_lines(other.folder)


def test_a_run_of_a_card_goes_on_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("init=pissa", *TRAINING, *WITHOUT_DROPOUT)
    whole = run(*words, "device=cuda", out=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        telling(patch, 3)
        run(*words, "device=cuda", out=tmp_path / "cut")
    cut = run(*words, "device=cpu", out=tmp_path / "cut")
    assert cut.record["resumed"] and farthest(whole.folder, cut.folder) < 1e-4


# --------------------------------------------------------------------------------------------------
# how often the host waits


@pytest.fixture
def card() -> Iterator[Watched]:
    torch.zeros(1, device="cuda")
    with watched() as found:
        yield found


def test_waits_are_seen(card: Watched) -> None:
    x = torch.ones(3, device="cuda")
    assert not card.waits
    for read in (lambda: x.sum().item(), lambda: x.cpu(), lambda: x[x > 0], lambda: x.nonzero()):
        card.waits.clear()
        read()
        assert len(card.waits) >= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [*RULES, "full"])
def test_a_step_never_waits_and_a_line_of_the_log_waits_once(
    rule: str,
    kind: str,
    data: Path,
    card: Watched,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = counted(card, train, "step", monkeypatch)  # type: ignore[arg-type]
    collated = counted(card, batches.Batches, "of", monkeypatch)  # type: ignore[arg-type]
    lines = counted(card, train, "log_step", monkeypatch)  # type: ignore[arg-type]
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"held_out": {}, "dev": {}})
    monkeypatch.setattr(train.Loop, "watched", property(lambda self: []))
    chosen = ["init=full"] if rule == "full" else [f"optimizer={rule}", init_of(rule)]
    run(*words_of(kind, data), *TRAINING, *NEVER, *chosen, out=tmp_path)
    where = card.waits.lines()
    assert steps == [0] * STEPS, where
    assert collated == [0] * STEPS, where
    assert lines == [1] * (STEPS // 3), where


@pytest.mark.parametrize("init", INITS)
def test_initialising_waits_once_a_sweep_and_a_few_times_a_layer(
    init: str, card: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = counted(card, Sweeper, "run", monkeypatch)  # type: ignore[arg-type]
    passes = counted(card, Sweeper, "batch", monkeypatch)  # type: ignore[arg-type]
    lines = counted(card, initialise, "describe", monkeypatch)  # type: ignore[arg-type]
    words = (f"init={init}", "init.cache=false", "device=cuda", "train.max_steps=0", "rank=2")
    run(*words, "init.samples=24", out=tmp_path)
    where = card.waits.lines()
    assert passes == [0] * len(passes), where
    assert max(sweeps, default=0) <= 1, where
    assert lines and set(lines) == {1}, where


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_an_evaluation_waits_once(
    kind: str, data: Path, card: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a benchmark that is answered in text once every 16 tokens."""
    words = words_of(kind, data)
    if kind == "causal":
        shortened(monkeypatch, "gsm8k", "lora_ga", 32)
        words += ["task.protocol=lora_ga", "task.limit_eval=4"]
    of_batches = [
        counted(card, module, "of_batches", monkeypatch)  # type: ignore[arg-type]
        for module in (evaluate, text)
    ]
    written = counted(card, generate, "generate", monkeypatch)  # type: ignore[arg-type]
    size = 1 if kind == "causal" else 2
    run(*words, "init=lora", "train.max_steps=1", f"train.eval_batch_size={size}", out=tmp_path)
    where = card.waits.lines()
    assert sum(of_batches, []), where
    assert sum(written) <= 4 * 32 // 16 + 2 * len(written), where


# --------------------------------------------------------------------------------------------------
# together, without padding, with the driver


def test_runs_that_share_their_passes_are_the_runs_alone(tmp_path: Path) -> None:
    each = [["init=lora"], ["init=pissa", "lr=1e-4"], ["init=lora_fa", "optimizer=sgd", "rank=4"]]
    shared = ["experiment=smoke", "wandb.mode=disabled", "device=cuda", *WITHOUT_DROPOUT]
    shared += [*TRAINING, f"cache_root={tmp_path / 'cache'}"]
    outcomes: dict[str, list[Any]] = {}
    for how in ("together", "alone"):
        made = [
            config.check(config.compose([*shared, f"output_root={tmp_path / how}", *own]))
            for own in each
        ]
        outcomes[how] = (
            list(packed.run(made))
            if how == "together"
            else [experiment.run(settings, plain) for settings, plain in made]
        )
    for one, other in zip(outcomes["together"], outcomes["alone"], strict=True):
        assert one.record["packed"] == len(each)
        assert farthest(one.folder, other.folder) < 1e-5


@pytest.mark.parametrize("kind", ["encoder", "causal"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_without_padding_take_the_steps_of_padded_ones(
    kind: str, precision: str, data: Path, tmp_path: Path
) -> None:
    words = [*words_of(kind, data), *TRAINING, "train.log_every=1", f"precision={precision}"]
    words += ["init=lora_one", "lr=1e-3", *(WITHOUT_DROPOUT if kind == "encoder" else ())]
    losses = []
    for unpadded in ("false", "true"):
        outcome = run(*words, f"train.unpadded={unpadded}", out=tmp_path / unpadded)
        assert bool(outcome.record["cost"]["train_unpadded"]) == (unpadded == "true")
        losses.append([x["loss"] for x in metric_lines(outcome.folder) if "loss" in x])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 2e-2)


def test_the_driver_and_torch_call_a_card_the_same() -> None:
    names = cards.of_node()
    known = cards.identities(names)
    for number, name in enumerate(names):
        assert known[name] == f"GPU-{torch.cuda.get_device_properties(number).uuid}"


@pytest.mark.parametrize("init", ["lora", "lora_one", "lora_da", "cg_lora", "full"])
def test_the_plan_is_what_the_card_allocates(init: str, tmp_path: Path) -> None:
    """A LLaMA of four layers, 1,024 wide, over rows of 512 tokens, in bf16."""
    rows = "\n".join(f"say {i},{'and then ' * 400}{i}" for i in range(24))
    (tmp_path / "train.csv").write_text(f"q,a\n{rows}\n")
    wide = {
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 32000,
    }
    words = ["model=tiny-llama", "task=data", f"task.data_dir={tmp_path}", "task.prompt='{q}:'"]
    words += [f"model.config.{key}={value}" for key, value in wide.items()]
    words += ["task.response='{a}'", "task.held_out=4", "task.max_length=512", "precision=bf16"]
    words += ["train.batch_size=4", "train.eval_batch_size=4", "init.samples=8", "device=cuda"]
    words += [f"init={init}", "train.max_steps=3", "init.cache=false", "task.limit_train=null"]
    words += ["init.memory_budget=1000000000"]  # auto is more on a card that has more free
    if init == "lora_da":  # rows of the same words
        words += ["init.damping_mode=relative", "init.damping=0.001"]
    kept.clear()
    held = of_the_libraries()
    outcome = run(*words, out=tmp_path / "out")
    cost = outcome.record["cost"]
    settings = sizes.offline(config.check(config.compose(words))[0])
    memory = estimate.counted(sizes.shape_of(settings, length=512))[0]
    assert cost["train_peak_bytes"] - held == pytest.approx(memory.train, rel=0.15)
    if init != "full":
        assert cost["init_peak_bytes"] - held == pytest.approx(memory.init, rel=0.15)


def of_the_libraries() -> int:
    """What cuBLAS takes of the card for itself, forward and backward."""
    torch._C._cuda_clearCublasWorkspaces()  # type: ignore[attr-defined]
    before = torch.cuda.memory_allocated()
    layer = torch.nn.Linear(64, 64, device="cuda", dtype=torch.bfloat16)
    layer(torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)).sum().backward()
    own = sum(p.nbytes + p.grad.nbytes for p in layer.parameters() if p.grad is not None)
    return torch.cuda.memory_allocated() - before - own


def test_factors_are_kept_in_float32_whatever_the_precision(tmp_path: Path) -> None:
    outcome = run("device=cuda", "precision=bf16", out=tmp_path)
    assert {x.dtype for x in factors(outcome.folder).values()} == {torch.float32}
