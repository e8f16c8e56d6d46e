"""What answers lm-eval's questions: the live model with our batch-independent generation, or vLLM
on a merged copy."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from loraexp.machine import progress
from loraexp.machine.device import autocast
from loraexp.machine.processes import started
from loraexp.scoring import generate
from loraexp.scoring.likelihood import continuations, score_rows
from loraexp.scoring.merged import write_merged
from loraexp.scoring.passes import Sharing
from loraexp.scoring.prompts import Asked, Tokenizer, bare, is_seq2seq

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Backend = Literal["hf", "vllm"]
Told = Callable[[Asked, str | list[float], int], None]
VLLM_SHARE = 0.9  # of the device's free memory


def require(backend: Backend, kind: str, processes: Sharing | None = None) -> None:
    """Raises: ValueError where vLLM is asked for and is not installed, or does not run the kind of
    model, or many processes."""
    world = processes.world if processes is not None else started()
    if backend == "vllm" and world > 1:
        raise ValueError(
            f"evaluate.backend=vllm: this run has {world} processes, and vLLM takes a device as a"
            " whole; set evaluate.backend=hf, or score the finished run by loraexp eval in one"
            " process"
        )
    if backend == "vllm" and find_spec("vllm") is None:
        raise ValueError(
            "evaluate.backend=vllm: vllm is not installed; pip install vllm (it needs a GPU), or"
            " set evaluate.backend=hf"
        )
    if backend == "vllm" and kind != "causal":
        raise ValueError(
            f"evaluate.backend=vllm: it runs causal models, and model.kind is {kind}; set"
            " evaluate.backend=hf"
        )


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How questions are answered."""

    batch_size: int
    precision: str = "fp32"
    seed: int = 0
    backend: Backend = "hf"
    processes: Sharing | None = None
    unsafe_code: bool = False  # of the programs that are answers


@contextmanager
def language_model(
    model: nn.Module,
    tokenizer: Tokenizer,
    how: Answering,
    told: Told | None = None,
    shorter: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Any]:
    """lm-eval's model: its `HFLM` around the live model, or its `VLLM` on a merged copy, which is
    gone afterwards.

    `told(request, answer, of)` hears of each answer as it is there, a text or a log-probability of
    each choice. `shorter`: what is asked in the place of a prompt.

    Raises: ValueError for vllm where it is not installed, or the model is not causal.
    """
    require(how.backend, "seq2seq" if is_seq2seq(model) else "causal", how.processes)
    if how.backend == "hf":
        yield live(model, tokenizer, how, told, shorter)
        return
    with ExitStack() as own:
        stack = _copies.stack or own
        if _copies.served is None or _copies.stack is None:
            place = stack.enter_context(tempfile.TemporaryDirectory())
            write_merged(model, tokenizer, Path(place))
            _copies.served = stack.enter_context(_vllm(place, how))
        yield _asking(_copies.served, shorter)


@dataclass
class _Copies:
    """vLLM's engine, as long as the model stays as it is."""

    stack: ExitStack | None = None
    served: Any = None


_copies = _Copies()


@contextmanager
def one_copy() -> Iterator[None]:
    """Within, the model does not change: vLLM's merged copy is made once, for all benchmarks and
    protocols, and removed."""
    with ExitStack() as stack:
        _copies.stack, _copies.served = stack, None
        try:
            yield
        finally:
            _copies.stack = _copies.served = None


@contextmanager
def _vllm(place: str, how: Answering) -> Iterator[Any]:
    """vLLM on a folder of weights, ended afterwards."""
    from lm_eval.models.vllm_causallms import VLLM

    room: dict[str, object] = {}
    if torch.cuda.is_available():  # what the live model holds is not there for vLLM
        free, total = torch.cuda.mem_get_info()
        room = {"gpu_memory_utilization": VLLM_SHARE * free / total}
    dtype = "bfloat16" if how.precision == "bf16" else "float32"
    served = VLLM(pretrained=place, batch_size="auto", seed=how.seed, dtype=dtype, **room)
    try:
        yield served
    finally:
        del served
        _copies.served = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Asking:
    """A model of lm-eval that is asked shorter prompts in the place of some."""

    def __init__(self, inner: Any, shorter: Mapping[str, str]) -> None:
        self._inner, self._shorter = inner, shorter

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> object:
        for request in requests:
            prompt, *rest = request.args
            request.arguments = (self._shorter.get(prompt, prompt), *rest)
        return self._inner.generate_until(requests)


def _asking(served: object, shorter: Mapping[str, str]) -> object:
    return _Asking(served, shorter) if shorter else served


@functools.cache
def _live_class() -> Any:
    """lm-eval's own model in everything but the two things that it is asked for, which each
    instance is given.

    One class for all: a class is part of a cycle, and one made for a model would keep its weights
    alive.
    """
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):
        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            return self.written(requests)

        def loglikelihood(
            self, requests: list[Instance], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            return self.likely(requests)

    return Live


def live(
    model: nn.Module,
    tokenizer: Tokenizer,
    how: Answering,
    told: Told | None,
    shorter: Mapping[str, str],
) -> Any:
    with quiet():
        answering = _live_class()(
            pretrained=bare(model),
            tokenizer=tokenizer,
            backend="seq2seq" if is_seq2seq(model) else "causal",
            batch_size=how.batch_size,
            mixed_precision_dtype="bfloat16" if how.precision == "bf16" else None,
        )
    answering.written = lambda requests: _generate(model, tokenizer, requests, how, told, shorter)
    answering.likely = lambda requests: _likelihoods(model, tokenizer, requests, how, told)
    return answering


def _generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    requests: list[Instance],
    how: Answering,
    told: Told | None,
    shorter: Mapping[str, str],
) -> list[str]:
    """lm-eval's requests answered by `generate.generate`; equal settings together, a repeated
    prompt as another sample."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
    answers = [""] * len(requests)
    for key, indices in groups.items():
        asked = [shorter.get(requests[index].args[0], requests[index].args[0]) for index in indices]

        def heard(
            prompt: int, sample: int, text: str, of: int, indices: list[int] = indices
        ) -> None:
            if told is not None:
                told(requests[indices[prompt]], text, of)

        with autocast(bare(model).device, how.precision):
            texts = generate.generate(
                model,
                tokenizer,
                asked,
                batch_size=how.batch_size,
                processes=how.processes,
                told=heard,
                seed=how.seed,
                **decoding_of(json.loads(key)),
            )
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text[0]
    return answers


def decoding_of(kwargs: Mapping[str, Any]) -> dict[str, object]:
    """lm-eval's settings of a generation as ours."""
    until = kwargs.get("until") or []
    return {
        "max_new_tokens": int(kwargs.get("max_gen_toks", 256)),
        "stop": [until] if isinstance(until, str) else until,
        "beams": int(kwargs.get("num_beams", 1)),
        "temperature": (
            float(kwargs.get("temperature") or 0.0) if kwargs.get("do_sample", True) else 0.0
        ),
        "top_p": float(kwargs.get("top_p", 1.0)),
        "top_k": int(kwargs.get("top_k", 0)),
    }


def _likelihoods(
    model: nn.Module,
    tokenizer: Tokenizer,
    requests: list[Instance],
    how: Answering,
    told: Told | None,
) -> list[tuple[float, bool]]:
    """lm-eval's pairs of a context and its continuation; those of one row side by side, its context
    read once.

    Whether a continuation is what the model would write is asked by no protocol here: it is False.
    """
    rows: dict[tuple[int, str], list[int]] = {}
    for index, request in enumerate(requests):
        rows.setdefault((request.doc_id, request.args[0]), []).append(index)
    indices = list(rows.values())
    encoded = [
        continuations(
            model,
            tokenizer,
            requests[row[0]].args[0],
            [requests[index].args[1].removeprefix(" ") for index in row],
            alone=False,
        )
        for row in indices
    ]

    def heard(row: int, scores: list[float], of: int) -> None:
        if told is not None:
            told(requests[indices[row][0]], scores, of)

    with autocast(bare(model).device, how.precision):
        scores = score_rows(
            model,
            tokenizer,
            encoded,
            batch_size=how.batch_size,
            processes=how.processes,
            told=heard,
        )
    found = {
        index: score
        for row, part in zip(indices, scores, strict=True)
        for index, score in zip(row, part, strict=True)
    }
    return [(found[index], False) for index in range(len(requests))]


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and datasets without their logs and bars: progress is ours."""
    logger = logging.getLogger("lm_eval")
    level, offline = logger.level, os.environ.get("TOKENIZERS_PARALLELISM")
    logger.setLevel(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with progress.alone():
            yield
    finally:
        logger.setLevel(level)
        if offline is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)


def listener(prompts: dict[int, str]) -> object:
    """A model for lm-eval that answers nothing, and notes what it is asked by the number of the
    row."""
    from lm_eval.api.model import LM

    class Listener(LM):
        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            prompts.update({request.doc_id: str(request.args[0]) for request in requests})
            return [""] * len(requests)

        def loglikelihood(
            self, requests: list[Instance], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            prompts.update({request.doc_id: "".join(request.args) for request in requests})
            return [(0.0, False)] * len(requests)

        loglikelihood_rolling = loglikelihood

    return Listener()
