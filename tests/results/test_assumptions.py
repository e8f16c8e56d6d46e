"""No sweep is silent about a setting: what its paper does not state and can change a number stands
under its table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraexp.records.reading import flatten
from loraexp.results import assumptions
from loraexp.results.gather import Results, gather
from loraexp.results.places import Place
from loraexp.sweep import reading
from loraexp.sweep.cells import expand
from loraexp.sweep.schema import Sweep
from tests.support.helpers import REPOSITORY
from tests.support.measured import expanded_once, fill, load
from tests.support.thin import loaded, thin, variants

__all__ = ["expanded_once"]  # a fixture for every test here
# What cannot change a number of any table: where results go, what is checked or written on the way,
# and how often.
NO_NUMBER = {
    "output_root",
    "cache_root",
    "wandb.mode",
    "wandb.project",
    "wandb.entity",
    "wandb.group",
    "force",
    "device",
    "sweep.pack",
    "evaluate.unsafe_code",
    "init.cache",
    "init.memory_budget",
    "init.show",
    "model.allow_pickle",
    "model.sha256",
    "model.facts",
    "task.data_dir",
    "task.eval_data_dir",
    "task.facts",
    "task.version",
    "train.checkpoint_every",
    "train.keep_checkpoint",
    "train.keep_factors_every",
    "train.log_every",
    "train.report_during",
    "train.eval_batch_size",
    "train.gpus_per_run",
    "train.shard",
}


def unmeasured(found: Sweep) -> Results:
    """The results of a sweep of which nothing has run, one grid point at every place."""
    from loraexp.results.matching import Run

    results = Results(sweep=found, source="")
    for cell in expand(thin(found)):
        place = results.places.setdefault(
            (cell.row, cell.column), Place(row=cell.row, column=cell.column)
        )
        place.runs.append(Run(cell=cell, record=None, folder=None, status="missing"))
    return results


def printed(lines: dict[str, list[str]]) -> str:
    return "\n".join(line for group in lines.values() for line in group)


@pytest.mark.parametrize("name", reading.names())
def test_a_sweep_is_silent_about_no_setting(name: str) -> None:
    for variant in variants(name):
        found = loaded(name, variant)
        if found.compute is not None:
            text = printed(assumptions.assumptions(Results(sweep=found, source="")))
            missing = [
                k
                for k in found.compute
                if k not in ("_target_", "data_dir", "device", *found.settings) and k not in text
            ]
            assert not [
                key
                for key in missing
                if key != "overrides" and f"compute.{key}" not in found.settings
            ]
            continue
        results = unmeasured(found)
        text = printed(assumptions.assumptions(results))
        for where, place in results.places.items():
            for key in flatten(place.runs[0].cell.plain):
                group, _, last = key.partition(".")
                named = last.split(".")[0] in assumptions.BY_NAME.get(group, ()) or last in (
                    "_target_",
                    "_partial_",
                )
                key = key if key in NO_NUMBER else ".".join(key.split(".")[:2])
                stated = key in found.stated(*where) or (
                    last == "name" and group in found.stated(*where)
                )
                word = group if last == "name" else key
                assert (
                    named
                    or stated
                    or key in NO_NUMBER
                    or re.search(rf"(^|[ ;]){re.escape(word)}[=:]", text, re.M)
                ), key


def test_the_settings_that_reviewers_asked_about_are_printed() -> None:
    """Table 1 of CG-LoRA states none of these."""
    text = printed(assumptions.assumptions(unmeasured(loaded("cg_lora_table1"))))
    for said in (
        "train.max_grad_norm=1",
        "train.length_buckets=true",
        "train.warmup_ratio=0.06",
        "train.weight_decay=0",
        "init.mode=eval",
        "init.rows=shuffled",
        "optimizer.beta1=0.9; optimizer.beta2=0.999",
        "task.protocol=held_out",
        "task.max_length=256",
        "precision=fp32",
        "train.select=best",
    ):
        assert said in text, said
    # which it states
    assert (
        "train.epochs" not in text and "init.samples" not in text and "train.scheduler" not in text
    )
    assert re.search(
        r"init\.scale: 128 \(.*\), 16 \(LoRA-One \(SST-2\)\), 64 \(LoRA-One \(MRPC\)\)", text
    )


def test_a_setting_that_places_do_not_share_says_where(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    fill(wanted, lambda cell: (0.7, 0.8))
    lines = assumptions.assumptions(gather(wanted))
    assert "task.limit_train: 64 (First), 65 (Second)" in lines["Data and scoring"]
    assert any(
        re.fullmatch(r"init\.flavour=\w+; .* \(LoRA-GA & co_1\)", line)
        for line in lines["Initialisation"]
    )
    assert "seed=0 | 1 | 2" in printed(lines) and "; lr=" not in printed(lines)  # stated: lr


def test_a_key_of_tomorrow_is_printed(tmp_path: Path) -> None:
    """A setting that is added to the configuration shows without a change here."""
    wanted = load(tmp_path)
    results = gather(wanted)
    for place in results.places.values():
        for run in place.runs:
            run.cell.plain["train"] = run.cell.plain["train"] | {"brand_new": 3}
    assert "train.brand_new=3" in printed(assumptions.assumptions(results))


def test_what_a_name_says_is_printed_where_it_was_changed(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    assert "model.weights_seed" not in printed(assumptions.assumptions(gather(wanted)))
    changed = load(
        tmp_path,
        wanted.path.read_text().replace("task=tweets,", "task=tweets, model.weights_seed=7,"),
    )
    assert "model.weights_seed=7" in printed(assumptions.assumptions(gather(changed)))


def test_a_computed_sweep_prints_its_keywords_and_is_held_to_its_settings(tmp_path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(
        (REPOSITORY / "sweeps" / "lora_one_fig3.yaml").read_text()
    )
    content["settings"] = {"lr": 0.1, "compute.rows": 5}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    found = reading.load(str(path))
    from loraexp.results.provenance import deviations

    text = printed(assumptions.assumptions(Results(sweep=found, source="")))
    assert "steps=1000" in text and "lr=" not in text and "rows=" not in text
    assert deviations(Results(sweep=found, source="")) == ["compute.rows: 4 instead of 5"]
    fig1b = printed(assumptions.assumptions(Results(sweep=loaded("lora_one_fig1b"), source="")))
    assert "train.max_grad_norm=1" in fig1b and "train.batch_size=32" in fig1b
    assert not [key for key in loaded("lora_one_fig1b").settings if f"{key}=" in fig1b.split()]


# ---- sources that a yaml names

CITED = re.compile(r"\b[\w-]+/[\w.-]+@[0-9a-f]{7,40}:[\w./-]+\.\w+")
NAMED = re.compile(r"(?<!_)released (code|evaluation|readers|loader|form|implementation)", re.I)
YAMLS = [
    *sorted((REPOSITORY / "sweeps").glob("*.yaml")),
    *sorted((REPOSITORY / "conf").rglob("*.yaml")),
]


def texts(node: Any) -> list[str]:
    """Every text of a yaml."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [node] if isinstance(node, str) else []


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_released_code_is_cited_by_file_and_commit_or_called_an_assumption(path: Path) -> None:
    text = path.read_text()
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    for said in [*texts(yaml.safe_load(text)), *comments]:
        if NAMED.search(said):
            known = (
                CITED.search(said)
                or "assum" in said
                or (said in comments and CITED.search("\n".join(comments)))
            )
            assert known, f"{path.name}: {said}"
