"""Load a model and its tokenizer, and choose the linear layers that get an adapter."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraexp.machine import progress, repository
from loraexp.machine.files import sha256
from loraexp.machine.hub import SourceError, resolve, verify
from loraexp.machine.repository import Repository
from loraexp.models import tokenizer as tokenizers
from loraexp.models.weights import DRAWN, Loaded, inspect, untie

if TYPE_CHECKING:
    from loraexp.config.settings import ModelSettings


@contextmanager
def loading() -> Iterator[None]:
    """transformers without its loading reports."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with progress.alone():
            yield
    finally:
        logging.set_verbosity(before)


def locate(settings: ModelSettings) -> Path | str:
    """A folder, or a hub id, where the weights are; of a .gguf file, the folder that it was
    converted to."""
    if settings.path is None:
        raise SourceError(
            f"model={settings.name}: model.path and model.config are both null; give one of them"
        )
    place = resolve(settings.path, key="model.path", revision=settings.revision)
    if isinstance(place, Path) and place.suffix == ".gguf":
        from loraexp.models.gguf import converted

        return converted(place, kind=settings.kind, sha256=settings.sha256)
    return place


def hub(id: str, revision: str | None, key: str = "model.path") -> Repository:
    """The model's repository on the hub."""
    return Repository(id, "model", revision, repository.MODEL._replace(source=key, folder=key))


def commit(settings: ModelSettings) -> str | None:
    """The commit of the hub's repository that is loaded; None where the weights are not the
    hub's."""
    if settings.path is None or settings.config is not None:
        return None
    place = locate(settings)
    return hub(place, settings.revision).commit if isinstance(place, str) else None


def loaded(settings: ModelSettings) -> dict[str, Any]:
    """Which weights these are, for the record: the hub's `commit`, or the `sha256` of what lies in
    the folder."""
    weights: dict[str, Any] = {"source": settings.path, "commit": commit(settings), "sha256": None}
    if settings.path is not None and settings.config is None and weights["commit"] is None:
        weights["sha256"] = weights_digest(Path(locate(settings)))
    return weights


def weights_digest(folder: Path) -> str | None:
    """sha256 of a folder's weights: of the file, or of the digests of several; a file is read again
    when it changes."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    digests = [file_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@functools.cache
def file_digest(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def load_tokenizer(settings: ModelSettings) -> Any:
    """The fast tokenizer of the model; a pad token is required and never invented silently.

    `model.pad_token` names a token of the tokenizer that pads, for the tokenizers that come without
    one (LLaMA, Mistral). Which one does not matter to a result: padding is masked by position
    everywhere, never by id. The `model_max_length` of a causal model's tokenizer is at most the
    model's window, and it ends no text by itself.
    """
    if settings.tokenizer is not None and settings.tokenizer.startswith(tokenizers.TRAINED):
        tokenizer = tokenizers.trained(settings.tokenizer, settings.kind)
    else:
        tokenizer = padding(settings, read_tokenizer(settings))
    if settings.kind == "causal":
        tokenizer = tokenizers.without_end(tokenizer)
        window = getattr(load_config(settings).get_text_config(), "max_position_embeddings", None)
        tokenizer.model_max_length = min(
            tokenizer.model_max_length, window or tokenizer.model_max_length
        )
    return tokenizer


def padding(settings: ModelSettings, tokenizer: Any) -> Any:
    """The tokenizer with the pad token that the settings name; SourceError where there is none."""
    if settings.pad_token is not None:
        if settings.pad_token not in tokenizer.get_vocab():
            raise SourceError(
                f"model.pad_token={settings.pad_token}: not a token of {settings.name}'s tokenizer;"
                f" its eos is {tokenizer.eos_token}"
            )
        tokenizer.pad_token = settings.pad_token
    if tokenizer.pad_token_id is None:
        remedy = (
            "name one of its tokens, for example its end token:"
            f" 'model.pad_token=\"{tokenizer.eos_token}\"'"
        )
        raise SourceError(f"model={settings.name}: its tokenizer has no pad token; {remedy}")
    return tokenizer


def read_tokenizer(settings: ModelSettings) -> Any:
    from transformers import AutoTokenizer

    if settings.tokenizer is None:
        place, of = locate(settings), hub(str(settings.path), settings.revision)
    else:
        place, of = (
            resolve(settings.tokenizer, key="model.tokenizer"),
            hub(settings.tokenizer, None, "model.tokenizer"),
        )
    folder = place if isinstance(place, Path) else repository.definition(of)
    with loading():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise unreachable(settings, place, "tokenizer", error) from error
    check_words(settings, place, tokenizer)
    return tokenizer


SENTENCE = "A quick brown fox jumps over 13 lazy dogs, and 27 others."


def check_words(settings: ModelSettings, place: Path | str, tokenizer: Any) -> None:
    """The tokenizer knows something, or SourceError: of a folder without its files transformers
    makes an empty one, silently."""
    ids = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens([i for i in ids if i not in tokenizer.all_special_ids])
    # T5's empty one has the space between words
    if not any(letter.isalnum() for piece in pieces for letter in piece):
        raise SourceError(
            f"model={settings.name}: the tokenizer in {place} has {len(tokenizer.get_vocab())}"
            " tokens and knows no word: its files (tokenizer.json, vocab.txt, ...) are not there;"
            " add them, or set model.tokenizer to the one that the model was trained with"
        )


def check_reach(settings: ModelSettings, longest: int, types: int) -> None:
    """Rows of `longest` tokens and of token types up to `types` are what an encoder reads, or
    SourceError."""
    own = load_config(settings)
    window = own.max_position_embeddings if getattr(own, "position_biased_input", True) else None
    if window is not None and own.model_type in FROM_PAD:
        window -= own.pad_token_id + 1  # its positions begin behind that of the padding
    if window is not None and longest > window:
        raise SourceError(
            f"task.max_length: a row has {longest} tokens, and model={settings.name} reads"
            f" {window}; set task.max_length={window} or less"
        )
    rows = getattr(own, "type_vocab_size", 0)
    if rows and types >= rows:
        raise SourceError(
            f"model={settings.name}: its tokenizer gives the second text token type {types}, and"
            f" the model has {rows} (0 to {rows - 1}): set model.tokenizer to the one that the"
            " model was trained with"
        )


FROM_PAD = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "roberta-prelayernorm",
        "data2vec-text",
        "mpnet",
        "longformer",
    }
)


def check_vocabulary(settings: ModelSettings, tokenizer: Any) -> None:
    """Every token that the tokenizer can make has a row in the model's embedding, or
    SourceError."""
    rows = load_config(settings).get_text_config().vocab_size
    most = max(tokenizer.get_vocab().values(), default=-1)
    if most >= rows:
        raise SourceError(
            f"model={settings.name}: its embedding has {rows} rows and its tokenizer makes ids up"
            f" to {most}; expected ids below {rows}: set model.tokenizer to the tokenizer that the"
            " model was trained with"
        )


def unreachable(
    settings: ModelSettings, place: Path | str, what: str, error: Exception
) -> SourceError:
    """One line: what was looked for, where, why it cannot be used, and how to provide it."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    remedy = (
        "set model.path=DIR to a complete copy"
        if isinstance(place, Path)
        else "set model.path to a complete repository or folder"
    )
    return SourceError(
        f"model={settings.name}: no usable {what} in {place}: {reason[:200]}; {remedy}"
    )


def load_config(settings: ModelSettings, **labels: Any) -> Any:
    """The architecture: from the settings themselves, or from the files at `model.path`."""
    from transformers import AutoConfig

    if "id2label" in labels:
        labels["label2id"] = {name: i for i, name in labels["id2label"].items()}
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
        return AutoConfig.for_model(architecture.pop("model_type"), **architecture, **labels)
    place = locate(settings)
    folder = (
        place if isinstance(place, Path) else repository.definition(hub(place, settings.revision))
    )
    with loading():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, **labels)
        except (OSError, ValueError) as error:
            raise unreachable(settings, place, "config.json", error) from error


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


def skeleton(settings: ModelSettings, **labels: Any) -> nn.Module:
    """The model without its weights (on the meta device): names and shapes in a fraction of a
    second."""
    config = load_config(settings, **labels)
    with torch.device("meta"):
        return model_class(settings.kind).from_config(config)


def load_model(
    settings: ModelSettings, *, dtype: torch.dtype, head_seed: int, **labels: Any
) -> nn.Module:
    """The pretrained model, its new head drawn from `head_seed`, in `dtype`, on the CPU, in
    evaluation mode.

    The head depends on the seed alone: every initializer compared under one seed starts from the
    same head.
    """
    config = load_config(settings, **labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.weights_seed)
        if settings.config is not None:
            if settings.quantise:
                raise SourceError(
                    f"model.quantise={settings.quantise}: model={settings.name} has random weights;"
                    " expected null"
                )
            model = model_class(settings.kind).from_config(
                config, dtype=dtype, **attention(settings)
            )
            model.loaded = Loaded(drawn=new_modules(model, settings.kind))
        else:
            model = pretrained(settings, config, dtype)
            check_finite(settings, model)
        draw_head(model, head_seed)
    model.loaded.notes += untie(model, settings.targets)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.eval()


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


def dtype_of(settings: ModelSettings, precision: str, *, full: bool) -> torch.dtype:
    """What the weights of a run are held in: `model.dtype`, else float32, or bfloat16 where they
    are frozen and products bf16."""
    if settings.dtype:
        return getattr(torch, settings.dtype)
    return torch.bfloat16 if precision == "bf16" and not full else torch.float32


def draw_head(model: Any, seed: int) -> None:
    """The weights of what is new, drawn from `seed` alone; the global generator goes on from
    there."""
    torch.manual_seed(seed)
    for name in model.loaded.drawn:
        part = model.get_submodule(name)
        # transformers leaves alone what it has marked as loaded
        for x in (*part.modules(), *part.parameters()):
            x.__dict__.pop("_is_hf_initialized", None)
        part.apply(model._init_weights)


def pretrained(settings: ModelSettings, config: Any, dtype: torch.dtype) -> Any:
    """The weights at `model.path`, from safetensors alone unless the user trusts a pickle; what was
    found is in `loaded`."""
    place = locate(settings)
    if isinstance(place, Path) and not str(settings.path).endswith(".gguf"):
        verify(place / "model.safetensors", settings.sha256, key="model.sha256")
    options = attention(settings) | quantised(settings)
    if isinstance(place, Path):
        folder = place
    else:
        folder = repository.checkpoint(hub(place, settings.revision), pickle=settings.allow_pickle)
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
        except (OSError, ValueError) as error:
            if isinstance(place, Path) and not any(place.glob("*.safetensors")):
                raise SourceError(
                    f"model={settings.name}: no .safetensors file in {place}; convert the weights,"
                    " or set model.allow_pickle=true if you trust the files (loading a .bin can"
                    " run code)"
                ) from error
            raise unreachable(settings, place, "weights", error) from error
    head = new_modules(model, settings.kind)
    model.loaded = inspect(settings.name, model, head, found, keep=settings.head == "keep")
    if settings.head == "keep":
        check_names(settings, folder, config)
    return model


def check_names(settings: ModelSettings, folder: Path, config: Any) -> None:
    """A head that is kept has its classes in the order of the task: the same names in another order
    are refused."""
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
    theirs, ours = (
        [str(names[i]).lower() for i in sorted(names)] for names in (stored, config.id2label)
    )
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise SourceError(
            f"model.head=keep: the checkpoint of model={settings.name} has the classes"
            f" {', '.join(theirs)}, and the task {', '.join(ours)}; set model.head=new, or"
            " task.label_names to the checkpoint's order"
        )


def saved_model(settings: ModelSettings, folder: Path, *, dtype: torch.dtype) -> nn.Module:
    """A whole model that a run has saved (`init=full`), its trained head included, on the CPU, in
    evaluation mode."""
    own = replace(settings, path=str(folder), config=None, revision=None, sha256=None, head="keep")
    return pretrained(own, load_config(own), dtype).eval()


def attention(settings: ModelSettings) -> dict[str, Any]:
    return {"attn_implementation": settings.attention} if settings.attention else {}


def quantised(settings: ModelSettings) -> dict[str, Any]:
    """Options that load the frozen weights in 8 or 4 bits (bitsandbytes; 4: NF4 with products in
    bf16, Dettmers et al. 2023).

    Raises: SourceError without a CUDA device or without the package: no other precision is taken
    silently.
    """
    if settings.quantise is None:
        return {}
    if not torch.cuda.is_available():
        raise SourceError(
            f"model.quantise={settings.quantise}: needs a CUDA device and there is none; set"
            " model.quantise=null"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SourceError(
            f"model.quantise={settings.quantise}: needs bitsandbytes: pip install"
            ' "loraexp[quantised]", or set it to null'
        )
    from transformers import BitsAndBytesConfig

    # What is drawn anew trains in float32; of a text model the library leaves out the output layer
    # by itself.
    drawn = [
        name.rpartition(".")[2]
        for name in (*new_modules(skeleton(settings), settings.kind), *DRAWN)
    ]
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
    return {"quantization_config": how, "device_map": {"": torch.cuda.current_device()}}


def new_modules(model: nn.Module, kind: str) -> list[str]:
    """Modules that train in full: the classification head of an encoder, and what of its body had
    no pretrained weight."""
    if kind != "encoder":
        return []
    body = getattr(model, "base_model_prefix", "")
    head = [
        name
        for name, child in model.named_children()
        if name != body and any(True for _ in child.parameters())
    ]
    loaded = getattr(model, "loaded", None)
    return (
        head + [name for name in loaded.drawn if name not in head]
        if isinstance(loaded, Loaded)
        else head
    )


def is_linear(module: nn.Module) -> bool:
    """An `nn.Linear`, or a quantised stand-in that has its attributes and computes `x Wᵀ`."""
    return (
        hasattr(module, "in_features")
        and hasattr(module, "out_features")
        and hasattr(module, "weight")
    )


def target_layers(
    model: nn.Module, targets: Sequence[str], head: Sequence[str]
) -> dict[str, nn.Module]:
    """The linear layers whose name is, or ends in, one of `targets`; the new head is never among
    them."""
    linear = {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and not any(name == h or name.startswith(f"{h}.") for h in head)
    }
    found: dict[str, nn.Module] = {}
    for target in targets:
        matching = {n: m for n, m in linear.items() if n == target or n.endswith(f".{target}")}
        if not matching:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"model.targets: no linear layer is named {target!r}; the model has"
                f" {', '.join(ends)}"
            )
        found |= matching
    return {name: module for name, module in linear.items() if name in found}


def check_rank(targets: Mapping[str, nn.Module], rank: int, directions: int = 0) -> None:
    """The rank fits every target, or a ValueError names the first that is smaller.

    `directions`: how many leading ones of a layer the initializer reads for this rank (2r for
    LoRA-GA).
    """
    for name, module in targets.items():
        d_out, d_in = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        if rank > min(d_out, d_in):
            raise ValueError(
                f"rank={rank}: layer {name} is ({d_out}, {d_in}); expected at most"
                f" {min(d_out, d_in)}"
            )
        if directions > min(d_out, d_in):
            most = min(d_out, d_in) * rank // directions
            raise ValueError(
                f"rank={rank}: init reads {directions} directions, and layer {name} is ({d_out},"
                f" {d_in}); expected at most {most}"
            )
