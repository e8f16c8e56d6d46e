"""The model card of an exported adapter: what it is, what it reached, how it was made, how it is
loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping

from loraexp import config
from loraexp.config import ConfigError
from loraexp.finished.opened import FinishedRun

ELSEWHERE = (
    "output_root",
    "cache_root",
    "wandb",
    "force",
    "device",
    "facts",
    "_target_",
    "_partial_",
    "name",
)
CLASSES = {"encoder": "SequenceClassification", "seq2seq": "Seq2SeqLM", "causal": "CausalLM"}


CARD = """---
base_model: {base}
library_name: {library}
tags: [{tags}]
---

# {title}

Base: `{base}`{at}. Run `{run}`, {ended}, {code}.

## Result

| split | metric | value |
|---|---|---|
{results}
## Made by

```
{command}
```

## Loading

```python
{loading}
```
{warning}"""
WARNING = """
Do not merge it with `merge_and_unload`: {untied} and the embedding are one weight in this base, \
and both would change. The merged model is made by `loraexp export RUN --to DIR --merged`.
"""


def card(run: FinishedRun, base: str, revision: str | None, *, adapter: bool) -> str:
    """Markdown, with the front matter that the hub reads."""
    record, settings = run.record, run.settings
    names = [settings.task["name"], settings.model.name, settings.init["name"]]
    environment = record["environment"]
    commit = environment.get("commit")
    results = [
        f"| {split} | {name} | {value:.4f} |\n"
        for split, metrics in record["metrics"].items()
        for name, value in metrics.items()
        if value is not None
    ]
    untied = (record.get("model") or {}).get("untied") if adapter else None
    return CARD.format(
        base=base,
        library="peft" if adapter else "transformers",
        tags="lora, loraexp" if adapter else "loraexp",
        title=" · ".join(map(str, names)),
        at=f" at `{revision}`" if revision else "",
        run=record["run_id"],
        ended=record["ended"],
        code=f"commit {commit}" if commit else f"loraexp {environment['versions']['loraexp']}",
        results="".join(results),
        command=command(run),
        loading="\n".join(loading(run) if adapter else whole(run)),
        warning=WARNING.format(untied=", ".join(untied)) if untied else "",
    )


def loading(run: FinishedRun) -> list[str]:
    """The lines of Python that load the adapter, with the number and the names of its labels."""
    name = f"AutoPeftModelFor{CLASSES[run.settings.model.kind]}"
    imports = [f"from peft import {name}", "from transformers import AutoTokenizer", ""]
    labels = run.labels()
    if not labels:
        return [*imports, *opening(name)]
    read = ['labels = json.loads(Path(DIR, "labels.json").read_text())']
    if "id2label" in labels:
        read.append(
            'labels["id2label"] = {int(number): name for number, name in'
            ' labels["id2label"].items()}'
        )
    return ["import json", "from pathlib import Path", "", *imports, *read, *opening(name, True)]


def whole(run: FinishedRun) -> list[str]:
    """The lines of Python that load a whole checkpoint."""
    name = f"AutoModelFor{CLASSES[run.settings.model.kind]}"
    return [f"from transformers import {name}, AutoTokenizer", "", *opening(name)]


def opening(name: str, labelled: bool = False) -> list[str]:
    return [
        f"model = {name}.from_pretrained(DIR{', **labels' * labelled})",
        "tokenizer = AutoTokenizer.from_pretrained(DIR)",
    ]


def command(run: FinishedRun) -> str:
    """What to type to make it again: the groups, and every key that differs from what they compose
    to."""
    plain = run.record["config"]
    groups = [f"{group}={plain[group]['name']}" for group in ("task", "model", "init", "optimizer")]
    try:
        composed = config.resolved(config.compose(groups))
    except ConfigError:  # files of one's own that are not here
        composed = {}
    known = flat(composed)
    more = [
        f"{key}={word(value)}"
        for key, value in flat(plain).items()
        if key not in known or known[key] != value
    ]
    return " ".join(["loraexp", *groups, *(more if composed else [])])


def flat(node: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted keys and values, without those that say only where or how."""
    found: dict[str, object] = {}
    for key, value in node.items():
        if key in ELSEWHERE or key in ("hydra", "method", "experiment"):
            continue
        if isinstance(value, Mapping) and not (prefix == "model." and key == "config"):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def word(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, str):
        return (
            value
            if value.replace("_", "").replace("-", "").replace("/", "").replace(".", "").isalnum()
            else json.dumps(value)
        )
    return f"'{json.dumps(value)}'" if isinstance(value, (list, dict)) else json.dumps(value)
