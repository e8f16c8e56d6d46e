"""Score a live model on the rows of a protocol: through lm-eval, with every prompt, text and answer
written down."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from loraexp.machine.device import autocast
from loraexp.machine.progress import Advance
from loraexp.scoring import sandbox
from loraexp.scoring.backends import Answering, language_model, listener
from loraexp.scoring.evaluator import lm_evaluate
from loraexp.scoring.likelihood import score_choices
from loraexp.scoring.prompts import Tokenizer, bare, encode_prompts
from loraexp.scoring.protocols import Protocol, find
from loraexp.scoring.samples import (
    Marks,
    Question,
    Sample,
    metrics_of,
    run_tests,
    write_samples,
)


def score(
    model: nn.Module,
    tokenizer: Tokenizer,
    protocol: Protocol,
    questions: Sequence[Question],
    how: Answering,
    folder: Path | None = None,
    advance: Advance | None = None,
) -> dict[str, float]:
    """The protocol's metrics of the model on these questions; `samples.jsonl` in `folder`.

    `accuracy`, or for code `pass@1`; `answered`, the share of outputs that an answer was found in.
    Where several answers are drawn, `pass@1` is their mean (Chen et al. 2021, eq. 1 with k = 1),
    and accuracy likewise. Several processes answer a part of the questions each, and all of them
    return the metrics of all. `advance` moves a bar.

    Raises: ValueError for no questions, for prompts beyond the window, and for a backend that is
    not there; SandboxError, before anything is generated, where code would have to run without a
    sandbox.
    """
    if not questions:
        raise ValueError(
            f"protocol {protocol.benchmark}/{protocol.name}: no questions to score; give more rows"
        )
    if protocol.kind == "harness":
        raise ValueError(
            f"protocol {protocol.benchmark}/{protocol.name} is lm-eval's own task: score it with"
            " harness.run_task"
        )
    if protocol.kind == "code":
        sandbox.require(how.unsafe_code)
    room, sources = (
        protocol.decoding.max_new_tokens if protocol.decoding else 0,
        [question.source for question in questions],
    )
    # all fit, or none is scored
    encode_prompts(model, tokenizer, [question.prompt for question in questions], room, sources)
    marks = Marks(protocol, [question.truth for question in questions], advance)
    if protocol.kind == "choices" and protocol.choice_tokens == "alone":
        samples = _alone(model, tokenizer, protocol, questions, how, marks)
    else:
        with language_model(model, tokenizer, how, marks.told) as live:
            samples = _through_lm_eval(live, protocol, questions, marks)
    if protocol.kind == "code":
        run_tests(samples, questions, how)
    write_samples(folder, samples)
    return metrics_of(protocol, samples)


# --------------------------------------------------------------------------------------------------
# the tasks


def _through_lm_eval(
    live: Any, protocol: Protocol, questions: Sequence[Question], marks: Marks
) -> list[Sample]:
    """The protocol as one of our lm-eval tasks on a local JSON file of its rows; samples in the
    order of the questions."""
    with tempfile.TemporaryDirectory() as place:
        rows = Path(place) / "questions.jsonl"
        rows.write_text(
            "".join(
                json.dumps(_row(protocol, index, question)) + "\n"
                for index, question in enumerate(questions)
            )
        )
        overrides: dict[str, Any] = {
            "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": place}
        }
        task = "loraexp_choices" if protocol.kind == "choices" else "loraexp_generate"
        if protocol.decoding is not None:
            overrides |= _decoding(protocol)
        logged = lm_evaluate(live, task, overrides)["samples"][task]
    logged = sorted(logged, key=lambda one: one["doc"]["index"])
    return [
        sample
        for one in logged
        for sample in _samples(protocol, questions[one["doc"]["index"]], one, marks)
    ]


def _row(protocol: Protocol, index: int, question: Question) -> dict[str, Any]:
    truth: object = question.truth
    if protocol.kind == "choices":
        if truth not in protocol.choices:
            raise ValueError(
                f"{question.source or f'question {index}'}: the truth is {truth!r}; expected one of"
                f" {', '.join(protocol.choices)}"
            )
        truth = protocol.choices.index(truth)
    row = {
        "index": index,
        "benchmark": protocol.benchmark,
        "protocol": protocol.name,
        "prompt": question.prompt,
        "truth": truth,
    }
    return row | {"choices": list(protocol.choices)}


def _decoding(protocol: Protocol) -> dict[str, Any]:
    assert protocol.decoding is not None
    how = protocol.decoding
    settings: dict[str, object] = {
        "until": list(how.stop),
        "max_gen_toks": how.max_new_tokens,
        "do_sample": how.temperature > 0,
    }
    if how.temperature > 0:
        settings |= {"temperature": how.temperature, "top_p": how.top_p} | (
            {"top_k": how.top_k} if how.top_k else {}
        )
    if how.beams > 1:
        settings["num_beams"] = how.beams
    keep = [{"name": "all", "filter": [{"function": "take_first_k", "k": how.samples}]}]
    return {"generation_kwargs": settings, "repeats": how.samples, "filter_list": keep}


def score_row(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """lm-eval's `process_results` of our tasks: the share of a row's answers that its protocol
    finds right."""
    protocol = find(doc["benchmark"], doc["protocol"])
    texts = _texts(results)
    if protocol.kind == "code":  # run afterwards, all together, in the sandbox
        return {"accuracy": 0.0}
    return {
        "accuracy": float(
            np.mean([protocol.right(protocol.read(text), doc["truth"]) for text in texts])
        )
    }


def _texts(results: Sequence[Any]) -> list[str]:
    return [
        text for result in results for text in ([result] if isinstance(result, str) else result)
    ]


def _samples(
    protocol: Protocol, question: Question, logged: Mapping[str, Any], marks: Marks
) -> list[Sample]:
    name, index = f"{protocol.benchmark}/{protocol.name}", logged["doc"]["index"]
    if protocol.kind == "choices":
        scores = [float(score) for score, _ in logged["filtered_resps"]]
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f"{name}: question {index} has scores that are not finite: the model diverged,"
                " lower lr"
            )
        best = protocol.choices[int(np.argmax(scores))]
        return [
            Sample(
                index,
                name,
                question.prompt,
                question.truth,
                "",
                best,
                best == question.truth,
                question.source,
                scores,
            )
        ]
    made = []
    for text in _texts(logged["filtered_resps"]):
        answer, right = marks.mark(text, question.truth)
        made.append(
            Sample(
                index, name, question.prompt, question.truth, text, answer, right, question.source
            )
        )
    return made


def _alone(
    model: nn.Module,
    tokenizer: Tokenizer,
    protocol: Protocol,
    questions: Sequence[Question],
    how: Answering,
    marks: Marks,
) -> list[Sample]:
    """Choices as single tokens whatever precedes them, which lm-eval cannot express: it joins
    prompt and choice."""

    def told(row: int, scores: list[float], of: int) -> None:
        marks.told(SimpleNamespace(doc={"index": row}, doc_id=row), scores, of)

    prompts = [question.prompt for question in questions]
    with autocast(bare(model).device, how.precision):
        scores = score_choices(
            model,
            tokenizer,
            prompts,
            protocol.choices,
            batch_size=how.batch_size,
            alone=True,
            processes=how.processes,
            told=told,
        )
    return [
        _samples(
            protocol,
            question,
            {
                "doc": {"index": index},
                "filtered_resps": [(value, False) for value in scores[index]],
            },
            marks,
        )[0]
        for index, question in enumerate(questions)
    ]


def run_task(
    model: nn.Module,
    tokenizer: Tokenizer,
    protocol: Protocol,
    rows: Sequence[Mapping[str, object]],
    how: Answering,
    folder: Path | None = None,
    advance: Advance | None = None,
    shorter: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, float]:
    """A protocol that is lm-eval's own task (8-shot GSM8K), on rows in the columns of its data; see
    `score`.

    `shorter`: what is asked in the place of a prompt that does not fit the window.

    Raises: ValueError for a protocol that is not lm-eval's, or where lm-eval does not report its
    metric.
    """
    marks = Marks(protocol, [str(row.get("answer", "")) for row in rows], advance)
    with language_model(model, tokenizer, how, marks.told, shorter) as live:
        samples = _own_samples(protocol, _on_rows(live, protocol, rows))
    for sample in samples:
        sample.prompt = shorter.get(sample.prompt, sample.prompt)
    samples.sort(key=lambda sample: sample.index)
    write_samples(folder, samples)
    return metrics_of(protocol, samples)


def prompts_of(protocol: Protocol, rows: Sequence[Mapping[str, object]]) -> list[str]:
    """What lm-eval's own task asks about these rows, its examples included."""
    prompts: dict[int, str] = {}
    _on_rows(listener(prompts), protocol, rows)
    return [prompts[index] for index in range(len(rows))]


def _on_rows(
    live: Any, protocol: Protocol, rows: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    """lm-eval's own task on rows that it reads from a file."""
    if protocol.kind != "harness" or protocol.task is None:
        raise ValueError(
            f"protocol {protocol.benchmark}/{protocol.name} is not a task of lm-eval: score it with"
            " harness.score"
        )
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        local = {"data_files": {"test": str(file)}, "cache_dir": place}
        overrides = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": local}
        return lm_evaluate(live, protocol.task, overrides, protocol.benchmark)


def _own_samples(protocol: Protocol, found: Mapping[str, Any]) -> list[Sample]:
    assert protocol.task is not None
    metric, _, kept = protocol.metric.partition(",")
    if protocol.metric not in found["results"][protocol.task]:
        raise ValueError(
            f"lm-eval's {protocol.task} reports {sorted(found['results'][protocol.task])}; expected"
            f" {protocol.metric}"
        )
    samples = []
    for one in found["samples"][protocol.task]:
        if one["filter"] == kept:
            asked = (
                one["arguments"]["gen_args_0"]["arg_0"]
                if isinstance(one["arguments"], dict)
                else one["arguments"][0][0]
            )
            answer = _texts(one["filtered_resps"])[0]
            samples.append(
                Sample(
                    index=one["doc_id"],
                    protocol=f"{protocol.benchmark}/{protocol.name}",
                    prompt=str(asked),
                    truth=str(one["target"]),
                    output=_texts(one["resps"])[0],
                    answer=None if answer == "[invalid]" else answer,
                    right=bool(one[metric]),
                )
            )
    return samples


# --------------------------------------------------------------------------------------------------
# code and files
