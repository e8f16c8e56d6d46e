"""What answers lm-eval's questions: the live model with our batch-independent generation, or vLLM on a merged copy."""

from __future__ import annotations

import gc
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loraexp.adapter.adapted import AdaptedLinear
from loraexp.adapter.linalg import at_least_float32
from loraexp.scoring import generate

Backend = Literal["hf", "vllm"]
Progress = Callable[[int, int], None]
VLLM_SHARE = 0.9  # of the device's free memory


def require(backend: Backend, kind: str) -> None:
    """Raises: ValueError where vLLM is asked for and is not installed, or does not run the kind of model."""
    if backend == "vllm" and find_spec("vllm") is None:
        raise ValueError("evaluate.backend=vllm: vllm is not installed; pip install vllm (it needs a GPU), or set evaluate.backend=hf")
    if backend == "vllm" and kind != "causal":
        raise ValueError(f"evaluate.backend=vllm: it runs causal models, and model.kind is {kind}; set evaluate.backend=hf")


@contextmanager
def language_model(
    model: nn.Module,
    tokenizer: Any,
    *,
    batch_size: int,
    precision: str = "fp32",
    seed: int = 0,
    backend: Backend = "hf",
    progress: Progress | None = None,
) -> Iterator[Any]:
    """lm-eval's model: its `HFLM` around the live model, or its `VLLM` on a merged copy, which is gone afterwards.

    Raises: ValueError for vllm where it is not installed, or the model is not causal.
    """
    require(backend, "seq2seq" if generate.is_seq2seq(model) else "causal")
    if backend == "hf":
        yield _live(model, tokenizer, batch_size, precision, seed, progress)
        return
    with tempfile.TemporaryDirectory() as place:
        write_merged(model, tokenizer, Path(place))
        from lm_eval.models.vllm_causallms import VLLM

        room = {}
        if torch.cuda.is_available():  # what the live model holds is not there for vLLM
            free, total = torch.cuda.mem_get_info()
            room = {"gpu_memory_utilization": VLLM_SHARE * free / total}
        served = VLLM(pretrained=place, batch_size="auto", seed=seed, **room)
        try:
            yield served
        finally:
            del served
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def write_merged(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """The adapted model as a plain checkpoint: every update added to its weight once, in float32. The live one stays as it is.

    Raises: ValueError for a quantised base, whose weights take no update.
    """
    inner = generate.bare(model)
    state: dict[str, Tensor] = dict(inner.state_dict())
    for name, layer in [(name, module) for name, module in inner.named_modules() if isinstance(module, AdaptedLinear)]:
        weight = layer.base.weight
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ValueError(f"layer {name}: a quantised weight cannot be merged for vLLM; set evaluate.backend=hf")
        own = {key: state.pop(key) for key in [key for key in state if key.startswith(f"{name}.")]}
        state |= {key.replace(f"{name}.base.", f"{name}."): x for key, x in own.items() if key.startswith(f"{name}.base.")}
        with torch.no_grad():
            state[f"{name}.weight"] = (at_least_float32(weight) + layer.update()).to(weight.dtype)
    inner.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def _live(model: nn.Module, tokenizer: Any, batch_size: int, precision: str, seed: int, progress: Progress | None) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):
        shorter: Mapping[str, str] = MappingProxyType({})

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return _generate(model, tokenizer, requests, self.shorter, batch_size, precision, seed, progress)

    with quiet():
        return Live(
            pretrained=generate.bare(model),
            tokenizer=tokenizer,
            backend="seq2seq" if generate.is_seq2seq(model) else "causal",
            batch_size=batch_size,
            mixed_precision_dtype="bfloat16" if precision == "bf16" else None,
        )


def _generate(
    model: nn.Module, tokenizer: Any, requests: list[Any], shorter: Mapping[str, str],
    batch_size: int, precision: str, seed: int, progress: Progress | None,
) -> list[str]:  # fmt: skip
    """lm-eval's requests answered by `generation.generate`; equal settings together, a repeated prompt as another sample."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
    answers = [""] * len(requests)
    for key, indices in groups.items():
        kwargs = json.loads(key)
        until = kwargs.get("until") or []
        with autocast_of(generate.bare(model).device, precision):
            texts = generate.generate(
                model,
                tokenizer,
                [shorter.get(requests[index].args[0], requests[index].args[0]) for index in indices],
                max_new_tokens=int(kwargs.get("max_gen_toks", 256)),
                batch_size=batch_size,
                stop=[until] if isinstance(until, str) else until,
                beams=int(kwargs.get("num_beams", 1)),
                temperature=float(kwargs.get("temperature") or 0.0) if kwargs.get("do_sample", True) else 0.0,
                top_p=float(kwargs.get("top_p", 1.0)),
                top_k=int(kwargs.get("top_k", 0)),
                seed=seed,
                progress=progress,
            )
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text[0]
    return answers


def autocast_of(device: torch.device, precision: str) -> torch.autocast:
    """bf16 products where `precision="bf16"`; nothing otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and datasets without their logs and bars: progress is ours."""
    import lm_eval.api.task
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    logger, bars = logging.getLogger("lm_eval"), is_progress_bar_enabled()
    level, offline = logger.level, os.environ.get("TOKENIZERS_PARALLELISM")
    contexts = lm_eval.api.task.tqdm  # type: ignore[attr-defined]
    lm_eval.api.task.tqdm = lambda rows, **_: rows  # type: ignore[attr-defined]
    logger.setLevel(logging.ERROR)
    disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = contexts  # type: ignore[attr-defined]
        if bars:
            enable_progress_bar()
        if offline is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)


def listener(prompts: dict[int, str]) -> Any:
    """A model for lm-eval that answers nothing, and notes what it is asked by the number of the row."""
    from lm_eval.api.model import LM

    class Listener(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            prompts.update({request.doc_id: str(request.args[0]) for request in requests})
            return [""] * len(requests)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            prompts.update({request.doc_id: "".join(request.args) for request in requests})
            return [(0.0, False)] * len(requests)

        loglikelihood_rolling = loglikelihood  # type: ignore[assignment]

    return Listener()


def sharded(model: nn.Module) -> bool:
    """Whether processes share the weights, so that each needs every other one for a forward pass of its own."""
    whole = type(model).__name__ != "FullyShardedDataParallel"
    return not whole or any(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
