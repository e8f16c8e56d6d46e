"""What methods cost apart from a run: operations of inference, and of CG-LoRA's initialisation part
by part."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from loraexp import config, models
from loraexp.adapter.layer import CurvatureRequest, Layer, as_initializer
from loraexp.config.settings import ModelSettings
from loraexp.machine.alive import MadeWithin
from loraexp.machine.device import to_device
from loraexp.machine.progress import Progress
from loraexp.records.curves import Computed, Curve, Values
from loraexp.run.components import make
from loraexp.run.initialise import objective
from loraexp.statistics import layer_generator, weight
from loraexp.statistics.collect import like
from loraexp.statistics.curvature import cancelling, collect_curvature
from loraexp.statistics.sweeps import Sweeper
from loraexp.theory.keywords import keywords
from loraexp.theory.meter import Bench, Meter, MeteredSweeper, Subject

GIGA = 1e9

# --------------------------------------------------------------------------------------------------
# inference


def inference_macs(
    *, tokens: int, models: dict[str, Any], rows: dict[str, Any], progress: Progress
) -> Computed:
    """Multiply-accumulates and floating-point operations of one forward pass, in 10⁹, with an
    adapter kept apart.

    LoRA-SB, Table 6. `models`: by name the keys of a file of `conf/model` with the architecture in
    `config`; `rows`: by name `model`, `init` and `rank`. A linear layer (d_out, d_in) costs `tokens
    · d_out · d_in`, an adapter on it `tokens · r (d_in + d_out)`, and `tokens · r²` more where the
    initializer has an R. Counted: the linear layers of the blocks and a language model's head, at
    every token; a classifier's new head, once. Not counted: embeddings, normalisations, activation
    functions and the products of queries, keys and values. An operation is half of a
    multiply-accumulate: FLOPs = 2 MACs. Raises ConfigError for a key that is none.
    """
    values: Values = {}
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for done, (name, row) in enumerate(rows.items()):
        if row["model"] not in models:
            raise config.ConfigError(
                f"compute.rows.{name}.model={row['model']}: expected one of {', '.join(models)}"
            )
        macs = (
            forward_macs(
                architecture(row["model"], models[row["model"]]), row["init"], row["rank"], tokens
            )
            / GIGA
        )
        values |= {f"{name}/macs": macs, f"{name}/flops": 2 * macs}
        found.setdefault((row["model"], row["init"]), []).append((row["rank"], macs))
        progress(done + 1, len(rows))
    curves = [
        Curve(
            panel=model,
            label=init,
            x=[rank for rank, _ in points],
            y=[macs for _, macs in points],
            kind="points",
        )
        for (model, init), points in found.items()
    ]
    return Computed(
        values=values,
        curves=curves,
        axes={model: {"x": "rank", "y": "multiply-accumulates (10⁹)"} for model in models},
    )


def architecture(name: str, given: Mapping[str, object]) -> ModelSettings:
    """The settings of a model that is its architecture alone."""
    return config.build(
        ModelSettings, config.base()["model"] | {"name": name} | dict(given), "model"
    )


def forward_macs(settings: ModelSettings, init: str, rank: int, tokens: int) -> int:
    """Multiply-accumulates of one sequence; see `inference_macs`."""
    base = models.open(settings)
    skeleton, head, targets = base.skeleton, base.head, base.targets()
    models.check_rank(targets, rank)
    middle = (
        rank if "R" in config.Component.of(config.read_yaml("init", init), "init").trains else 0
    )
    total = 0
    for name, module in skeleton.named_modules():
        if models.is_linear(module):
            d_out, d_in = int(module.out_features), int(module.in_features)
            total += d_out * d_in * (1 if name.split(".")[0] in head else tokens)
            total += tokens * rank * (d_out + d_in + middle) if name in targets else 0
    return total


# --------------------------------------------------------------------------------------------------
# initialisation


@keywords
def initialisation_by_operation(
    *, subject: Subject, repeats: int = 5, progress: Progress
) -> Computed:
    """CG-LoRA's initialisation part by part, relative to one batched forward pass, and its total
    against LoRA-GA's.

    LoRA-GA twice: `lora_ga` as the available implementation, whose backward passes give every
    parameter's gradient, held whole (`every_gradient`), and `lora_ga_lean` as a run does it, with
    those of the adapted layers alone.

    CG-LoRA, Table 3. Seconds are medians over `repeats`, after one run that is not counted. A part
    that is done for every batch (sketching, loss backward) is of one batch, less its forward pass;
    the others are of all layers together. Memory is of the tensors alive (`Alive`): a forward pass
    with the weights, as the unit; of a part, what it holds at its peak beyond what was there.
    CG-LoRA runs with its sketches alone (`init.memory_budget=0`, Algorithm 1), LoRA-GA with whole
    gradients. Backward passes are over all samples.

    Values: `forward`, `sketching`, `qr`, `svd`, `loss_backward`, `factors` `/relative_compute` and
    `/relative_memory`; `cg_lora`, `lora_ga`, `lora_ga_lean` `/total_time` (seconds), `/peak_memory`
    (bytes, weights included) and `/backward_passes`.
    """
    bench = subject.bench("method=cg_lora", "init.memory_budget=0")
    other = subject.bench("method=lora_ga", "init.memory_budget=2_000_000_000", like=bench)
    works: dict[str, Callable[..., Any]] = {
        "parts": partial(parts, bench),
        "cg_lora": bench.backward_passes,
        "lora_ga": partial(every_gradient, other),
        "lora_ga_lean": other.backward_passes,
    }
    values: Values = {}
    for done, (name, work) in enumerate(works.items(), 1):
        seconds, held = measure(work, name, bench.device, repeats)
        progress(done, len(works))
        if name == "parts":
            values |= relative(seconds, held, bench.weights, len(bench.batches))
        else:
            values[f"{name}/total_time"] = seconds[name]
            values[f"{name}/peak_memory"] = float(bench.weights + held[name])
            values[f"{name}/backward_passes"] = work()
    values["batches"] = float(len(bench.batches))
    return Computed(values=values, data=bench.task.describe())


def every_gradient(bench: Bench) -> float:
    """LoRA-GA as its available implementation: the gradient of every parameter, and the factors of
    it.

    Outsider565/LoRA-GA 89af7de, peft/src/peft/utils/lora_ga_utils: the loss of each batch goes back
    into all parameters and their gradients are summed; here they stay on the device, with which the
    paper's peak agrees (weights, gradients and activations). Returns the backward passes over all
    samples.
    """
    loss_sum = objective(bench.task, bench.runtime.autocast).loss_sum
    initializer = make(bench.settings.init)
    trained = [(parameter, parameter.requires_grad) for parameter in bench.model.parameters()]
    samples = 0
    try:
        bench.model.requires_grad_(True)
        for batch in bench.batches:
            count = len(next(iter(batch.values())))
            loss, labels = loss_sum(bench.model, to_device(batch, bench.device))
            (loss * (count / labels)).backward()
            samples += count
        for name, module in bench.targets.items():
            gradient = module.weight.grad / samples  # type: ignore[operator]
            layer = Layer(name=name, W=weight(module, bench.device), gradient=gradient)
            generator = layer_generator(bench.settings.seed, name)
            initializer(layer, rank=bench.settings.rank, scaling=bench.scaling, generator=generator)
    finally:
        for parameter, flag in trained:
            parameter.grad = None
            parameter.requires_grad_(flag)
    return 1.0


def measure(
    work: Callable[..., None], name: str, device: torch.device, repeats: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds and peak bytes of each part of some work, which is done once before; `parts`
    meters itself."""

    def once(meter: Meter) -> Meter:
        if name == "parts":
            work(meter)
            return meter
        with meter.during(name):
            work()
        return meter

    once(Meter(device))
    runs = [once(Meter(device)).seconds for _ in range(repeats)]
    with MadeWithin() as alive:
        held = once(Meter(device, alive)).bytes
    return {part: statistics.median(run[part] for run in runs) for part in runs[0]}, held


def parts(bench: Bench, meter: Meter) -> None:
    """One initialisation by CG-LoRA through its own functions, with the meter switched between its
    parts."""
    batches = bench.batches
    own = objective(bench.task, bench.runtime.autocast)
    initializer = make(bench.settings.init)
    ask = as_initializer(initializer.func).request
    asked = cast(CurvatureRequest, ask(bench.settings.rank, **initializer.keywords)["curvature"])
    calibration = replace(
        own,
        batches=batches,
        population=len(batches),
        mode=bench.settings.calibration.mode,
        seed=bench.settings.seed,
    )
    with torch.no_grad(), meter.during("forward"):
        for batch in batches:
            calibration.outputs(bench.model, to_device(batch, bench.device))
    swept = (
        bench.model,
        bench.targets,
        calibration,
        asked.loss,
    )
    sweeper = MeteredSweeper(*swept)
    likes = {name: like(module, bench.device) for name, module in bench.targets.items()}
    unpooled = cancelling(Sweeper(*swept), likes)
    sweeper.meter, sweeper.iterations = meter, asked.iterations
    curvatures = collect_curvature(sweeper, likes, unpooled, asked, "sketched")
    # what a run's ledger would say of its layers
    with warnings.catch_warnings(action="ignore"), meter.during("factors"):
        for name, curvature in curvatures.items():
            layer = Layer(
                name=name, W=weight(bench.targets[name], bench.device), curvature=curvature
            )
            generator = layer_generator(bench.settings.seed, name)
            initializer(layer, rank=bench.settings.rank, scaling=bench.scaling, generator=generator)


def relative(seconds: dict[str, float], held: dict[str, int], weights: int, batches: int) -> Values:
    """The parts in units of one batched forward pass; a sweep's last pass is the probe's again and
    the loss's."""
    forward = seconds["forward"] / batches
    sweep = seconds["sketching"] / batches
    times = {
        "forward": forward,
        "sketching": sweep - forward,
        "qr": seconds["QR"],
        "svd": seconds["SVD"],
        "loss_backward": seconds["projecting"] / batches - sweep,
        "factors": seconds["factors"],
    }
    unit = weights + held["forward"]
    memory = {
        "forward": unit,
        "sketching": held["sketching"],
        "qr": held["QR"],
        "svd": held["SVD"],
        "loss_backward": held["projecting"],
        "factors": held["factors"],
    }
    compute = {f"{name}/relative_compute": value / forward for name, value in times.items()}
    return compute | {f"{name}/relative_memory": value / unit for name, value in memory.items()}  # type: ignore[return-value]
