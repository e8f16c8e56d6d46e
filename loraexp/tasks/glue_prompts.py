"""How the papers put GLUE's rows to a model of text, and compare its classes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RESULT = "\nresult: "
# LoRA-GA and LoRA-One: instruction + text(s) + "\nresult: ". STS-B is in neither paper; its line is
# T5's own task name.
LORA_GA = {
    "cola": "classify the grammaticality of the text: {0}",
    "sst2": "classify the sentiment of the text: {0}",
    "mrpc": "classify the semantic similarity of the text: {0}\n{1}",
    "qqp": "classify the semantic similarity of the text: {0}\n{1}",
    "mnli": "classify the semantic similarity of the text: {0}\n{1}",
    "qnli": "classify the semantic similarity of the question and the sentence: {0}\n{1}",
    "rte": "classify the semantic similarity of the text: {0}\n{1}",
    "stsb": "rate the semantic similarity of the text: {0}\n{1}",
}
# CG-LoRA prints CoLA's alone ("classify the grammaticality of {sentence}"); the others follow its
# form.
CG_LORA = {
    "cola": "classify the grammaticality of {0}",
    "sst2": "classify the sentiment of {0}",
    "mrpc": "classify the semantic similarity of {0}\n{1}",
    "qqp": "classify the semantic similarity of {0}\n{1}",
    "mnli": "classify the entailment of {0}\n{1}",
    "qnli": "classify the entailment of {0}\n{1}",
    "rte": "classify the entailment of {0}\n{1}",
    "stsb": "rate the semantic similarity of {0}\n{1}",
}
Scoring = Literal["class_probability", "first_token", "exact"]


@dataclass(frozen=True)
class Protocol:
    """How a row is put to the model, and how its classes are compared."""

    prompts: Mapping[str, str]
    ending: str
    scoring: Scoring


# LoRA-GA (Outsider565/LoRA-GA, reproduce/utils.py at 89af7de) and LoRA-One (YuanheZ/LoRA-One,
# utils.py at 01bba05) have both in `compute_metrics`: exact match "should be the default evaluation
# metric for most tasks", and the first token among the labels' is "use it in cola and mrpc, because
# it's too hard for vanilla lora".
RESTRICTED = ("cola", "mrpc")
PROTOCOLS = {
    "cg_lora": Protocol(CG_LORA, "", "class_probability"),
    "lora_ga": Protocol(LORA_GA, RESULT, "exact"),  # on `RESTRICTED`: first_token
    "lora_one": Protocol(LORA_GA, RESULT, "exact"),
    "exact": Protocol(LORA_GA, RESULT, "exact"),
    "restricted": Protocol(LORA_GA, RESULT, "first_token"),
}


def scoring_of(protocol: str, benchmark: str) -> Scoring:
    """How a paper scores a benchmark."""
    by_paper = protocol in ("lora_ga", "lora_one") and benchmark in RESTRICTED
    return "first_token" if by_paper else PROTOCOLS[protocol].scoring


# where a head's classes have other names
WORDS = {"mrpc": ["different", "equivalent"], "qqp": ["different", "duplicate"]}
# the data's words for the papers'
SAME = {"not_equivalent": "different", "not_duplicate": "different"}
# STS-B's, as T5 writes them: to the nearest 0.2 (Raffel et al. 2020)
SCORES = [f"{step / 5:.1f}" for step in range(26)]
