"""What a sweep's `settings` call stated stands in the paper: the transcriptions have null where a
document says nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraexp import config
from tests.support.helpers import REPOSITORY

PAPERS = REPOSITORY.parent / "shared" / "papers"
NAMES = sorted(path.stem for path in config.folder("sweeps").glob("*.yaml"))
# a configuration key → where a transcription keeps what is stated of it
FIELDS: dict[str, tuple[str, ...]] = {
    "model": ("model",),
    "task": ("train_data",),
    "task.protocol": ("eval_procedure", "train_data"),
    "task.max_length": ("max_length",),
    "model.targets": ("targets",),
    "rank": ("rank",),
    "alpha": ("alpha", "scaling"),
    "lr": ("lr_chosen", "lr_grid"),
    "precision": ("precision",),
    "optimizer": ("optimizer", "methods"),
    "adapter.scaling": ("scaling",),
    "adapter.dropout": ("dropout",),
    "init.flavour": ("init_hyperparameters",),
    "init.gamma": ("scale_parameters",),
    "init.scale": ("scale_parameters",),
    "init.samples": ("init_samples",),
    "init.rows": ("init_samples",),
    "init.batch_size": ("init_hyperparameters",),
    "train.epochs": ("epochs",),
    "train.batch_size": ("batch_size",),
    "train.eval_batch_size": ("other",),
    "train.gradient_accumulation": ("grad_accum_steps",),
    "train.scheduler": ("scheduler",),
    "train.warmup_ratio": ("warmup_ratio",),
    "train.weight_decay": ("weight_decay",),
    "train.max_grad_norm": ("max_grad_norm",),
    "train.select": ("eval_procedure",),
}
# A transcription also lists an experiment for an artifact whose own words name less, or refers to
# another one in its notes.
OWN_WORDS = {
    "lora_one_fig1b": {"model", "task"},  # the caption, line 39
    "lora_one_text_lora_pro_memory": {"rank", "optimizer"},  # line 324
}
REFERS = {("lora_one", "fig6"): "nlu_t5"}  # "all else", line 574


@cache
def transcribed(paper: str) -> Any:
    path = PAPERS / f"{paper}.yaml"
    if not path.exists():
        pytest.skip(f"../shared/papers/{path.name} not present")
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def stated_keys(content: dict[str, Any]) -> set[str]:
    """Every key that a sweep calls stated: of the whole, of a row, a column or a cell."""
    parts = [
        content,
        *(content.get("rows") or {}).values(),
        *(content.get("columns") or {}).values(),
    ]
    parts += content.get("cells") or []
    return {key for part in parts for key in (part or {}).get("settings") or {}}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_sweep_calls_stated_is_in_the_paper(name: str) -> None:
    content = yaml.safe_load(Path(config.folder("sweeps") / f"{name}.yaml").read_text())
    keys = stated_keys(content)
    if not keys:
        return
    if name in OWN_WORDS:
        assert keys <= OWN_WORDS[name]
        return
    paper, artifact = content["paper"], content["artifact"]
    of_it = [
        experiment
        for experiment in transcribed(paper)["settings"]
        if artifact in (experiment["applies_to"] or [])
        or experiment["experiment"] == REFERS.get((paper, artifact))
    ]
    for key in sorted(keys):
        assert key in FIELDS, f"{key}: say in FIELDS where a transcription keeps it"
        found = [experiment.get(field) for experiment in of_it for field in FIELDS[key]]
        assert any(value is not None for value in found), (
            f"{key} is called stated, and {paper}.yaml has nothing of it for {artifact}"
        )
