"""The sweeps of the papers' artifacts: complete, composing, true to the printed numbers, and their
smoke variants end to end."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraexp import cli, config
from loraexp.config import ConfigError
from loraexp.scoring import protocols
from loraexp.sweep import computed, reading
from loraexp.sweep.cells import Cell, expand, lookup
from loraexp.sweep.schema import Sweep
from tests.support.glue import write_glue
from tests.support.helpers import REPOSITORY
from tests.support.thin import loaded, thin, variants

ARTIFACTS = {
    "cg_lora": "table1 table2 table3 fig2 fig3 fig4",
    "lora_sb": "table1 table2 table3 table4 table5 table6 fig2 fig3 text_d2",
    "lora_da": "table1 table2 table3 table5 table6 fig2 fig3 fig4",
    "lora_one": (
        "table2 table3 table4 table8 text_lora_pro_memory fig1b fig1c fig2 fig3 fig4 fig6 fig7 fig8"
    ),
    "lora_one_slides": (
        "table_one_step table_time_cost table_llama2 table_glue ablation fig1 fig2 phase_portrait"
    ),
}
EXPECTED = [
    f"{paper}_{artifact}"
    for paper, artifacts in ARTIFACTS.items()
    for artifact in artifacts.split()
]
NAMES = reading.names()


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, files: Path) -> Path:
    """The folder that smoke variants read when their sweep names one by $LORAEXP_DATA."""
    monkeypatch.setenv("LORAEXP_DATA", str(files))
    return files


# ---- all of them


def test_every_artifact_has_its_sweep() -> None:
    assert len(EXPECTED) == 44
    assert not [name for name in EXPECTED if name not in NAMES]
    assert loaded("lora_one_table8").plots  # the 45th: figure 5 of LoRA-One shows the same runs


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_says_what_it_is(name: str) -> None:
    found = loaded(name)
    assert len(reading.about(name)) > 20
    assert name == f"{found.paper}_{found.artifact}".replace(".", "")
    assert found.hours is not None and found.hours.hardware and found.hours.how
    assert found.compute is not None or found.deviations
    assert found.plots or found.kind == "table"
    assert "smoke" in found.variants


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_variant_reads_what_pip_installs_or_says_what_it_reads(name: str) -> None:
    found = loaded(name, "smoke")
    said = {"$LORAEXP_DATA", "task.data_dir=DIR"}
    asked = set()
    for cell in expand(thin(found)) if found.compute is None else ():
        task = cell.plain["task"]
        if not task["source"].startswith("package:"):
            asked.add("task.data_dir=DIR" if task["data_dir"] is None else "$LORAEXP_DATA")
    assert {word for word in said if word in str(found.means)} == asked
    if found.compute is not None and "data_dir" in found.compute:
        assert found.compute["data_dir"] is None  # what is packaged, unless a folder is named


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_of_a_variant_is_of_columns_that_it_has(name: str) -> None:
    for variant in variants(name):
        found = loaded(name, variant)
        for plot in found.plots:
            for value in {plot.x, plot.y} - {None} if plot.kind == "scatter" else ():
                assert value in found.columns or "/" in str(value), (variant, plot.name)


def test_a_variant_draws_what_it_keeps_and_what_it_adds() -> None:
    whole, language = (
        {plot.name: plot for plot in loaded("equal_conditions", variant).plots}
        for variant in (None, "language")
    )
    assert whole["pareto"].x == "sst2_time" and language["pareto"].x == "gsm8k_init"
    assert language["rates"].columns == ["gsm8k"] and len(language) == len(whole)
    # of two panels one is left
    assert {plot.name: plot.columns for plot in loaded("equal_conditions", "smoke").plots} == {
        "pareto": None,
        "rates": ["sst2"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_every_variant_composes(name: str) -> None:
    for variant in variants(name):
        found = loaded(name, variant)
        if found.compute is not None:
            assert callable(computed.check(found))
            continue
        cells = expand(thin(found))
        assert {(cell.row, cell.column) for cell in cells} == set(found.trained())
        for cell in cells:
            check_value(found, cell)
            for key in found.stated(cell.row, cell.column):
                assert lookup(cell.plain, key, cells) is not cells, (
                    f"{name}: settings: {key} is no key of {cell.row}/{cell.column}"
                )


COST = {
    "init_seconds",
    "init_peak_bytes",
    "init_forward_sweeps",
    "train_seconds",
    "init_processor_seconds",
    "train_processor_seconds",
    "train_peak_bytes",
    "eval_seconds",
    "tokens_per_second",
    "samples_per_second",
    "adapter_bytes",
}


def check_value(found: Sweep, cell: Cell) -> None:
    """What a place reads is something that its run records."""
    column = found.columns[cell.column]
    value = found.rows[cell.row].value or column.value
    assert value is not None
    if "cost/init_" in value:  # what is read from the cache is not what initialising takes
        assert cell.plain["init"]["cache"] is False, f"{found.path.name}: init.cache"
    for path in value.split(" + "):
        check_path(
            path,
            f"{found.path.name}: {cell.row}/{cell.column}: {path}",
            column.epoch,
            cell.plain["task"],
        )


def check_path(path: str, where: str, epoch: float | None, task: dict[str, Any]) -> None:
    if path.startswith("steps_to/"):  # steps_to/<what is logged>/<level>
        path, _, level = path.removeprefix("steps_to/").rpartition("/")
        assert 0 < float(level) < 1, where
    split, _, metric = path.rpartition("/")
    if not split:
        assert metric in ("loss", "grad_norm", "lr") and epoch is not None, where
    elif split in ("cost", "parameters"):
        assert metric in (COST if split == "cost" else {"trainable", "total", "adapter"}), where
    elif split == "best":
        assert metric in ("value", "step"), where
    else:
        assert (split, metric) in reported(task), where


def reported(task: dict[str, Any]) -> set[tuple[str, str]]:
    """Every (split, metric) that a task's configuration says will be in the record."""
    if "benchmarks" not in task:
        splits = {*task.get("dev_splits", ["dev"]), "held_out"}
        # beside what a task with classes names
        likelihood = ["log_likelihood"] * (task.get("problem") != "regression")
        return {(split, metric) for split in splits for metric in [*task["metrics"], *likelihood]}
    asked = task["protocol"] if isinstance(task["protocol"], list) else [task["protocol"]]
    pairs = {
        (f"{benchmark}/{name}", metric)
        for benchmark in task["benchmarks"]
        for name in asked
        if name in protocols.names(benchmark)
        for metric in ("accuracy", protocols.find(benchmark, name).metric)
    }
    return (
        pairs
        | {(f"average/{name}", "accuracy") for name in asked}
        | {("held_out", "log_likelihood")}
    )


def test_points_are_what_the_command_line_composes() -> None:
    for name, variant in (
        ("cg_lora_table1", "reduced"),
        ("lora_sb_table4", None),
        ("lora_sb_fig2", "smoke"),
    ):
        for cell in expand(
            thin(reading.load(name, variant, ["output_root=/somewhere", "task.limit_eval=7"]))
        )[::7]:
            _, plain = config.check(config.compose(cell.overrides))
            assert plain == cell.plain and config.run_id(plain) == cell.run_id


SHARED = [
    ("cg_lora_fig2", None, "cg_lora_table1"),
    ("cg_lora_fig3", None, "cg_lora_table1"),
    ("cg_lora_fig2", "reduced", "cg_lora_table1"),
    ("cg_lora_fig3", "reduced", "cg_lora_table1"),
    ("cg_lora_fig4", None, "cg_lora_table2"),
    ("lora_sb_fig2", None, "lora_sb_table1"),
    ("lora_sb_fig3", None, "lora_sb_text_d2"),
]


@pytest.mark.parametrize(("figure", "variant", "table"), SHARED)
def test_a_figure_is_drawn_from_the_runs_of_its_table(
    figure: str, variant: str | None, table: str
) -> None:
    of_table = {cell.run_id for cell in expand(thin(loaded(table, variant)))}
    assert {cell.run_id for cell in expand(thin(loaded(figure, variant)))} <= of_table


def test_ablations_share_the_row_of_the_table() -> None:
    row = {
        cell.run_id
        for cell in expand(thin(loaded("lora_sb_table1")))
        if cell.row == "mistral_lora_sb_96"
    }
    for name, same in (
        ("lora_sb_table4", "lora_sb"),
        ("lora_sb_text_d2", "lora_sb"),
        ("lora_sb_table5", "mistral"),
    ):
        assert {cell.run_id for cell in expand(thin(loaded(name))) if cell.row == same} == row


# ---- the printed numbers

UNITS = {
    "K": 1e3,
    "M": 1e6,
    "million": 1e6,
    "B": 1e9,
    "G": 1e9,
    "T": 1e12,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "s": 1.0,
    "seconds": 1.0,
    "minutes": 60.0,
    "hours": 3600.0,
}


def printed_in_paper(cell: dict[str, Any] | None, unit: str) -> tuple[float, float | None] | None:
    """A cell of the paper as (mean, std) in a sweep's unit; None where the paper has no number."""
    cell = cell or {}
    value = cell.get("seconds", cell.get("mean"))
    if value is None:
        return None
    scale = UNITS["s"] if "seconds" in cell else UNITS.get(cell.get("unit", ""), 1.0)
    own = 1.0 if scale == 1.0 and "seconds" not in cell else UNITS.get(unit, 1.0)
    return value * scale / own, cell.get("std")


@pytest.mark.parametrize("name", [name for name in NAMES if loaded(name).published])
def test_published_numbers_are_those_of_the_paper(name: str) -> None:
    """Row by row in the paper's order and column by column: every number is there, and no other."""
    found = loaded(name)
    path = REPOSITORY.parent / "shared" / "papers" / f"{found.paper}.yaml"
    if not path.exists():
        pytest.skip(f"../shared/papers/{path.name} not present")
    artifact = next(a for a in transcribed(path)["artifacts"] if a["id"] == found.artifact)
    columns = list(dict.fromkeys(column for row in artifact["rows"] for column in row["values"]))
    paper = [
        {c: printed_in_paper(row["values"].get(c), found.report_of(c).unit) for c in columns}
        for row in artifact["rows"]
    ]
    paper = [row for row in paper if any(value is not None for value in row.values())]
    ours = [
        {c: ours_as_pair(values.get(c)) for c in columns} for values in found.published.values()
    ]
    assert {column for values in found.published.values() for column in values} <= set(columns)
    assert len(ours) == len(paper)
    for label, own, theirs in zip(found.published, ours, paper, strict=True):
        for column in columns:
            assert own[column] == pytest.approx(theirs[column]), f"{label}/{column}"


@cache
def transcribed(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def ours_as_pair(value: Any) -> tuple[float, float | None] | None:
    return (
        None
        if value is None
        else (value[0], value[1])
        if isinstance(value, list)
        else (value, None)
    )


# ---- smoke variants, from sweep to table and picture


def write_text_data(root: Path) -> None:
    """A few rows of every text data set, in the original layouts."""

    def write(path: str, rows: list[dict[str, Any]]) -> None:
        lines = (
            "".join(json.dumps(row) + "\n" for row in rows)
            if path.endswith("l")
            else json.dumps(rows)
        )
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(lines)

    count = range(48)
    answers = [f"Ann has {i} and gets {i}.\n#### {2 * i}" for i in count]
    asked = [f"Ann has {i} apples and gets as many. How many has she now?" for i in count]
    write(
        "gsm8k/train.jsonl",
        [{"question": f"Once {q}", "answer": a} for q, a in zip(asked, answers, strict=True)],
    )
    write(
        "gsm8k/test.jsonl",
        [{"question": q, "answer": a} for q, a in zip(asked[:8], answers, strict=False)],
    )
    problems = [
        {
            "problem": f"What is {i} + 1?",
            "solution": f"It is $\\boxed{{{i + 1}}}$.",
            "answer": f"{i + 1}",
        }
        for i in range(8)
    ]
    write("math/math500_test.jsonl", problems)
    told = [
        {"type": "GSM_Rephrased", "query": q, "response": f"{a}\nThe answer is: {a.split()[-1]}"}
        for q, a in zip(asked, answers, strict=True)
    ]
    write("metamathqa/MetaMathQA-395K.json", told)
    write(
        "alpaca/alpaca_data_cleaned.json",
        [
            {
                "instruction": f"Count to {i}.",
                "input": "",
                "output": " ".join(map(str, range(1, 2 + i % 9))),
            }
            for i in count
        ],
    )
    code = "```python\ndef f():\n    return {i}\n```"
    write(
        "code_feedback/CodeFeedback.jsonl",
        [{"query": f"Return {i}.", "answer": code.replace("{i}", str(i))} for i in count],
    )
    task = {"prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n"}
    write(
        "humaneval/HumanEval.jsonl",
        [
            {"task_id": f"T/{i}", "test": "def check(f):\n    assert f() == 1\n", **task}
            for i in range(4)
        ],
    )
    whole = []
    for name, words in COMMONSENSE.items():
        rows = [
            {
                "instruction": f"{name}: is {i} right? Answer format: {'/'.join(words)}",
                "input": "",
                "output": f"the correct answer is {words[i % len(words)]}",
                "answer": words[i % len(words)],
            }
            for i in range(16)
        ]
        whole += rows[:12]
        write(f"commonsense/{name}/train.json", rows[:12])
        write(f"commonsense/{name}/test.json", rows[12:])
    write("commonsense/commonsense_170k.json", whole)
    for split, number in (("dev", 5), ("test", 4)):
        (root / "mmlu" / "data" / split).mkdir(parents=True)
        with (root / "mmlu" / "data" / split / f"anatomy_{split}.csv").open(
            "w", newline=""
        ) as file:
            csv.writer(file).writerows(
                [f"Which is {i}?", "a", "b", "c", "d", "ABCD"[i % 4]] for i in range(number)
            )


COMMONSENSE = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "social_i_qa": ["answer1", "answer2", "answer3"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "ARC-Easy": ["answer1", "answer2", "answer3", "answer4"],
    "ARC-Challenge": ["answer1", "answer2", "answer3", "answer4"],
    "openbookqa": ["answer1", "answer2", "answer3", "answer4"],
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's original files in `glue`, and in the folder itself; the text data beside them."""
    root = tmp_path_factory.mktemp("data")
    write_glue(root / "glue", train=60, dev=20)
    for folder in (root / "glue").iterdir():
        (root / folder.name).symlink_to(folder)
    write_text_data(root)
    return root


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder: sweeps that share runs share them here too."""
    return tmp_path_factory.mktemp("outputs")


def given(name: str, files: Path, out: Path) -> list[str]:
    """What a user adds: where results go, and the data where the sweep's own tasks do not say."""
    found = loaded(name, "smoke")
    words = [f"output_root={out}"]
    if found.compute is None:
        tasks = [cell.plain["task"] for cell in expand(thin(found))]
        words += ["device=cpu", "wandb.mode=disabled"]
        if all(
            task["data_dir"] is None and not task["source"].startswith("package:") for task in tasks
        ):
            words.append(f"task.data_dir={files}")
    return words


@pytest.mark.parametrize("name", NAMES)
def test_smoke_runs_from_sweep_to_table_and_picture(
    name: str, files: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if any("cost/init_" in str(column.value) for column in loaded(name).columns.values()):
        out = out / "timed"  # not a run of another sweep that read its statistics from the cache
    words = [name, "--variant", "smoke", *given(name, files, out)]
    assert cli.main(["sweep", *words]) == 0, capsys.readouterr().err
    capsys.readouterr()
    found = reading.load(name, "smoke", words[3:])
    if found.rows:
        assert cli.main(["table", *words, "--format", "json"]) == 0
        check_table(found, json.loads(capsys.readouterr().out))
    if found.plots:
        pictures = out / f"figures-{name}"
        assert cli.main(["plot", *words, "--format", "png", "--to", str(pictures)]) == 0, (
            capsys.readouterr().err
        )
        assert {path.stem for path in pictures.glob("*.png")} == {
            f"{found.key}-{plot.name}" for plot in found.plots
        }
        assert all(path.stat().st_size > 2000 for path in pictures.glob("*.png"))


def check_table(found: Sweep, table: dict[str, Any]) -> None:
    """Every place that is not skipped has a number, and nothing is to be said but that tiny models
    do equally badly."""
    from loraexp.results import gather

    assert table["name"] == found.name
    gathered = gather.gather(found)
    # tiny models do equally badly at every rate
    said = ("equally good", "at the edge of its widened grid")
    assert not [
        problem for problem in gathered.problems if not any(word in problem for word in said)
    ]
    for (row, column), place in gathered.places.items():
        assert (place.mean is None) == (found.skipped(row, column) is not None), (
            f"{row}/{column}: {place.reason}"
        )


# ---- mistakes in a sweep file

SOUND: dict[str, Any] = {
    "title": "t",
    "paper": "p",
    "artifact": "a",
    "kind": "table",
    "grid": {"seed": [0]},
    "base": ["model=tiny-bert", "task=tweets"],
    "rows": {"lora": {"label": "LoRA", "overrides": ["method=lora"]}},
    "columns": {"dev": {"label": "Dev", "value": "dev/accuracy"}},
}
MISTAKES = {
    "rows.lora.overides: there is no such key; nearest: overrides": {
        "rows": {"lora": {"label": "LoRA", "overides": []}}
    },
    "tittle: there is no such key; nearest: title": {"tittle": "x"},
    "title: missing; expected a word": {"title": None},
    "published.lora: dve: there is no such column; nearest: dev": {
        "published": {"lora": {"dve": 1.0}}
    },
    "published: lorra: there is no such row; nearest: lora": {"published": {"lorra": {"dev": 1.0}}},
    "row lora, column dev: init=lorra: there is no conf/init/lorra.yaml; nearest: lora": {
        "rows": {"lora": {"label": "LoRA", "overrides": ["init=lorra"]}}
    },
    "row lora, column dev: init.gama: there is no such key; nearest: init.gamma": {
        "grid": {"init.gama": [1]}
    },
    "row lora, column dev: lr=-1.0: expected a number above 0": {"grid": {"lr": [-1.0]}},
    "row lora, column dev: rank=1,2: expected one value;"
    " several are the sweep's grid, or a list in brackets": {"base": ["rank=1,2"]},
    "cells[0].rows: full: there is no such row; choices: lora": {
        "cells": [{"rows": ["full"], "skip": "no"}]
    },
    "columns.avg.mean_of: dve: there is no such column; nearest: dev": {
        "columns": SOUND["columns"] | {"avg": {"label": "Avg", "mean_of": ["dve"]}}
    },
    "columns.dev.value: missing; expected a path into the record, such as dev/accuracy": {
        "columns": {"dev": {"label": "Dev"}}
    },
    "plots[0].kind=pie: expected curve or against or bar or scatter or histogram or series"
    " or surface": {"plots": [{"name": "x", "kind": "pie"}]},
    "claims[0]: expected either above or below": {"claims": [{"text": "x", "value": "lora/dev"}]},
    'deviations[0]={"GLUE": "dev reports"}: expected a text; one with a colon, a comma or nothing'
    " in it needs quotes": {"deviations": [{"GLUE": "dev reports"}]},
    'rows.lora.overrides[0]={"init": "lora"}: expected a text; one with a colon, a comma or nothing'
    " in it needs quotes": {"rows": {"lora": {"label": "LoRA", "overrides": [{"init": "lora"}]}}},
    "base=model=tiny-bert: expected a list": {"base": "model=tiny-bert"},
    "rows, columns: missing; a sweep without `compute` has both": {"rows": {}},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line_naming_file_and_place(
    tmp_path: Path, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    assert len(expand(reading.load(str(path)))) == 1
    path.write_text(yaml.safe_dump(SOUND | MISTAKES[message]))
    with pytest.raises(ConfigError) as caught:
        expand(reading.load(str(path)))
    assert str(caught.value) == f"mine.yaml: {message}"
    assert cli.main(["sweep", str(path), f"output_root={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"loraexp: mine.yaml: {message}\n"


def test_an_unknown_name_or_variant_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "cg_lora_tabel1"]) == 2
    assert (
        "cg_lora_tabel1: there is no sweep of that name and no such file; nearest: cg_lora_table1"
        in capsys.readouterr().err
    )
    assert cli.main(["table", "cg_lora_table1", "--variant", "smok"]) == 2
    assert (
        "cg_lora_table1.yaml: variant smok: there is no such variant; nearest: smoke"
        in capsys.readouterr().err
    )


def test_the_example_of_the_readme_is_a_sweep(tmp_path: Path) -> None:
    text = (REPOSITORY / "sweeps" / "README.md").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    for variant in (None, "smoke"):
        found = reading.load(str(path), variant)
        assert {(cell.row, cell.column) for cell in expand(thin(found))} == {
            (r, c) for r in ("lora", "cg_lora") for c in ("cola", "time")
        }
        assert found.skipped("quoted", "cola") == "quoted from their paper"
