"""The weights of a model, from safetensors or drawn, with its head drawn from a seed."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from loraexp.config import Plain
from loraexp.machine import repository
from loraexp.machine.hub import SourceError, verify
from loraexp.machine.notation import read_json
from loraexp.models.place import loading, unreachable
from loraexp.models.weights import DRAWN, Loaded, inspect, untie

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loraexp.config.settings import ModelSettings
    from loraexp.models.base import Base


def load_config(base: Base) -> PretrainedConfig:
    """The architecture: from the settings themselves, or from the files at `model.path`."""
    from transformers import AutoConfig

    settings = base.settings
    if settings.config is not None:
        architecture = dict(settings.config)
        if "model_type" not in architecture:
            shown = (
                "{model_type:bert,hidden_size:32,num_hidden_layers:2,num_attention_heads:2,"
                "intermediate_size:64,vocab_size:30522}"
            )
            raise ValueError(
                "model.config has no model_type; expected an architecture, for example"
                f" 'model.config={shown}'"
            )
        return AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    folder = base.folder
    with loading():
        try:
            read_json(folder / "config.json", dict)
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise unreachable(settings, base.place, "config.json", error) from error


def model_class(kind: str) -> Any:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    return {
        "encoder": AutoModelForSequenceClassification,
        "seq2seq": AutoModelForSeq2SeqLM,
        "causal": AutoModelForCausalLM,
    }[kind]


PEFT_TASK = {"encoder": "SEQ_CLS", "seq2seq": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM"}


def built(base: Base, config: PretrainedConfig, dtype: torch.dtype | None) -> Any:
    """A model of this architecture with the weights that it draws itself: those of float32, rounded
    to the dtype, since the generator of a narrower one draws others."""
    single = torch.float32 if dtype is None else torch.promote_types(dtype, torch.float32)
    made = model_class(base.settings.kind).from_config(
        config, dtype=single, **attention(base.settings)
    )
    if dtype is not None and dtype != single:
        for parameter in made.parameters():
            parameter.data = parameter.data.to(dtype)
        made.config.dtype = dtype
    return made


def load_model(
    base: Base,
    *,
    dtype: torch.dtype,
    head_seed: int,
    full: bool = False,
    device: torch.device | None = None,
    **labels: object,
) -> nn.Module:
    """The pretrained model, its new head drawn from `head_seed`, in `dtype`, on the CPU, in
    evaluation mode.

    The head depends on the seed alone: every initializer compared under one seed starts from the
    same head. `full`: every weight trains, so that layers which share one go on doing so. `device`:
    where `model.quantise` puts the model; without one the weights are as they are stored.
    """
    settings, config = base.settings, base.configured(**labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.weights_seed)
        if settings.config is not None:
            if settings.quantise and device is not None:
                raise SourceError(
                    f"model.quantise={settings.quantise}: model={settings.name} has random weights;"
                    " expected null"
                )
            model = built(base, config, dtype)
            model.loaded = Loaded(drawn=list(base.head))
        else:
            model = pretrained(base, config, dtype, device)
            check_finite(settings, model)
            if settings.quantise and device is not None:
                settle(model)
                as_stored = (
                    f"model.quantise={settings.quantise} leaves {unquantised(model)} as stored"
                )
                model.loaded.notes.append(as_stored)
        draw_head(model, head_seed)
    if settings.kind == "causal" and (vocabulary := model.get_output_embeddings()) is not None:
        vocabulary.register_forward_pre_hook(_side_by_side)
    if not full:
        untie(model, settings.targets)
    if settings.gradient_checkpointing:
        recompute(model)
    return model.eval()


def settle(model: nn.Module) -> None:
    """4-bit layers as they are after their first product, which changes them: biases get the type
    that is computed in (within inference mode, and nothing could train afterwards), and on a CPU a
    pass without gradients would round the scales of the weights to bf16 for all that come after."""
    for module in model.modules():
        if hasattr(module, "compute_dtype") and hasattr(module, "quant_state"):
            layer: Any = module
            layer.support_avx512bf16_for_cpu = False
            if layer.bias is not None:
                layer.bias.data = layer.bias.data.to(layer.compute_dtype)


def unquantised(model: nn.Module) -> str:
    """Which linear layers of a quantised model are not: the head, and what the architecture keeps
    (T5's `wo`)."""
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    last = Counter(name.rpartition(".")[2] for name in names)
    shown = (
        f"{last[end]} layers {end}" if last[end] > 1 else name
        for name in names
        for end in [name.rpartition(".")[2]]
    )
    return ", ".join(dict.fromkeys(shown)) or "nothing"


def _side_by_side(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """On a CPU, the states that the vocabulary reads without gaps. Of a slice, the last tokens of
    each row, PyTorch takes the product row by row, in bf16 with a copy of the whole vocabulary for
    each: a fifth of a step of SmolLM2-135M."""
    first, *others = arguments
    return (first.contiguous() if first.device.type == "cpu" else first, *others)


def recompute(model: Any, **how: Any) -> None:
    """Have each layer's activations computed again in the backward pass, by the name that this
    version of transformers has for it; `how`: more of what torch's checkpoint takes."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False} | how)


def head(model: Any) -> list[str]:
    """The modules of a loaded model that train in full: the task's head, and what of its body had
    no pretrained weight."""
    loaded: Loaded = model.loaded
    return [*loaded.kept, *loaded.drawn]


def check_finite(settings: ModelSettings, model: nn.Module) -> None:
    """The weights that were read are numbers, or SourceError names the first that is not."""
    for name, weight in model.named_parameters():
        if (
            not weight.is_floating_point()
            or torch.isfinite(weight.sum())
            or torch.isfinite(weight).all()
        ):
            continue
        bad = int((~torch.isfinite(weight)).sum())
        raise SourceError(
            f"model={settings.name}: {bad} of {weight.numel()} values of {name} in {settings.path}"
            " are NaN or infinite: the weights are damaged; fetch them again, or set model.path to"
            " others"
        )


def notes(model: Any) -> list[str]:
    """What a reader must know of how a model came to its weights, one line each."""
    return list(model.loaded.notes)


def untied(model: Any) -> list[str]:
    """The targets that shared their weight with another layer and have their own now."""
    return list(model.loaded.untied)


def dtype_of(settings: ModelSettings, precision: str, *, full: bool) -> torch.dtype:
    """What the weights of a run are held in: `model.dtype`, else float32, or bfloat16 where they
    are frozen and products bf16."""
    if settings.dtype:
        return getattr(torch, settings.dtype)
    return torch.bfloat16 if precision == "bf16" and not full else torch.float32


def draw_head(model: Any, seed: int) -> None:
    """The weights of what is new, drawn from `seed` alone: in float32 and rounded, since the
    generator of another dtype draws others. The global generator goes on from there."""
    torch.manual_seed(seed)
    for name in model.loaded.drawn:
        part = model.get_submodule(name)
        # transformers leaves alone what it has marked as loaded
        for x in (*part.modules(), *part.parameters()):
            x.__dict__.pop("_is_hf_initialized", None)
        stored = [(parameter, parameter.dtype) for parameter in part.parameters()]
        for parameter, dtype in stored:
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
        part.apply(model._init_weights)
        for parameter, dtype in stored:
            parameter.data = parameter.data.to(dtype)


def pretrained(
    base: Base, config: PretrainedConfig, dtype: torch.dtype, device: torch.device | None = None
) -> Any:
    """The weights at `model.path`, from safetensors alone unless the user trusts a pickle; what was
    found is in `loaded`. `device`: where they are quantised, if `model.quantise` says so."""
    settings, place = base.settings, base.place
    if isinstance(place, Path) and not str(settings.path).endswith(".gguf"):
        verify(place / "model.safetensors", settings.sha256, key="model.sha256")
    options = attention(settings) | (quantised(base, device) if device is not None else {})
    folder = base.folder
    if base.repository is not None:
        folder = repository.checkpoint(base.repository, pickle=settings.allow_pickle)
    if (index := folder / "model.safetensors.index.json").exists():
        repository.listed(index)  # names files of this folder alone
    with loading():
        try:
            model, found = model_class(settings.kind).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=None if settings.allow_pickle else True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said in `inspect`, by key
                **options,
            )
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            if isinstance(place, Path) and not any(place.glob("*.safetensors")):
                raise SourceError(
                    f"model={settings.name}: no .safetensors file in {place}; convert the weights,"
                    " or set model.allow_pickle=true if you trust the files (loading a .bin can"
                    " run code)"
                ) from error
            raise unreachable(settings, place, "weights", error) from error
    keep = settings.head == "keep"
    model.loaded = inspect(settings.name, model, base.head, found, keep=keep)
    if keep:
        check_names(base, config)
    return model


def check_names(base: Base, config: PretrainedConfig) -> None:
    """A head that is kept has its classes in the order of the task: the same names in another order
    are refused."""
    theirs, ours = (
        [str(name).lower() for _, name in sorted((own.id2label or {}).items())]
        for own in (base.config, config)
    )
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise SourceError(
            f"model.head=keep: the checkpoint of model={base.settings.name} has the classes"
            f" {', '.join(theirs)}, and the task {', '.join(ours)}; set model.head=new, or"
            " task.label_names to the checkpoint's order"
        )


def attention(settings: ModelSettings) -> Plain:
    return {"attn_implementation": settings.attention} if settings.attention else {}


def quantised(base: Base, device: torch.device) -> Plain:
    """Options that load the frozen weights in 8 or 4 bits onto `device` (bitsandbytes; 4: NF4 with
    products in bf16, Dettmers et al. 2023).

    Raises: SourceError on a device that the library has no kernels for, or without the package: no
    other precision is taken silently.
    """
    settings = base.settings
    if settings.quantise is None:
        return {}
    if device.type not in ("cuda", "cpu"):
        raise SourceError(
            f"model.quantise={settings.quantise}: bitsandbytes has no products on {device.type};"
            " set device=cuda or device=cpu, or model.quantise=null"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SourceError(
            f"model.quantise={settings.quantise}: needs bitsandbytes: pip install"
            ' "loraexp[quantised]", or set it to null'
        )
    from transformers import BitsAndBytesConfig

    # it would say of every product in 8 bits that the input is cast
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # What is drawn anew trains in float32; of a text model the library leaves out the output layer
    # by itself.
    drawn = [*base.head, *(name for own in DRAWN for name in (own, rf".*\.{own}"))]
    skipped = {"llm_int8_skip_modules": drawn if settings.kind == "encoder" else None}
    if settings.quantise == "8bit":
        how = BitsAndBytesConfig(load_in_8bit=True, **skipped)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            **skipped,
        )
    place = torch.cuda.current_device() if device.type == "cuda" else device.type
    return {"quantization_config": how, "device_map": {"": place}}
