"""What the stand-in hub holds: a tiny model of every family and a few rows of every data set, in
the hub's own layout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.hub_models import MODELS, model_files
from tests.support.hub_server import Files, Hub
from tests.support.hub_sets import (
    ORIGINALS,
    alpaca,
    arc,
    code_feedback,
    commonsense170k,
    glue,
    gsm8k,
    humaneval,
    math500,
    metamath,
    mmlu,
    original,
)

CONF = Path(__file__).resolve().parents[2] / "conf"


def config(group: str, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return loaded


def pinned() -> dict[str, str | None]:
    """The commit of every data set that tasks and benchmarks pin, by its id; None: the newest."""
    from loraexp.data import benchmarks

    tasks = [yaml.safe_load(path.read_text()) for path in (CONF / "task").glob("*.yaml")]
    found = {
        task["source"]: task["revision"]
        for task in tasks
        if task.get("source") and "revision" in task
    }
    asked = [benchmarks.named(name) for name in benchmarks.names()]
    return found | {str(benchmark.source): benchmark.revision for benchmark in asked}


def fill(hub: Hub) -> Hub:
    """Every model and data set that a yaml of the project names, under the commit that it pins."""
    for name in ("roberta-base", "t5-base", "llama-2-7b"):
        settings = config("model", name)
        family = MODELS[settings["path"]]
        files = model_files(family, shards=family == "llama")
        hub.repository(settings["path"], gated=family == "llama").add(
            files, commit=settings["revision"]
        )
    hub.repository("acme/bert").add(model_files("bert"))
    hub.repository("acme/pickled").add(model_files("bert", pickle=True))
    makers: dict[str, Callable[[], Files]] = {
        "nyu-mll/glue": glue,
        "openai/gsm8k": gsm8k,
        "meta-math/MetaMathQA": metamath,
        "yahma/alpaca-cleaned": alpaca,
        "cais/mmlu": mmlu,
        "m-a-p/CodeFeedback-Filtered-Instruction": code_feedback,
        "HuggingFaceH4/MATH-500": math500,
        "openai/openai_humaneval": humaneval,
        "zwhe99/commonsense_170k": commonsense170k,
        "allenai/ai2_arc": arc,
    }
    makers |= {id: lambda made=made: original(*made) for id, made in ORIGINALS.items()}
    commits = pinned()
    for id, make in makers.items():
        hub.repository(id, "datasets").add(make(), commit=commits.get(id))
    return hub
