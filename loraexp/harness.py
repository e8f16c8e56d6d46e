"""Score a live model on the rows of a protocol: through lm-eval, with every prompt, text and answer written down."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from loraexp import generation, sandbox
from loraexp.protocols import Protocol, find

Backend = Literal["hf", "vllm"]
Progress = Callable[[int, int], None]
TASKS = Path(__file__).resolve().parent / "harness_tasks"


@dataclass(frozen=True)
class Question:
    """One row to be scored: its prompt, the truth as the protocol reads it, and where it came from.

    For code, `truth` is the program that tests it, with the function's name in `entry` and what the program begins with
    in `opening`. For choices it is one of the protocol's.
    """

    prompt: str
    truth: str
    source: str = ""
    opening: str = ""
    entry: str = ""


@dataclass
class Sample:
    """What `samples.jsonl` holds of one answer."""

    index: int
    protocol: str
    prompt: str
    truth: str
    output: str
    answer: str | None
    right: bool
    source: str = ""
    scores: list[float] | None = None
    detail: str = ""


def score(
    model: nn.Module,
    tokenizer: Any,
    protocol: Protocol,
    questions: Sequence[Question],
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    folder: Path | None,
    seed: int = 0,
    backend: Backend = "hf",
    merged: Path | None = None,
    unsafe_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The protocol's metrics of the model on these questions; `samples.jsonl` in `folder`.

    `accuracy`, or for code `pass@1`; `answered`, the share of outputs that an answer was found in. Where several
    answers are drawn, `pass@1` is their mean (Chen et al. 2021, eq. 1 with k = 1), and accuracy likewise.

    Raises: ValueError for no questions, for prompts beyond the window, and for a backend that is not there;
    SandboxError, before anything is generated, where code would have to run without a sandbox.
    """
    if not questions:
        raise ValueError(f"protocol {protocol.benchmark}/{protocol.name}: no questions to score; give more rows")
    if protocol.kind == "harness":
        raise ValueError(f"protocol {protocol.benchmark}/{protocol.name} is lm-eval's own task: score it with harness.run_task")
    if protocol.kind == "code":
        sandbox.require(unsafe_code)
    room, sources = protocol.decoding.max_new_tokens if protocol.decoding else 0, [question.source for question in questions]
    generation.encode_prompts(model, tokenizer, [question.prompt for question in questions], room, sources)  # all fit, or none is scored
    if protocol.kind == "choices" and protocol.choice_tokens == "alone":
        samples = _alone(model, tokenizer, protocol, questions, batch_size, autocast_of(device, precision), progress)
    else:
        live = language_model(
            model, tokenizer, batch_size=batch_size, precision=precision, seed=seed, backend=backend, merged=merged, progress=progress
        )
        samples = _through_lm_eval(live, protocol, questions, batch_size)
    if protocol.kind == "code":
        _execute(samples, questions, protocol, unsafe_code)
    write_samples(folder, samples)
    found = {protocol.metric: float(np.mean([sample.right for sample in samples]))}
    return found if protocol.kind == "choices" else found | {"answered": float(np.mean([sample.answer is not None for sample in samples]))}


# ---------------------------------------------------------------------------------------------------- the model


def language_model(
    model: nn.Module,
    tokenizer: Any,
    *,
    batch_size: int,
    precision: str = "fp32",
    seed: int = 0,
    backend: Backend = "hf",
    merged: Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """lm-eval's model: its `HFLM` around the live model, with our batch-independent generation; or vLLM on `merged`.

    Raises: ValueError for vllm where it is not installed or there is no merged checkpoint.
    """
    if backend == "vllm":
        return _vllm(merged, seed)
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return _generate(model, tokenizer, requests, batch_size, precision, seed, progress)

    with quiet():
        return Live(
            pretrained=generation.bare(model),
            tokenizer=tokenizer,
            backend="seq2seq" if generation.is_seq2seq(model) else "causal",
            batch_size=batch_size,
            mixed_precision_dtype="bfloat16" if precision == "bf16" else None,
        )


def _vllm(merged: Path | None, seed: int) -> Any:
    if find_spec("vllm") is None:
        raise ValueError("evaluate.backend=vllm: vllm is not installed; pip install vllm (it needs a GPU), or evaluate.backend=hf")
    if merged is None:
        raise ValueError("evaluate.backend=vllm: vllm reads a merged checkpoint; make one with loraexp export RUN --to DIR --merged")
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(pretrained=str(merged), batch_size="auto", seed=seed)


def _generate(
    model: nn.Module, tokenizer: Any, requests: list[Any], batch_size: int, precision: str, seed: int, progress: Progress | None
) -> list[str]:
    """lm-eval's requests answered by `generation.generate`; equal settings together, a repeated prompt as another sample."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
    answers = [""] * len(requests)
    for key, indices in groups.items():
        kwargs = json.loads(key)
        until = kwargs.get("until") or []
        with autocast_of(generation.bare(model).device, precision):
            texts = generation.generate(
                model,
                tokenizer,
                [requests[index].args[0] for index in indices],
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
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    logger, bars = logging.getLogger("lm_eval"), is_progress_bar_enabled()
    level, offline = logger.level, os.environ.get("TOKENIZERS_PARALLELISM")
    logger.setLevel(logging.ERROR)
    disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bar()
        if offline is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)


# ---------------------------------------------------------------------------------------------------- the tasks


def _through_lm_eval(live: Any, protocol: Protocol, questions: Sequence[Question], batch_size: int) -> list[Sample]:
    """The protocol as one of our lm-eval tasks on a local JSON file of its rows; samples in the order of the questions."""
    with tempfile.TemporaryDirectory() as place:
        rows = Path(place) / "questions.jsonl"
        rows.write_text("".join(json.dumps(_row(protocol, index, question)) + "\n" for index, question in enumerate(questions)))
        overrides: dict[str, Any] = {"dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": place}}
        task = "loraexp_choices" if protocol.kind == "choices" else "loraexp_generate"
        if protocol.decoding is not None:
            overrides |= _decoding(protocol)
        logged = simple_evaluate(live, task, overrides, batch_size)["samples"][task]
    logged = sorted(logged, key=lambda one: one["doc"]["index"])
    return [sample for one in logged for sample in _samples(protocol, questions[one["doc"]["index"]], one)]


def _row(protocol: Protocol, index: int, question: Question) -> dict[str, Any]:
    truth: Any = question.truth
    if protocol.kind == "choices":
        if truth not in protocol.choices:
            raise ValueError(
                f"{question.source or f'question {index}'}: the truth is {truth!r}; expected one of {', '.join(protocol.choices)}"
            )
        truth = protocol.choices.index(truth)
    row = {"index": index, "benchmark": protocol.benchmark, "protocol": protocol.name, "prompt": question.prompt, "truth": truth}
    return row | {"choices": list(protocol.choices)}


def _decoding(protocol: Protocol) -> dict[str, Any]:
    assert protocol.decoding is not None
    how = protocol.decoding
    settings: dict[str, Any] = {"until": list(how.stop), "max_gen_toks": how.max_new_tokens, "do_sample": how.temperature > 0}
    if how.temperature > 0:
        settings |= {"temperature": how.temperature, "top_p": how.top_p} | ({"top_k": how.top_k} if how.top_k else {})
    if how.beams > 1:
        settings["num_beams"] = how.beams
    keep = [{"name": "all", "filter": [{"function": "take_first_k", "k": how.samples}]}]
    return {"generation_kwargs": settings, "repeats": how.samples, "filter_list": keep}


def score_row(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """lm-eval's `process_results` of our tasks: the share of a row's answers that its protocol finds right."""
    protocol = find(doc["benchmark"], doc["protocol"])
    texts = _texts(results)
    if protocol.kind == "code":  # run afterwards, all together, in the sandbox
        return {"accuracy": 0.0}
    return {"accuracy": float(np.mean([protocol.right(protocol.read(text), doc["truth"]) for text in texts]))}


def _texts(results: Sequence[Any]) -> list[str]:
    return [text for result in results for text in ([result] if isinstance(result, str) else result)]


def _samples(protocol: Protocol, question: Question, logged: Mapping[str, Any]) -> list[Sample]:
    name, index = f"{protocol.benchmark}/{protocol.name}", logged["doc"]["index"]
    if protocol.kind == "choices":
        scores = [float(score) for score, _ in logged["filtered_resps"]]
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"{name}: question {index} has scores that are not finite: the model diverged, lower lr")
        best = protocol.choices[int(np.argmax(scores))]
        return [Sample(index, name, question.prompt, question.truth, "", best, best == question.truth, question.source, scores)]
    made = []
    for text in _texts(logged["filtered_resps"]):
        answer = protocol.read(text)
        right = protocol.kind != "code" and protocol.right(answer, question.truth)
        made.append(Sample(index, name, question.prompt, question.truth, text, answer, right, question.source))
    return made


def _alone(
    model: nn.Module, tokenizer: Any, protocol: Protocol, questions: Sequence[Question],
    batch_size: int, products: Any, progress: Progress | None,
) -> list[Sample]:  # fmt: skip
    """Choices as single tokens whatever precedes them, which lm-eval cannot express: it joins prompt and choice."""
    prompts = [question.prompt for question in questions]
    with products:
        scores = generation.score_choices(model, tokenizer, prompts, protocol.choices, batch_size=batch_size, alone=True, progress=progress)
    return [
        _samples(protocol, question, {"doc": {"index": index}, "filtered_resps": [(value, False) for value in scores[index]]})[0]
        for index, question in enumerate(questions)
    ]


@cache
def task_manager(own: bool) -> Any:
    """lm-eval's index of our tasks alone, or of its own thousands, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False) if own else TaskManager()


def simple_evaluate(live: Any, task: str, overrides: Mapping[str, Any], batch_size: int, limit: int | None = None) -> dict[str, Any]:
    """lm-eval on one task, of its own or of ours, with some of its keys replaced; quietly and without its bootstrap."""
    from lm_eval import simple_evaluate as evaluate

    with quiet(), tempfile.TemporaryDirectory() as place:
        manager = task_manager(own=task.startswith("loraexp_"))
        variant = Path(place) / f"{task}.yaml"
        variant.write_text(json.dumps({"include": str(manager.task_index[task].yaml_path), **overrides}))  # JSON is YAML
        found = evaluate(
            model=live,
            tasks=[str(variant)],
            task_manager=manager,
            batch_size=batch_size,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert found is not None
    return found


def run_task(
    model: nn.Module,
    tokenizer: Any,
    protocol: Protocol,
    *,
    batch_size: int,
    precision: str = "fp32",
    folder: Path | None = None,
    files: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    backend: Backend = "hf",
    merged: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """A protocol that is lm-eval's own task (8-shot GSM8K), on its hub data or on the local JSON Lines at `files`.

    Raises: ValueError for a protocol that is not lm-eval's, or where lm-eval does not report its metric.
    """
    if protocol.kind != "harness" or protocol.task is None:
        raise ValueError(f"protocol {protocol.benchmark}/{protocol.name} is not a task of lm-eval: score it with harness.score")
    overrides: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        if files is not None:
            local = {"data_files": {"test": str(files)}, "cache_dir": place}
            overrides = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": local}
        live = language_model(
            model, tokenizer, batch_size=batch_size, precision=precision, seed=seed, backend=backend, merged=merged, progress=progress
        )
        found = simple_evaluate(live, protocol.task, overrides, batch_size, limit)
    values = found["results"][protocol.task]
    if protocol.metric not in values:
        raise ValueError(f"lm-eval's {protocol.task} reports {sorted(values)}; expected {protocol.metric}")
    metric, _, kept = protocol.metric.partition(",")
    logged = [one for one in found["samples"][protocol.task] if one["filter"] == kept]
    name = f"{protocol.benchmark}/{protocol.name}"
    samples = [
        Sample(
            one["doc_id"],
            name,
            str(one["arguments"]["gen_args_0"]["arg_0"]) if isinstance(one["arguments"], dict) else str(one["arguments"][0][0]),
            str(one["target"]),
            _texts(one["resps"])[0],
            None if _texts(one["filtered_resps"])[0] == "[invalid]" else _texts(one["filtered_resps"])[0],
            bool(one[metric]),
        )
        for one in logged
    ]
    write_samples(folder, samples)
    return {"accuracy": float(values[protocol.metric]), "answered": float(np.mean([sample.answer is not None for sample in samples]))}


# ---------------------------------------------------------------------------------------------------- code and files


def _execute(samples: list[Sample], questions: Sequence[Question], protocol: Protocol, unsafe_code: bool) -> None:
    """Run each answer against its question's tests; an output without code fails without being run."""
    from loraexp.progress import tally

    runnable = [sample for sample in samples if sample.answer is not None]
    programs = [program(questions[sample.index], sample.answer or "") for sample in runnable]
    with tally("tests") as progress:
        outcomes = sandbox.run_all(programs, unsafe_code=unsafe_code, progress=progress)
    for sample, outcome in zip(runnable, outcomes, strict=True):
        sample.right, sample.detail = outcome.passed, f"{outcome.status}: {outcome.detail}".rstrip(": ")


def program(question: Question, completion: str) -> str:
    """HumanEval's check: the question's opening, the completion, its tests, and the call of them (Chen et al. 2021)."""
    return f"{question.opening}{completion}\n{question.truth}\ncheck({question.entry})"


def write_samples(folder: Path | None, samples: Sequence[Sample]) -> None:
    """`samples.jsonl`: one line for each answer, added to what other protocols wrote; earlier lines of this one go."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.jsonl"
    mine = {sample.protocol for sample in samples}
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["protocol"] not in mine] if path.exists() else []
    lines = kept + [json.dumps(asdict(sample), ensure_ascii=False) for sample in samples]
    from loraexp.files import replace

    replace(path, "".join(f"{line}\n" for line in lines).encode())
