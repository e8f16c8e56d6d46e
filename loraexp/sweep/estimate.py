"""What a run will need before it is started: memory of its parts, disk, FLOPs, from the model's
skeleton on the meta device.

Nothing is downloaded and no weight is loaded. Memory is counted, not guessed: the passes of a run
are made without numbers (`peaks`), and so is what a layer is initialised with (`work`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from loraexp import config, models
from loraexp.adapter import linalg
from loraexp.adapter.adapted import Adapters, train_everything
from loraexp.adapter.layer import Initializer, Layer, as_initializer
from loraexp.config.settings import ModelSettings, default_budget
from loraexp.run.components import make
from loraexp.run.initialise import settled
from loraexp.run.sharding import blocks
from loraexp.statistics import HOST, Size
from loraexp.statistics import plan as plan_statistics
from loraexp.sweep.peaks import Asks, Kind, hollow_adapters, passes
from loraexp.sweep.shapes import Memory, Shape
from loraexp.sweep.work import ANY, work_of


@cache
def counted(shape: Shape) -> tuple[Memory, dict[str, int]]:
    """The memory of a run of this shape, and its numbers of parameters: trainable, total, adapter,
    products (in linear layers)."""
    parts = json.loads(shape.settings)
    settings = ModelSettings(**parts["model"])
    initializer = config.Component.of(parts["init"], "init")
    made, full = as_initializer(initializer.function), initializer.full
    model, targets, adapters = adapted(parts, initializer)
    dtype = models.dtype_of(settings, parts["precision"], full=full)
    shards = parts["shards"]
    gathered = cut(model, adapters, shards, full=full) if shards > 1 else 0
    weights = weight_bytes(model, settings, adapters)
    sizes = {n: Size(m.out_features, m.in_features) for n, m in targets.items()}
    offset = not full and has_offset(made, parts["init"])
    trainable = adapters.trainable()
    numbers = parameters(shape)
    found = passes(kind_of(parts, shape, dtype, initializer, offset=offset))
    adapter, gradients = (1 + offset) * 4 * numbers["adapter"], sum(map(nbytes, trainable))
    optimizer = optimizer_bytes(adapters, parts["optimizer"]) if trainable else 0
    once = dequantised(settings, sizes, dtype)
    training = {
        "weights": weights,
        "adapter": adapter,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": max(0, found.trained - gradients) + once,
        "gathered": gathered,
    }
    swept = found.swept + once
    beside = sum(training.values()) - weights - gathered if shape.card else None
    statistics, work = (0, 0) if full else initialising(made, parts, sizes, dtype, beside, swept)
    return Memory(
        **training,
        init_activations=swept,
        statistics=statistics,
        work=0 if full else work + 4 * numbers["adapter"],
        evaluation=found.evaluated + once,
        written=shape.written[0] * shape.written[1] * cache_bytes(model, dtype),
    ), numbers


@cache
def parameters(shape: Shape) -> dict[str, int]:
    """Numbers of parameters: trainable, total, adapter, products (in linear layers); and layers."""
    parts = json.loads(shape.settings)
    model, _, adapters = adapted(parts, config.Component.of(parts["init"], "init"))
    products = sum(linear_sizes(base for base in model.modules()))
    return adapters.count() | {"products": products, "layers": layers_of(model)}


def adapted(
    parts: Mapping[str, Any], initializer: config.Component
) -> tuple[nn.Module, dict[str, Any], Adapters]:
    """The model without numbers, the layers that are adapted, and what trains in it."""
    settings = ModelSettings(**parts["model"])
    dtype = models.dtype_of(settings, parts["precision"], full=initializer.full)
    described = json.dumps(parts["model"], sort_keys=True)
    model = copy.deepcopy(skeleton(described, dtype, parts["labels"]))
    head = models.new_modules(model, settings.kind)
    targets = models.target_layers(model, settings.targets, head)
    if initializer.full:
        return model, targets, train_everything(model)
    adapters = hollow_adapters(model, targets, head, parts["rank"], initializer.trains)
    return model, targets, adapters


def kind_of(
    parts: Mapping[str, Any],
    shape: Shape,
    dtype: torch.dtype,
    initializer: config.Component,
    *,
    offset: bool,
) -> Kind:
    """What the passes of a run depend on; runs that agree in it are counted once."""
    names = tuple(map(str, range(parts["labels"]))) if parts["model"]["kind"] == "encoder" else ()
    made = as_initializer(initializer.function)
    return Kind(
        settings=json.dumps(parts["model"], sort_keys=True),
        dtype=dtype,
        precision=parts["precision"],
        classes=names,
        rank=parts["rank"],
        trains=frozenset(initializer.trains),
        full=initializer.full,
        offset=offset,
        optimizer=json.dumps(parts["optimizer"], sort_keys=True),
        length=shape.length,
        batch=parts["batch"],
        parts=parts["parts"],
        evaluated=parts["evaluated"],
        fused=shape.fused,
        shards=parts["shards"],
        asks=Asks.of(made, parts["rank"], initializer.keywords),
    )


def nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def dequantised(settings: ModelSettings, sizes: Mapping[str, Size], dtype: torch.dtype) -> int:
    """The weight of the largest layer as it is multiplied, where weights are stored in fewer
    bits."""
    if not settings.quantise:
        return 0
    return dtype.itemsize * max((s.d_out * s.d_in for s in sizes.values()), default=0)


def linear_sizes(modules: Iterable[nn.Module]) -> list[int]:
    """The numbers of weights of those that are linear layers."""
    return [m.in_features * m.out_features for m in modules if isinstance(m, nn.Linear)]


def weight_bytes(
    model: nn.Module, settings: ModelSettings, adapters: Adapters | None = None
) -> int:
    """Of all parameters but factors, each once however many modules share it."""
    factors = factors_of(adapters)
    few = quantised(model, settings)
    held = {
        id(p): stored_bytes(p, settings if id(module) in few else None)
        for module in model.modules()
        for p in module.parameters(recurse=False)
        if id(p) not in factors
    }
    return sum(held.values())


def factors_of(adapters: Adapters | None) -> set[int]:
    return {id(p) for layer in adapters or () for p in layer.factors.parameters()}


def cut(model: nn.Module, adapters: Adapters, shards: int, *, full: bool) -> int:
    """Leave of the weights what the first of so many processes holds (`train.shard=full`), a share
    of their first dimension rounded up; the bytes that stand beside them while a block computes.

    That is what is in no block, whole from the forward pass to the end of the backward, and two
    blocks, of which one is on its way. Gradients that are whole before they are summed over
    processes, and what is sent of them, are counted with the passes (`reduction`).
    """
    kept = factors_of(adapters) | ({id(p) for p in adapters.others.values()} - full_of(full, model))
    inside: dict[int, int] = {}
    largest = 0
    for block in blocks(model):
        own = {id(p): nbytes(p) for p in block.parameters() if id(p) not in kept}
        largest = max(largest, sum(own.values()))
        inside |= own
    outside = sum(
        nbytes(p) for p in model.parameters() if id(p) not in inside and id(p) not in kept
    )
    for p in model.parameters():
        if id(p) not in kept:
            p.data = p.new_empty(-(-p.shape[0] // shards), *p.shape[1:]) if p.dim() else p.data
    return outside + 2 * largest


def full_of(full: bool, model: nn.Module) -> set[int]:
    """The weights that train in pieces: all, or none."""
    return {id(p) for p in model.parameters()} if full else set()


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

    Where the configuration does not say, the initializer shows on a small layer.
    """
    if node.get("start") not in ("pretrained", None):
        return False
    if made.needs and node.get("start") == "pretrained":
        return True
    generator = torch.Generator().manual_seed(0)
    W, G = (torch.randn(8, 8, generator=generator) for _ in range(2))
    known = {
        "gradient": G,
        "summed_gradient": G,
        "leading_gradient": linalg.svd(G),
        "input_moment": W @ W.mT,
        "output_moment": W.square().sum(1),
        "population": ANY.rows,
    }
    if not made.needs <= known.keys():
        return True
    layer = Layer(name="small", W=W, **{name: known[name] for name in made.needs})
    initializer = settled(make(dict(node)), ANY)
    factors = initializer(layer, rank=2, scaling=1.0, generator=generator)
    return factors.start == "pretrained" and factors.has_product()


@cache
def skeleton(settings: str, dtype: torch.dtype, labels: int) -> nn.Module:
    """`bare`, made once; to be copied."""
    return bare(ModelSettings(**json.loads(settings)), dtype, labels)


def bare(settings: ModelSettings, dtype: torch.dtype, labels: int) -> nn.Module:
    """The model without numbers, in the dtype of its frozen weights."""
    classes = {"num_labels": labels} if labels and settings.kind == "encoder" else {}
    return models.open(settings).bare(dtype, **classes)


def quantised(model: Any, settings: ModelSettings) -> set[int]:
    """The linear layers whose weights are stored in fewer bits, by identity. The library leaves the
    vocabulary of a text model as it is, T5's `wo`, and the head and the pooler of an encoder."""
    if not settings.quantise:
        return set()
    parts = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if settings.kind == "encoder":
        parts |= {*models.new_modules(model, settings.kind), "pooler"}
    vocabulary = None if settings.kind == "encoder" else model.get_output_embeddings()
    return {
        id(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not vocabulary
        and not parts & {*name.split(".")}
    }


def stored_bytes(parameter: Tensor, few: ModelSettings | None) -> int:
    """Of a frozen parameter: a quantised weight takes 1 or 1/2 byte a number, and NF4 its scales
    (1/64 float32) beside it. `few`: the settings of a layer that is quantised."""
    if few is not None and parameter.dim() == 2:
        return int(parameter.numel() * (1 if few.quantise == "8bit" else 0.5 + 4 / 64))
    return parameter.numel() * parameter.element_size()


def optimizer_bytes(adapters: Adapters, node: dict[str, Any]) -> int:
    """Moments, masters and counters of the rule itself, made for parameters without numbers."""
    rule: Any = make(node)
    return int(rule(adapters, lr=1e-3, weight_decay=0.0).state_bytes())


def initialising(
    made: Initializer,
    parts: dict[str, Any],
    sizes: Mapping[str, Size],
    dtype: torch.dtype,
    beside: int | None,
    swept: int,
) -> tuple[int, int]:
    """What the initializer's statistics hold at once, as the collection plans it within its budget,
    and what the layer needs that needs most: on a card with just so many bytes `beside` the weights
    as training takes, of which the passes of a batch take `swept`."""
    held, host = 0, False
    if made.needs:
        samples, budget = parts["calibration"]
        if budget == "auto":
            budget = default_budget(None if beside is None else beside - swept)
        asked = made.request(parts["rank"], **config.Component.of(parts["init"], "init").keywords)
        there = None if beside is None else HOST
        plan = plan_statistics(sizes, made.needs, asked, samples, budget, there)
        held, host = plan.bytes, plan.host
    factors = 4 * parts["rank"] * sum(s.d_out + s.d_in for s in sizes.values())
    room = None if beside is None else beside - factors - (0 if host else held)
    return held, work_of(parts, sizes, dtype, room, host=host)
