"""Score a live model on the rows of a protocol: through lm-eval, with every prompt, text and answer
written down."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from loraexp.machine.escapes import printable
from loraexp.machine.files import replace
from loraexp.machine.progress import Advance, tally
from loraexp.scoring import generate, judge, sandbox
from loraexp.scoring.backends import Answering, autocast_of, language_model, listener, quiet
from loraexp.scoring.likelihood import score_choices
from loraexp.scoring.protocols import Protocol, find
from loraexp.scoring.sharing import parts_of

TASKS = Path(__file__).resolve().parent / "harness_tasks"
FEWSHOT_SEED = 1234  # lm-eval's own default


@dataclass(frozen=True)
class Question:
    """One row to be scored: its prompt, the truth as the protocol reads it, and where it came from.

    For code, `truth` is the program that tests it, with the function's name in `entry` and what the
    program begins with in `opening`. For choices it is one of the protocol's.
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
    inside: bool = False  # code: tested in the program's own process (see judge.needs_itself)


class Marks:
    """What is known of a protocol's answers while they come: read and compared once, and counted
    for the bar."""

    def __init__(self, protocol: Protocol, truths: Sequence[str], advance: Advance | None) -> None:
        self._protocol, self._truths, self._advance = protocol, truths, advance
        self._known: dict[tuple[str, str], tuple[str | None, bool]] = {}
        self._done = self._answered = self._right = 0

    def mark(self, text: str, truth: str) -> tuple[str | None, bool]:
        """(the answer in a text, whether it is the truth); code is not run here, so none of it is
        right yet."""
        key = (text, truth)
        if key not in self._known:
            answer = self._protocol.read(text)
            self._known[key] = (
                answer,
                self._protocol.kind != "code" and self._protocol.right(answer, truth),
            )
        return self._known[key]

    def told(self, request: Any, found: str | Sequence[float], of: int) -> None:
        """Hear of an answer of lm-eval's request: a text, or a log-probability of each choice."""
        if self._advance is None:
            return
        self._done += 1
        truth = self._truths[request.doc.get("index", request.doc_id)]
        if isinstance(found, str):
            answer, right = self.mark(found, truth)
        else:
            answer = self._protocol.choices[int(np.argmax(found))]
            right = answer == truth
        self._answered += answer is not None
        self._right += right
        shown = {"answered": f"{self._answered}/{self._done}"}
        self._advance(
            1,
            total=of,
            **(
                shown
                if self._protocol.kind == "code"
                else shown | {"right": f"{self._right}/{self._done}"}
            ),
        )


def score(
    model: nn.Module,
    tokenizer: Any,
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
    generate.encode_prompts(
        model, tokenizer, [question.prompt for question in questions], room, sources
    )
    marks = Marks(protocol, [question.truth for question in questions], advance)
    if protocol.kind == "choices" and protocol.choice_tokens == "alone":
        samples = _alone(model, tokenizer, protocol, questions, how, marks)
    else:
        with language_model(model, tokenizer, how, marks.told) as live:
            samples = _through_lm_eval(live, protocol, questions, marks)
    if protocol.kind == "code":
        _execute(samples, questions, how, model)
    write_samples(folder, samples)
    return metrics_of(protocol, samples)


def metrics_of(protocol: Protocol, samples: Sequence[Sample]) -> dict[str, float]:
    name = "accuracy" if protocol.kind == "harness" else protocol.metric
    found = {name: float(np.mean([sample.right for sample in samples]))}
    return (
        found
        if protocol.kind == "choices"
        else found | {"answered": float(np.mean([sample.answer is not None for sample in samples]))}
    )


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
    truth: Any = question.truth
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
    settings: dict[str, Any] = {
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
    tokenizer: Any,
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
    with autocast_of(generate.bare(model).device, how.precision):
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


@cache
def task_manager(folder: Path) -> Any:
    """lm-eval's index of the tasks in one folder; that of all its own, which are thousands, takes
    seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def lm_evaluate(
    live: Any, task: str, overrides: Mapping[str, Any], benchmark: str | None = None
) -> dict[str, Any]:
    """lm-eval on one task of ours, or of its own for a benchmark, with some keys replaced; quietly
    and without its bootstrap.

    Its `simple_evaluate` is not what is called: that seeds the global generators, which are the
    training's, and gives no result to a process whose LOCAL_RANK is not 0. `evaluate` has no
    opinion about either.
    """
    import lm_eval
    from lm_eval.evaluator import evaluate

    with quiet(), tempfile.TemporaryDirectory() as place:
        manager = task_manager(
            TASKS if benchmark is None else Path(lm_eval.__file__).parent / "tasks" / benchmark
        )
        variant = Path(place) / f"{task}.yaml"
        # JSON is YAML
        variant.write_text(
            json.dumps({"include": str(manager.task_index[task].yaml_path), **overrides})
        )
        tasks = manager.load([str(variant)])
        for one in tasks["tasks"].values():
            if one.get_config("num_fewshot") is None:
                one.set_config(key="num_fewshot", value=0)
            one.set_fewshot_seed(seed=FEWSHOT_SEED)
        found = evaluate(lm=live, task_dict=tasks, bootstrap_iters=0, log_samples=True)
    if found is None:
        raise RuntimeError(
            f"lm-eval gave no result for {task}: its model calls itself process {live.rank} of"
            f" {live.world_size}"
        )
    return dict(found)


def run_task(
    model: nn.Module,
    tokenizer: Any,
    protocol: Protocol,
    rows: Sequence[Mapping[str, Any]],
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


def prompts_of(protocol: Protocol, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What lm-eval's own task asks about these rows, its examples included."""
    prompts: dict[int, str] = {}
    _on_rows(listener(prompts), protocol, rows)
    return [prompts[index] for index in range(len(rows))]


def _on_rows(live: Any, protocol: Protocol, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _execute(
    samples: list[Sample], questions: Sequence[Question], how: Answering, model: nn.Module
) -> None:
    """Run each answer against its question's tests, this process's part of them on its part of the
    CPUs."""
    runnable = [number for number, sample in enumerate(samples) if sample.answer is not None]
    mine = [runnable[k] for k in parts_of(how.processes, model, len(runnable))]
    cases = [
        case(questions[samples[number].index], samples[number].answer or "") for number in mine
    ]
    with tally("tests") as progress:
        beside = how.processes.world if how.processes is not None else 1
        workers = max(1, (os.cpu_count() or 1) // beside)
        outcomes = judge.judge_all(
            cases, unsafe_code=how.unsafe_code, workers=workers, progress=progress
        )
    found = {
        number: (outcome.passed, f"{outcome.status}: {outcome.detail}".rstrip(": "), outcome.inside)
        for number, outcome in zip(mine, outcomes, strict=True)
    }
    if how.processes is not None and len(mine) < len(runnable):
        for part in how.processes.gather(found):
            found |= part
    for number, verdict in found.items():
        samples[number].right, samples[number].detail, samples[number].inside = verdict


def case(question: Question, completion: str) -> judge.Case:
    """HumanEval's check: the question's opening, the completion, its tests, and the call of them
    (Chen et al. 2021)."""
    return judge.Case(
        program=f"{question.opening}{completion}\n",
        opening=question.opening,
        test=question.truth,
        entry=question.entry,
    )


def write_samples(folder: Path | None, samples: Sequence[Sample]) -> None:
    """`samples.jsonl`: one line for each answer, added to what other protocols wrote; earlier lines
    of this one go."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.jsonl"
    mine = {sample.protocol for sample in samples}
    kept = (
        [line for line in path.read_text().splitlines() if json.loads(line)["protocol"] not in mine]
        if path.exists()
        else []
    )
    lines = kept + [printable(json.dumps(asdict(sample), ensure_ascii=False)) for sample in samples]
    replace(path, "".join(f"{line}\n" for line in lines).encode())
