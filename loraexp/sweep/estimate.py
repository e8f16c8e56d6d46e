"""What a run will need before it is started: memory of its parts, disk, FLOPs, from the model's
skeleton on the meta device.

Nothing is downloaded and no weight is loaded. Activations are counted, not guessed: the forward
pass runs without numbers, and what autograd would keep for the backward pass is added up.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from loraexp import config, models
from loraexp.adapter.adapted import Adapters, attach, scaling_factor, train_everything
from loraexp.adapter.layer import Factors, Initializer, Layer, as_initializer
from loraexp.config.settings import ModelSettings
from loraexp.run.components import make
from loraexp.statistics import Size
from loraexp.statistics import plan as plan_statistics
from loraexp.sweep.shapes import Memory, Shape

ANSWER = 16  # tokens of the decoder of an encoder-decoder: its tasks answer with a class in words
COUNTED: dict[tuple[Any, ...], int] = {}  # activations of models and batches counted before
SVD_WORK = 3  # copies in float32 of the largest layer that a decomposition of it holds at once


@cache
def counted(shape: Shape) -> tuple[Memory, dict[str, int]]:
    """The memory of a run of this shape, and its numbers of parameters: trainable, total, adapter,
    products (in linear layers)."""
    parts = json.loads(shape.settings)
    settings = ModelSettings(**parts["model"])
    initializer = config.Component.of(parts["init"], "init")
    made = as_initializer(initializer.function)
    trains, full = initializer.trains, initializer.full
    dtype = models.dtype_of(settings, parts["precision"], full=full)
    model = copy.deepcopy(
        skeleton(json.dumps(parts["model"], sort_keys=True), dtype, parts["labels"])
    )
    head = models.new_modules(model, settings.kind)
    targets = models.target_layers(model, settings.targets, head)
    weights = weight_bytes(model, settings)
    statistics = statistics_bytes(made, parts, targets)
    # every initializer that trains the same factors keeps the same
    alike = (
        *map(str, (parts["model"], dtype, parts["labels"], parts["rank"], sorted(trains))),
        shape.length,
        shape.fused,
    )

    def kept(batch: int) -> int:
        if (*alike, batch) not in COUNTED:
            COUNTED[*alike, batch] = activations(
                model, settings=settings, batch=batch, length=shape.length, fused=shape.fused
            )
        return COUNTED[*alike, batch]

    products = sum(linear_sizes(model.modules()))
    work = 0 if full else SVD_WORK * 4 * max(linear_sizes(targets.values()))
    adapters = (
        train_everything(model)
        if full
        else attached(model, targets, head, parts["rank"], trains, settings)
    )
    trainable = adapters.trainable()
    numbers = adapters.count() | {"products": products, "layers": layers_of(model)}
    offset = 2 if not full and has_offset(made, parts["init"]) else 1
    memory = Memory(
        weights=weights,
        adapter=offset * 4 * numbers["adapter"],
        gradients=sum(p.numel() * p.element_size() for p in trainable),
        optimizer=optimizer_bytes(adapters, parts["optimizer"]) if trainable else 0,
        activations=kept(parts["batch"]),
        init_activations=kept(min(parts["calibration"][:2])) if made.needs else 0,
        statistics=statistics + work,
        written=shape.written[0] * shape.written[1] * cache_bytes(model, dtype),
    )
    return memory, numbers


def linear_sizes(modules: Iterable[nn.Module]) -> list[int]:
    """The numbers of weights of those that are linear layers."""
    return [m.in_features * m.out_features for m in modules if isinstance(m, nn.Linear)]


def weight_bytes(model: nn.Module, settings: ModelSettings) -> int:
    """Of all frozen parameters, each once however many modules share it."""
    held = {
        id(p): stored_bytes(p, module, settings)
        for module in model.modules()
        for p in module.parameters(recurse=False)
    }
    return sum(held.values())


def layers_of(model: nn.Module) -> int:
    """Blocks of the network, of encoder and decoder together."""
    cfg: Any = model.config
    return int(getattr(cfg, "num_hidden_layers", 0)) + int(
        getattr(cfg, "num_decoder_layers", 0) or 0
    )


def cache_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Keys and values of one token while an answer is written: 512 KiB in LLaMA-2-7B in bf16."""
    cfg: Any = model.config
    heads: Any = getattr(cfg, "num_key_value_heads", None) or getattr(cfg, "num_attention_heads", 0)
    width: Any = getattr(cfg, "head_dim", None) or cfg.hidden_size // max(
        1, cfg.num_attention_heads
    )
    return int(2 * layers_of(model) * heads * width * dtype.itemsize)


def has_offset(made: Initializer, node: Mapping[str, Any]) -> bool:
    """Whether training starts from pretrained weights with factors whose product is not zero: a
    second pair is kept beside them.

    What the product is of an initializer that needs no statistics, it shows on a small layer.
    """
    if node.get("start") not in ("pretrained", None):
        return False
    if made.needs:
        return True
    hyper = {k: v for k, v in node.items() if k not in ("_target_", "_partial_", "name")}
    generator = torch.Generator().manual_seed(0)
    layer = Layer(name="small", W=torch.randn(8, 8, generator=generator))
    factors = made(layer, rank=2, scaling=1.0, generator=generator, **hyper)
    product = factors.B @ factors.A if factors.R is None else factors.B @ factors.R @ factors.A
    return factors.start == "pretrained" and bool(product.abs().max() > 0)


@cache
def skeleton(settings: str, dtype: torch.dtype, labels: int) -> nn.Module:
    """`bare`, made once; to be copied."""
    return bare(ModelSettings(**json.loads(settings)), dtype, labels)


def bare(settings: ModelSettings, dtype: torch.dtype, labels: int) -> nn.Module:
    """The model without numbers, in the dtype of its frozen weights."""
    classes = {"num_labels": labels} if labels and settings.kind == "encoder" else {}
    return models.open(settings).bare(dtype, **classes)


def stored_bytes(parameter: Tensor, module: nn.Module, settings: ModelSettings) -> int:
    """Of a frozen parameter: quantised linear layers take 1 or 1/2 byte a number, and NF4 its
    scales (1/64 float32) beside them."""
    if settings.quantise and isinstance(module, nn.Linear) and parameter.dim() == 2:
        return int(parameter.numel() * (1 if settings.quantise == "8bit" else 0.5 + 4 / 64))
    return parameter.numel() * parameter.element_size()


def attached(
    model: nn.Module,
    targets: Mapping[str, Any],
    head: list[str],
    rank: int,
    trains: Any,
    settings: ModelSettings,
) -> Adapters:
    """Factors without numbers in their layers."""
    with torch.device("meta"):
        factors = {
            name: Factors(
                A=torch.zeros(rank, m.in_features),
                B=torch.zeros(m.out_features, rank),
                R=torch.zeros(rank, rank) if "R" in trains else None,
                start="shifted",
                train=frozenset(trains),
            )
            for name, m in targets.items()
        }
        return attach(model, factors, scaling_factor("lora", rank, rank), head)


def optimizer_bytes(adapters: Adapters, node: dict[str, Any]) -> int:
    """Moments, masters and counters of the rule itself, made for parameters without numbers."""
    rule: Any = make(node)
    return int(rule(adapters, lr=1e-3, weight_decay=0.0).state_bytes())


def statistics_bytes(made: Initializer, parts: dict[str, Any], targets: Mapping[str, Any]) -> int:
    """What the initializer's statistics hold at once, as the collection plans it within its
    budget."""
    if not made.needs:
        return 0
    samples, _, budget = parts["calibration"]
    hyper = {k: v for k, v in parts["init"].items() if k not in ("_target_", "_partial_", "name")}
    sizes = {name: Size(m.out_features, m.in_features) for name, m in targets.items()}
    return plan_statistics(
        sizes, made.needs, made.request(parts["rank"], **hyper), samples, budget
    ).bytes


def activations(
    model: nn.Module, *, settings: ModelSettings, batch: int, length: int, fused: bool
) -> int:
    """Bytes that autograd keeps of one forward pass of (batch, length) tokens and its loss, and the
    gradient of the largest.

    With gradient checkpointing: the hidden state of every layer, and one layer whole. Parameters
    are not counted. Attention is counted as its fused kernels keep it: queries, keys, values and
    outputs, never the (length, length) products.
    """
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in parameters:
            kept[x.untyped_storage()._cdata] = x
        return x

    model.train()
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        tokens = torch.zeros(batch, length, dtype=torch.long)
        answer = {"decoder_input_ids": tokens[:, :ANSWER]} if settings.kind == "seq2seq" else {}
        logits = model(input_ids=tokens, **answer).logits.float()
        functional.cross_entropy(
            logits.flatten(0, -2),
            torch.zeros(logits.shape[:-1], dtype=torch.long).flatten(),
            reduction="sum",
        )
    sizes = {
        x: x.untyped_storage().nbytes() for x in kept.values() if not (fused and squares(x, length))
    }
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    if settings.gradient_checkpointing:
        cfg: Any = model.config
        hidden = batch * length * cfg.hidden_size * next(model.parameters()).element_size()
        total = cfg.num_hidden_layers * hidden + total // cfg.num_hidden_layers
    return total + largest


def squares(x: Tensor, length: int) -> bool:
    """Whether a tensor holds scores of every token for every other, of each head."""
    return x.dim() >= 3 and tuple(x.shape[-2:]) == (length, length)
