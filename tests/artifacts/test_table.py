"""`loraexp table`: the four formats of one set of records, the marks, and one-line errors."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from loraexp import cli
from loraexp.artifacts import formats, table
from loraexp.artifacts.claims import judge, measured
from loraexp.results.gather import Results, gather
from loraexp.sweep import reading
from loraexp.sweep.cells import Cell
from loraexp.sweep.schema import Sweep
from tests.support.measured import CONTENT, LR, at, expanded_once, fill, load, put

__all__ = ["expanded_once"]  # a fixture for every test here
SAMPLES = {("plain", "first"): (0.700, 0.710, 0.720), ("gradient", "first"): (0.712, 0.718, 0.735)}


def numbers(cell: Cell) -> tuple[float, float] | None:
    """LoRA-GA is better than LoRA on the first task, within noise; on the second there is LoRA
    alone, with two seeds."""
    lr, seed = cell.point["lr"], cell.point["seed"]
    if cell.column == "second":
        return (
            (0.6 + seed / 100, 0.8 if lr == LR[0] else 0.7)
            if cell.row == "plain" and seed < 2
            else None
        )
    return SAMPLES[cell.row, cell.column][seed], 0.8 if lr == LR[0] else 0.7


def made(folder: Path, content: str = CONTENT) -> tuple[Sweep, list[Cell], table.Table]:
    wanted = load(folder, content)
    cells = fill(wanted, numbers)
    return wanted, cells, table.build(gather(wanted))


def section(text: str, title: str) -> str:
    """A part of the Markdown under the table."""
    found = re.search(rf"\*\*{re.escape(title)}[^\n]*\*\*\n\n(.*?)(?=\n\n\*\*|\Z)", text, re.DOTALL)
    assert found is not None, f"no section {title}"
    return found[1]


def test_markdown(tmp_path: Path) -> None:
    text = formats.markdown(made(tmp_path)[2])
    assert (
        "| LoRA | 71.0 ± 1.0 (3)<br>paper 70.0 ± 0.5, +1.0 | 60.5 ± 0.7 (2)<br>paper 60.0, +0.5 |"
        in text
    )
    assert "| LoRA-GA & co_1 | **72.2 ± 1.2** (3) | — |" in text and "†" not in text
    assert section(text, "No number") == "- 6 missing: LoRA-GA & co_1 (Second)"
    assert "| LoRA | 0.001 | 0.001 | 2 |" in section(text, "lr chosen by best/value")
    assert (
        "warning: rows have not tried equally many values of lr: LoRA 2, LoRA-GA & co_1 0 to 2"
        in text
    )
    # −1.2, −0.8 and −1.5 have mean −1.1667 and s = 0.3512, and t(0.975, 2) = 4.3027
    assert "| LoRA | −1.2 [−2.0, −0.3] [−1.5, −0.8] |" in section(
        text, "Difference to the best row"
    )
    claim = (
        "| LoRA-GA beats LoRA (line 1) | 1.167 | above 0 | not judged: 8 of 24 runs are not there |"
    )
    assert claim in section(text, "Claims of the paper")
    found = section(text, "Deviations from the paper, found")
    assert (
        found
        == "- model: tiny-bert instead of roberta-base (all)\n- train.epochs: 1 instead of 3 (all)"
    )
    assert section(text, "Deviations from the paper, declared") == "- a declared one"
    assert (
        "rows: train 64, dev 1,000 (all)" in section(text, "Protocol")
        and "best/value: held_out/accuracy (all)" in text
    )
    runs = section(text, "Runs")
    assert (
        "16 of 24 runs finished, 8 missing" in runs
        and "commit: 0123456789\n" in runs
        and "A CPU, 1 of 2 cores" in runs
    )
    assert "time: 16.0 h" in runs  # 16 runs of 3,600 s


def test_within_noise_few_seeds_and_ties(tmp_path: Path) -> None:
    """A difference whose t interval includes 0 has a dagger; two rows that print the same are both
    best; two seeds are said."""
    wanted, cells, _ = made(tmp_path)
    for seed, accuracy in ((0, 0.712), (1, 0.718), (2, 0.701)):
        put(at(cells, "gradient", "first", LR[0], seed), accuracy, 0.8)
    for seed in (0, 1):
        put(at(cells, "gradient", "second", LR[0], seed), 0.60004 + seed / 100, 0.8)
    text = formats.markdown(table.build(gather(wanted)))
    assert (
        "| LoRA | **71.0 ± 1.0** (3) †<br>" in text
        and "| LoRA-GA & co_1 | **71.0 ± 0.9** (3) | **60.5 ± 0.7** (2) |" in text
    )
    assert (
        "†: within noise of the best" in text
        and "| above 0 | not judged: 6 of 24 runs" in section(text, "Claims of the paper")
    )
    assert "fewer than 3 common seeds (2 common): Second" in text
    entry = table.build(gather(wanted)).entries["plain", "second"]
    # −0.004 for both seeds: no spread, so the interval is a point
    assert entry.best and entry.noise is False


def test_goals_groups_units_and_skipped_rows(tmp_path: Path) -> None:
    """The best is the smallest where that is the goal, within its group; a quoted row has its
    reason; units stand in the header."""
    content = CONTENT.replace("init=lora_ga]", "init=lora_ga], group: a group")
    content = content.replace(
        "columns:", "  quoted: {label: Quoted, skip: from another paper, group: a group}\ncolumns:"
    )
    content = content.replace(
        "  second: {label: Second,",
        "  second: {label: Second, unit: minutes, digits: 0, goal: min,",
    ).replace("train=65], value: dev/accuracy", "train=65], value: cost/train_seconds")
    content = content.replace(
        "plain: {first: [70.0, 0.5], second: 60.0}", "quoted: {first: 75.5, second: OOM}"
    )
    wanted = load(tmp_path, content)
    fill(wanted, lambda cell: (0.7, 0.8))
    made = table.build(gather(wanted))
    text = formats.markdown(made)
    assert "|  | First (%) | Second (min) |" in text and "| *a group* |  |  |" in text
    assert (
        "| Quoted | —<br>paper 75.5 | —<br>paper OOM |" in text
        and "not run: from another paper: Quoted" in text
    )
    assert "| LoRA | 70.0 ± 0.0 (3) | 60 ± 0 (3) |" in text  # alone in its group, and so no best
    assert not any(one.best for one in made.entries.values())


def test_latex_is_balanced(tmp_path: Path) -> None:
    """Environments and braces close, every line of a tabular has the columns of its head, and
    nothing special is left bare."""
    text = formats.latex(made(tmp_path)[2])
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        stack.append(name) if kind == "begin" else None
        assert kind == "begin" or stack.pop() == name
    assert stack == []
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\&%$#_{}]", "", code)
    assert (
        bare.count("{") == bare.count("}")
        and "%" not in bare
        and "_" not in re.sub(r"\$[^$]*\$", "", bare)
    )
    code = code.replace(r">{\raggedright\arraybackslash}X", "X").replace(
        r"\begin{tabularx}{\linewidth}", r"\begin{tabular}"
    )
    tables = re.findall(
        r"\\begin\{tabular\}\{((?:[lrX]|p\{[^}]*\})+)\}(.*?)\\end\{tabularx?\}", code, re.DOTALL
    )
    assert len(tables) == 4
    for columns, body in tables:
        width = len(re.sub(r"p\{[^}]*\}", "p", columns))
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) >= 2 and all(
            len(re.findall(r"(?<!\\)&", line)) == width - 1 for line in lines
        )
    assert r"LoRA-GA \& co\_1 & \textbf{72.2 $\pm$ 1.2} (3) & --- \\" in text and all(
        ord(letter) < 128 for letter in text
    )


def test_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    whole = made(tmp_path)[2]
    lines = list(csv.DictReader(io.StringIO(formats.comma_separated(whole))))
    content = json.loads(formats.as_json(whole))
    assert [(line["row"], line["column"]) for line in lines] == [
        (c["row"], c["column"]) for c in content["cells"]
    ]
    first = content["cells"][0]
    assert float(lines[0]["mean"]) == first["mean"] == pytest.approx(71.0) and first[
        "difference"
    ] == pytest.approx(1.0)
    assert first["values_by_seed"] == {"0": 0.70, "1": 0.71, "2": 0.72} and len(first["runs"]) == 6
    assert lines[-1]["reason"] == "6 missing" and lines[-1]["mean"] == ""
    assert content["claims"][0]["verdict"] == "not judged: 8 of 24 runs are not there"
    assert content["deviations"]["declared"] == ["a declared one"]


def test_computed_values_are_shown(tmp_path: Path) -> None:
    content = (
        "{title: T, paper: P, artifact: fig1, kind: figure, compute: {_target_:"
        " tests.support.measured.load, name: x}}"
    )
    wanted = load(tmp_path, content)
    found = gather(wanted)
    assert "Runs" in formats.markdown(table.build(found))
    from loraexp.records.curves import Computed

    found.computed = Computed(values={"ratio": 0.25, "slopes": [1.0, 2.0]})
    whole = table.build(found)
    assert "| ratio | 0.25 |\n| slopes | 1, 2 |" in formats.markdown(whole)
    many: list[float | None] = [float(number) for number in range(2000, -1, -1)]
    found.computed.values["steps"] = [*many, None]
    line = "| steps | 2,001 numbers from 0 to 2000, median 1000; 1 of none |"
    assert line in formats.markdown(table.build(found))
    del found.computed.values["steps"]
    assert formats.comma_separated(whole) == 'name,value\nratio,0.25\nslopes,"[1.0, 2.0]"\n'


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted, cells, _ = made(tmp_path)
    put(cells[0], 0.7, 0.8, schema=0)
    words = ["table", str(wanted.path), f"output_root={tmp_path / 'outputs'}"]
    assert cli.main(words) == 0 and capsys.readouterr().out.startswith(
        "### Two methods on two tasks"
    )
    assert cli.main([*words, "--to", str(tmp_path / "new" / "table.tex")]) == 0
    assert capsys.readouterr().out.strip().endswith("new/table.tex")
    assert (tmp_path / "new" / "table.tex").read_text().count(r"\end{tabular") == 4
    assert cli.main([*words, "--format", "csv"]) == 0
    assert "schema 0, expected 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "report:",
            "reprot: {}\nreport:",
            "mine.yaml: reprot: there is no such key; nearest: report",
        ),
        (
            "init=lora_ga]",
            "init=lora_gaa]",
            "row gradient, column first: init=lora_gaa: there is no conf/init/lora_gaa.yaml",
        ),
        (
            "second: 60.0",
            "third: 60.0",
            "mine.yaml: published.plain: third: there is no such column",
        ),
    ],
)
def test_a_wrong_sweep_is_one_line(
    old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CONTENT.replace(old, new))
    assert cli.main(["table", str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "pdf"], "--format pdf: expected md, tex, csv, json"),
        (["--from", "wandb:"], "expected wandb:ENTITY/PROJECT"),
        (["--variant", "smoke"], "variant smoke: there is no such variant; it has none"),
        (["extra"], "extra: expected KEY=VALUE"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = load(tmp_path)
    assert cli.main(["table", str(wanted.path), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize(
    ("third", "verdict"),
    [
        (0.735, "1.167 [+0.294, +2.039] | above 0 | 1.15 | holds |"),
        (0.701, "0.033 [−4.155, +4.222] | above 0 | 5.5 | holds, within noise |"),
    ],
)
def test_claims_are_judged_where_every_run_has_ended(
    third: float, verdict: str, tmp_path: Path
) -> None:
    wanted = load(tmp_path)
    first = {"plain": (0.700, 0.710, 0.720), "gradient": (0.712, 0.718, third)}
    cells = fill(
        wanted,
        lambda cell: (first[cell.row][cell.point["seed"]] if cell.column == "first" else 0.5, 0.8),
    )
    said = section(formats.markdown(table.build(gather(wanted))), "Claims of the paper")
    assert verdict in said and "visible: the smallest true difference" in said
    assert "too few or too noisy seeds" not in said  # nothing is printed to compare with
    (cells[0].folder / "record.json").unlink()
    assert "not judged: 1 of 24 runs" in formats.markdown(table.build(gather(wanted)))


@pytest.mark.parametrize(("printed", "beyond"), [("81.0", True), ("82.0", False)])
def test_a_claim_that_the_seeds_cannot_test_is_named(
    printed: str, beyond: bool, tmp_path: Path
) -> None:
    """1.15 points would have been visible: a printed difference of 1.0 not, one of 2 would."""
    published = f"published:\n  plain: {{first: 80.0}}\n  gradient: {{first: {printed}}}\n"
    content, count = re.subn(r"published:\n(?:  .*\n)+", published, CONTENT)
    assert count == 1
    wanted = load(tmp_path, content)
    first = {"plain": (0.700, 0.710, 0.720), "gradient": (0.712, 0.718, 0.735)}
    fill(
        wanted,
        lambda cell: (first[cell.row][cell.point["seed"]] if cell.column == "first" else 0.5, 0.8),
    )
    made = table.build(gather(wanted))
    said = section(formats.markdown(made), "Claims of the paper")
    line = (
        "too few or too noisy seeds to test that LoRA-GA beats LoRA: the paper's own difference"
        " is +1.00, 1.15 would have been visible"
    )
    assert (line in said) == beyond
    assert made.claims[0]["visible"] == pytest.approx(1.146, abs=1e-3)
    assert made.claims[0]["printed"] == pytest.approx(float(printed) - 80)


def test_a_smoke_variant_judges_no_claim(tmp_path: Path) -> None:
    content = CONTENT + "variants:\n  smoke: {about: a tiny model}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    wanted = reading.load(str(path), "smoke", [f"output_root={tmp_path / 'outputs'}"])
    fill(wanted, lambda cell: (0.7 if cell.row == "plain" else 0.8, 0.8))
    said = section(formats.markdown(table.build(gather(wanted))), "Claims of the paper")
    assert "| 10 | above 0 | not judged: a smoke variant shows that it runs |" in said


def judged() -> list[str]:
    """The packaged sweeps that hold sentences of a paper against what is measured."""
    found = [name for name in reading.names() if reading.load(name, None, []).claims]
    return [name for name in found if "smoke" in reading.load(name, None, []).variants]


def test_no_smoke_variant_of_any_kind_judges_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, figures and computed experiments: with a number for every name there is a verdict in
    full, and none in the smoke variant."""
    monkeypatch.setattr(Results, "named", lambda self, name: 1.0)
    kinds = set()
    for name in judged():
        full, smoke = (reading.load(name, variant, []) for variant in (None, "smoke"))
        kinds.add("computed" if full.compute is not None else full.kind)
        said = [judge(Results(sweep=full, source=""), claim)["verdict"] for claim in full.claims]
        assert all("hold" in verdict for verdict in said), name
        for claim in smoke.claims:
            found = judge(Results(sweep=smoke, source=""), claim)
            assert found["verdict"].startswith("not judged: a smoke variant"), name
            assert found["interval"] is None and found["visible"] is None
    assert kinds == {"table", "figure", "computed"}


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.0012344, (-0.000432, 0.0029), "0.001234 [−0.000432, +0.002900]"),
        (12345.6, (12000.0, 12691.2), "12346 [+12000, +12691]"),
        (0.0, (0.0, 0.0), "0 [+0, +0]"),
        (-0.5, None, "−0.5"),
    ],
)
def test_an_interval_has_the_decimals_of_its_value(
    value: float, interval: tuple[float, float] | None, text: str
) -> None:
    assert measured({"measured": value, "interval": interval}) == text


def test_a_number_below_zero_has_the_sign_of_its_differences(tmp_path: Path) -> None:
    """One minus in a table, in the cells as in the intervals; a CSV has the number."""
    wanted = load(tmp_path, CONTENT.replace("unit: percent, digits: 1", "unit: nats, digits: 2"))
    fill(wanted, lambda cell: (-0.5 - cell.point["seed"] / 10, 0.8))
    built = table.build(gather(wanted))
    assert "| **−0.60 ± 0.10** (3)<br>paper 70.00 ± 0.50, −70.60 |" in formats.markdown(built)
    assert ",-0.6," in formats.comma_separated(built)
