"""How often the host waits for an accelerator, on one that pretends: every read of a value is
counted. What does not wait runs ahead, and the device is never idle between micro-batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import config, models
from loraexp.adapter.layer import Factors, Layer
from loraexp.initializers.lora_da import lora_da
from loraexp.machine import measure
from loraexp.machine.device import Batch, Runtime, is_accelerator, to_device, unread_masks
from loraexp.machine.processes import Processes
from loraexp.optimizers import rules, sylvester
from loraexp.run import batches, components, evaluate, experiment, initialise, loop, train
from loraexp.run.ledger import describe
from loraexp.scoring import generate
from loraexp.statistics.sweeps import Sweeper
from loraexp.tasks import text
from tests.support import pretend
from tests.support.pretend import DEVICE, STEPS, Mode, Pretend, counted, training_device
from tests.support.shortened import shortened
from tests.support.text_data import overrides, write_all

TRAINING = ("experiment=smoke", "wandb.mode=disabled", *pretend.TRAINING)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture
def device() -> Iterator[Mode]:
    with training_device() as mode:
        yield mode


def started(*words: str, out: Path) -> Any:
    composed = config.compose([*TRAINING, f"output_root={out}", *words])
    return experiment.run(*config.check(composed))


TASKS = {"encoder": (), "causal": "gsm8k", "seq2seq": "cola_t5"}


VARIANTS = {  # every rule in every way that it has
    "adamw": ["init=lora"],
    "adamw of everything": ["init=full", "optimizer=adamw"],
    "lora_plus": ["init=lora"],
    "lora_fa": ["init=lora_fa"],
    "lora_fa as in PEFT": ["init=lora_fa", "optimizer=lora_fa", "optimizer.rule=peft"],
    "sgd": ["init=lora"],
    "p_lora": ["init=lora"],
    "p_lora in turn": ["init=lora", "optimizer=p_lora", "optimizer.flavour=released"],
    "p_lora undamped": ["init=pissa", "optimizer=p_lora", "optimizer.damping=0"],
    "lora_pro": ["init=lora"],
    "lora_pro from its limit": ["init=lora", "optimizer=lora_pro", "optimizer.first_step=limit"],
    "lora_pro narrow": ["init=lora", "optimizer=lora_pro", "optimizer.moments=bfloat16"],
    "lora_pro_low_memory": ["init=lora"],
}
PLAIN = [name for name in VARIANTS if " " not in name]
CASES = [("encoder", name) for name in VARIANTS] + [
    (kind, name) for kind in ("causal", "seq2seq") for name in PLAIN
]


def test_every_rule_is_here() -> None:
    assert set(PLAIN) == rules().keys()


def without_a_saved_model(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks where the tensors of a whole model lie in memory, which these do not
    say."""
    if "init=full" in VARIANTS[variant]:
        monkeypatch.setattr(experiment.Experiment, "save", lambda *_, **__: None)


def of_variant(name: str) -> list[str]:
    words = VARIANTS[name]
    return words if len(words) > 1 else [*words, f"optimizer={name}"]


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_a_step_never_waits_and_a_line_of_the_log_waits_once(
    kind: str,
    variant: str,
    device: Mode,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = overrides(data)[str(TASKS[kind])] if TASKS[kind] else ()
    steps = counted(device, train, "step", monkeypatch)
    collated = counted(device, batches.Batches, "of", monkeypatch)
    lines = counted(device, train, "log_step", monkeypatch)
    settled = counted(device, measure.Stopwatch, "settle", monkeypatch)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"held_out": {}, "dev": {}})
    monkeypatch.setattr(train.Loop, "watched", property(lambda self: []))
    without_a_saved_model(variant, monkeypatch)
    record = started(*words, *of_variant(variant), out=tmp_path).record
    where = device.waits.lines()
    assert steps == [0] * STEPS, where
    assert collated == [0] * STEPS, where
    assert lines == [1] * (STEPS // 3), where
    # every line's read has brought the marks before it; the last is waited for by the checkpoint,
    # which reads the device in any case, and at the end
    assert settled[:-2] == [0] * (STEPS // 3) and max(settled[-2:]) <= 1, where
    spent = record["cost"]["loop_seconds"]
    assert min(spent["forward"], spent["backward"], spent["optimizer"]) > 0


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "lora_pro narrow"])
def test_a_rule_takes_the_steps_on_the_device_that_it_takes_on_the_cpu(
    variant: str, device: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing may be read, systems are solved another way; the steps are those.

    LoRA-Pro's first systems, of a B that has hardly left zero, are so ill-conditioned that float32
    decides the last digits (`test_unread` has both ways against float64): there a factor agrees as
    a whole, to a twentieth of its norm.
    """
    weights: list[dict[str, torch.Tensor]] = []
    end = train.cost

    def noted(*arguments: Any) -> Any:
        weights.append(loops[-1].adapters.state())
        return end(*arguments)

    loops: list[Any] = []
    begin = train.begin
    monkeypatch.setattr(
        train, "begin", lambda run, *more: (loops.append(run), begin(run, *more))[1]
    )
    monkeypatch.setattr(train, "cost", noted)
    monkeypatch.setattr(train.Loop, "watched", property(lambda self: []))
    without_a_saved_model(variant, monkeypatch)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"held_out": {}, "dev": {}})
    for where in (DEVICE.type, "cpu"):
        started(*of_variant(variant), f"device={where}", out=tmp_path / where)
    there, here = weights
    assert there.keys() == here.keys()
    for name, value in here.items():
        if variant.startswith("lora_pro"):
            assert float((there[name] - value).norm()) <= 0.05 * float(value.norm()), name
        else:
            torch.testing.assert_close(there[name], value, rtol=2e-3, atol=2e-5)


def test_a_step_that_is_not_finite_is_said_at_the_next_line_of_the_log(
    device: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that has no solution is seen on the device, and told with the log's one read."""
    solve = sylvester.inverse_of

    def broken(factor: torch.Tensor) -> torch.Tensor:
        return solve(factor) * float("nan")

    monkeypatch.setattr(sylvester, "inverse_of", broken)
    lines = counted(device, train, "log_step", monkeypatch)
    with pytest.raises(FloatingPointError, match=r"step 3: .* raise optimizer.damping") as raised:
        started("init=pissa", "optimizer=lora_pro", "train.log_every=3", out=tmp_path)
    assert ".lora_" in str(raised.value) and not lines


@pytest.mark.parametrize("kind", TASKS)
def test_a_batch_of_an_evaluation_waits_once(
    kind: str, device: Mode, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a benchmark that is answered in text once every 16 tokens."""
    words = overrides(data)[str(TASKS[kind])] if TASKS[kind] else []
    if kind == "causal":
        shortened(monkeypatch, "gsm8k", "lora_ga", 32)
        words += ["task.protocol=lora_ga", "task.limit_eval=4"]
    sizes: list[int] = []
    for module in (evaluate, text):
        monkeypatch.setattr(module, "of_batches", noted(module.of_batches, sizes))
    of_batches = [counted(device, module, "of_batches", monkeypatch) for module in (evaluate, text)]
    written = counted(device, generate, "generate", monkeypatch)
    size = 1 if kind == "causal" else 2
    short = ["train.max_steps=1", f"train.eval_batch_size={size}"]
    started(*words, "init=lora", *short, out=tmp_path)
    where = device.waits.lines()
    assert max(sizes) > 1 and sum(of_batches, []) == sizes, where
    # four rows, one at a time, 32 tokens each
    assert written == ([4 * 32 // 16] if kind == "causal" else []), where


def noted(function: Any, sizes: list[int]) -> Any:
    """The function, of which the length of each result is kept."""

    def watched(*arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        sizes.append(len(result))
        return result

    return watched


# Reads of the device by an initializer itself, a layer: where it refuses a gradient of zero or
# inputs of too few directions, and looks whether an iteration has come to its end.
OWN = {
    "cg_lora": 1,
    "eva": 1,
    "lora_da": 1,
    "lora_da_fa": 1,
    "lora_ga": 1,
    "lora_one": 1,
    "lora_sb": 1,
}
INITS = [name for name in config.names("init") if name != "full"]


@pytest.mark.parametrize("init", INITS)
def test_initialising_waits_once_a_sweep_and_once_a_layer(
    init: str, device: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["experiment=smoke", f"init={init}", "init.cache=false", f"device={DEVICE.type}"]
    words += ["train.batch_size=8", "init.samples=24", "rank=2", "lr=1e-4"]
    settings = config.check(config.compose(words))[0]
    base = models.open(settings.model)
    task = components.make_task(settings, base.tokenizer)
    model = base.load(dtype=torch.float32, head_seed=0, **components.labels(task)).to(DEVICE)
    targets = models.target_layers(model, settings.model.targets, models.head(model))
    sweeps = counted(device, Sweeper, "run", monkeypatch)
    passes = counted(device, Sweeper, "batch", monkeypatch)
    lines = counted(device, initialise, "describe", monkeypatch)
    initializer = components.make(settings.init)
    before = len(device.waits)
    runtime = Runtime(device=DEVICE, precision="fp32", processes=Processes("cpu"))
    how: dict[str, Any] = {"settings": settings, "runtime": runtime}
    with unread_masks(DEVICE):
        made = initialise.initialize(model, targets, task, initializer, scaling=2.0, **how)
    where = "\n".join(f"{n} {line}" for line, n in device.waits.lines().items())
    assert isinstance(next(iter(made.factors.values())).A, Pretend)
    assert passes == [0] * len(passes), where
    assert max(sweeps, default=0) <= 1, where
    assert lines == [1] * len(targets), where
    # a decomposition of a method's own waits for its outcome, however often that is
    outcomes = sum(what == "an outcome" for what, _ in device.waits[before:])
    rest = len(device.waits) - before - sum(sweeps) - sum(lines) - outcomes
    # the loss before, what statistics of all layers say at once, and the initializer's own
    assert rest <= 1 + 2 + OWN.get(init, 0) * len(targets), where


@pytest.mark.parametrize("flavour", ["released", "paper"])
@pytest.mark.parametrize("falls", [0.7, 0.97])
def test_lora_da_looks_once_at_a_layer_that_it_does_not_decompose_whole(
    flavour: str, falls: float, device: Mode
) -> None:
    """Whose statistics fall as those of networks do; where they fall slowly it goes on, and finds
    the same."""
    size = 360
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    left, right = (torch.linalg.qr(normal(size, size)).Q for _ in range(2))
    spectrum = falls ** torch.arange(size).double()
    statistics = {
        "gradient": 1e-3 * left * spectrum**2 @ right.mT,
        "input_moment": (right * (spectrum + 1e-2)) @ right.mT,
        "output_moment": normal(size).square() + 0.1,
    }
    how: dict[str, Any] = {"rank": 4, "scaling": 2.0, "flavour": flavour}
    made = []
    for where in ("cpu", DEVICE):
        there = {name: value.to(where) for name, value in statistics.items()}
        layer = Layer(name="it", W=torch.zeros(size, size).to(where), population=9, **there)
        before = len(device.waits)
        made.append(lora_da(layer, generator=torch.Generator().manual_seed(1), **how))
    reads = [line for what, line in device.waits[before:] if what != "an outcome"]
    outcomes = len(device.waits) - before - len(reads)
    assert (len(reads) == 1) == (falls == 0.7) and len(reads) < 12, reads
    assert outcomes == (2 if flavour == "released" else 1) or falls != 0.7
    ours = [factors.B.cpu() @ factors.A.cpu() for factors in made]
    torch.testing.assert_close(*ours, rtol=1e-5, atol=1e-6 * float(ours[0].abs().max()))


def test_a_factor_that_is_not_finite_is_named() -> None:
    layer = Layer(name="block.query", W=torch.ones(6, 5))
    settings = config.check(config.compose(["init=lora_one"]))[0]
    for name in ("A", "B", "R"):
        factors = {"A": torch.ones(2, 5), "B": torch.ones(6, 2), "R": torch.ones(2, 2)}
        factors[name][0, 1] = torch.nan
        with pytest.raises(
            FloatingPointError, match=f"^init=lora_one: {name} of layer block.query is not finite"
        ):
            describe(layer, Factors(**factors, start="shifted"), 1.0, settings)


# --------------------------------------------------------------------------------------------------
# the device itself


def test_the_device_refuses_mixes_and_counts_every_read(device: Mode) -> None:
    x = torch.ones(3, device=DEVICE)
    assert isinstance(x, Pretend) and x.device.type == DEVICE.type and is_accelerator(x.device)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    assert not device.waits
    reads: dict[str, Any] = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.any()),
        "tolist": lambda: x.tolist(),
        "cpu": lambda: x.cpu(),
        "nonzero": lambda: x.nonzero(),
        "mask": lambda: x[x > 0],
        "from the host": lambda: torch.tensor([1, 2], device=DEVICE),
    }
    for name, read in reads.items():
        device.waits.clear()
        read()
        assert len(device.waits) == 1, name
    device.waits.clear()
    batch = to_device(Batch({"x": torch.ones(2, 2)}, count=3), DEVICE)
    assert isinstance(batch, Batch) and batch.count == 3 and isinstance(batch["x"], Pretend)
    y = (x * 2).requires_grad_()
    y.square().sum().backward()
    assert not device.waits and isinstance(y.grad, Pretend)
    assert y.grad.tolist() == [4.0, 4.0, 4.0]


def test_the_numbers_of_the_device_are_those_of_the_cpu(device: Mode, tmp_path: Path) -> None:
    there = started("init=lora_one", "init.cache=false", out=tmp_path / "there").record
    on_host = f"device={torch.device('cpu')}"
    here = started("init=lora_one", "init.cache=false", on_host, out=tmp_path / "here").record
    assert there["metrics"].keys() == here["metrics"].keys()
    for split, metrics in here["metrics"].items():
        assert there["metrics"][split] == pytest.approx(metrics, rel=1e-4)
    assert Counter(there["environment"]["devices"]) != Counter(here["environment"]["devices"])
