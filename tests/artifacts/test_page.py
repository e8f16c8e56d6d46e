"""The report page: whole without any other file, escaped, countable without composing, and alive in
a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loraexp import cli
from loraexp.artifacts import page
from loraexp.sweep import reading
from loraexp.sweep.cells import Cell
from tests.support.measured import CONTENT, LR, at, fill, load, log, put

EVIL = "<script>alert('x')</script> & \"quoted\""
CONTENT_EVIL = (
    CONTENT.replace("label: LoRA,", "label: '" + EVIL.replace("'", "''") + "',")
    + "plots:\n  - {name: loss, kind: curve, y: loss}\n  - {name: bars, kind: bar}\n"
)
VOID = {"meta", "input", "br", "path", "use", "rect", "link"}


def numbers(cell: Cell) -> tuple[float, float] | None:
    if cell.column == "second" and cell.row == "plain":
        return None
    return (
        0.5
        + 0.1 * (cell.row == "gradient")
        + 0.01 * cell.point["seed"]
        + 0.1 * (cell.point["lr"] == LR[1]),
        0.5,
    )


class Elements(HTMLParser):
    """Every element with its attributes, and the text of all."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one sweep with data (and names that would be code), one without any run, and one
    that cannot be read."""
    tmp_path = tmp_path_factory.mktemp("page")
    wanted = load(tmp_path, CONTENT_EVIL)
    cells = fill(wanted, numbers)
    for cell in cells:
        if numbers(cell) is not None:
            log(cell.folder, *({"step": s, "epoch": s / 2, "loss": 1.0 / s} for s in (1, 2)))
    failed = at(cells, "gradient", "first", LR[0], 2)
    put(
        failed, 0.7, 0.8, status="failed", error={"type": "Diverged", "message": f"loss nan {EVIL}"}
    )
    other = CONTENT.replace(
        "model=tiny-bert, task=tweets", "model=roberta-base, task=mnli"
    ).replace("a_paper", "b_paper")
    load(tmp_path, other, name="untouched")
    (tmp_path / "broken.yaml").write_text(CONTENT + "colums: {}\n")
    names = [str(tmp_path / f"{name}.yaml") for name in ("mine", "untouched", "broken")]
    assert (
        cli.main(
            [
                "report",
                "--to",
                str(tmp_path / "site"),
                *names,
                f"output_root={tmp_path / 'outputs'}",
            ]
        )
        == 0
    )
    return tmp_path / "site" / "index.html"


def test_the_page_is_whole_accessible_and_escaped(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = made.read_text()
    elements = Elements(text)
    assert not elements.open, "every element is closed"
    assert [path.name for path in made.parent.iterdir()] == ["index.html"]
    outside = [
        v
        for _, a in elements.found
        for k, v in a.items()
        if k in ("src", "href", "xlink:href", "action") and not (v or "").startswith("#")
    ]
    assert outside == [] and "@import" not in text and not re.search(r"url\((?!#)", text), (
        "nothing is fetched"
    )
    assert len(elements.all("script")) == 1 and "alert(" not in re.sub(
        r"alert\(&#(x27|39);x&#(x27|39);\)", "", text
    )
    assert EVIL in elements.text and f"Diverged: loss nan {EVIL}" in elements.text
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    for link in [*elements.all("a"), *elements.all("use")]:
        assert (link.get("href") or link.get("xlink:href") or "")[1:] in ids
    assert (
        all(head.get("scope") for head in elements.all("th"))
        and elements.all("html")[0]["lang"] == "en"
    )
    assert [svg["role"] for svg in elements.all("svg")] == ["img", "img"] and all(
        svg["aria-label"] for svg in elements.all("svg")
    )
    assert elements.all("details") and len(elements.all("select")) == 3


def test_every_number_leads_to_its_runs_and_the_rest_to_its_command(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elements = Elements(made.read_text())
    places = {a["id"]: a for a in elements.all("details") if "id" in a}
    assert set(places) == {
        f"runs-mine-{row}-{column}"
        for row in ("plain", "gradient")
        for column in ("first", "second")
    }
    links = [a["href"] for a in elements.all("a") if a["href"].startswith("#runs-")]  # type: ignore[union-attr]
    assert {link[1:] for link in links if link} == set(places)
    runs = [a for a in elements.all("td") if (a.get("class") or "").startswith("status ")]
    assert len(runs) == 24 and [a["class"] for a in runs].count("status failed") == 1
    states = [a for a in elements.all("tr") if "data-methods" in a]
    assert [(a["data-paper"], a.get("class")) for a in states] == [
        ("a_paper", "has-data"),
        ("b_paper", None),
        ("", None),
    ]
    text = " ".join(elements.text.split())
    assert (
        f"loraexp sweep {made.parent.parent / 'untouched.yaml'}"
        f" output_root={made.parent.parent / 'outputs'}" in text
    )
    assert (
        "broken.yaml: colums: there is no such key" in text
        and "1 of 3 artifacts have data · runs: 17 finished, 1 failed" in text
    )
    assert "published" in text.lower() and "paper 70.0 ± 0.5" in text and "LoRA-GA & co_1" in text


def test_a_sweep_without_runs_is_counted_without_composing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = CONTENT.replace("task.limit_train=65]", "task.limit_train=64], epoch: 1.0").replace(
        "model=tiny-bert", "model=roberta-base"
    )
    load(tmp_path, shared)
    (tmp_path / "outputs" / "tweets-tiny-bert" / "a-run").mkdir(parents=True)
    (tmp_path / "outputs" / "tweets-tiny-bert" / "a-run" / "record.json").write_text("{}")

    def composed(wanted: object) -> None:
        raise AssertionError("expanded")

    monkeypatch.setattr("loraexp.sweep.cells.expand_place", composed)
    (part,) = page.parts_of(str(tmp_path / "mine.yaml"), [f"output_root={tmp_path / 'outputs'}"])
    assert part.counts == {"missing": 12}, "two columns that read the same runs count them once"
    assert part.table is None and part.problem is None and part.tasks == ["tweets"]


def test_the_packaged_sweeps_are_all_there_in_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "--to", "site"]) == 0
    elements = Elements(Path("site/index.html").read_text())
    assert (
        all(name in elements.text for name in reading.names())
        and "No run is there yet" in elements.text
    )


def test_wrong_words_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([], "report: the following arguments are required: --to"),
        (["--to", str(tmp_path), "sed=1"], "sed: there is no such key; nearest: seed"),
        (
            ["--to", str(tmp_path / "page"), "lora_one_fig"],
            "lora_one_fig: there is no sweep of that name and no such file; nearest: lora_one_fig",
        ),
    ):
        assert cli.main(["report", *words]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert not (tmp_path / "page").exists()


# --------------------------------------------------------------------------------------------------
# in a browser


def dump(path: Path, fragment: str, profile: Path) -> tuple[Elements, str]:
    """The page as headless Chromium has it after its script ran, and what its status line says."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    quiet = (
        "--disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync"
    )
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        *quiet.split(),
        f"--user-data-dir={profile}",
        "--dump-dom",
        f"file://{path}#{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    status = re.search(r'<p id="status"[^>]*>([^<]*)', done.stdout)
    assert done.returncode == 0 and status is not None, done.stderr[-2000:]
    return Elements(done.stdout), status[1]


def test_a_browser_filters_by_paper_and_sorts_the_list_of_all(made: Path, tmp_path: Path) -> None:
    shown, status = dump(made, "paper=b_paper&sort=state:6:ascending&theme=dark", tmp_path)
    assert status == "0 of 1 with data shown, 1 of 3 in the list of all"
    assert shown.all("html")[0]["data-theme"] == "dark"
    assert [
        ("hidden" in a, a["data-paper"])
        for a in shown.all("section")
        if a.get("class") == "artifact"
    ] == [(True, "a_paper")]
    states = [(a["data-paper"], "hidden" in a) for a in shown.all("tr") if "data-methods" in a]
    assert states == [
        ("", True),
        ("a_paper", True),
        ("b_paper", False),
    ], "0, 6 and 24 runs are missing"


def test_a_browser_filters_by_method_sorts_a_table_and_opens_a_cell(
    made: Path, tmp_path: Path
) -> None:
    shown, status = dump(
        made,
        "method=LoRA-GA+%26+co_1&sort=mine:1:ascending&open=runs-mine-gradient-first",
        tmp_path,
    )
    assert status == "1 of 1 with data shown, 2 of 3 in the list of all"
    assert [(a["data-method"], "hidden" in a) for a in shown.all("tr") if "data-method" in a] == [
        (EVIL, True),
        ("LoRA-GA & co_1", False),
    ]
    places = {a["id"]: a for a in shown.all("details") if "data-method" in a}
    assert [key for key, a in places.items() if "open" in a] == ["runs-mine-gradient-first"]
    assert [key for key, a in places.items() if "hidden" in a] == [
        "runs-mine-plain-first",
        "runs-mine-plain-second",
    ]
    assert [a["aria-sort"] for a in shown.all("th") if "aria-sort" in a] == ["ascending"]


def test_a_browser_sorts_rows_by_number(made: Path, tmp_path: Path) -> None:
    shown, _ = dump(made, "task=tweets&sort=runs:3:descending,mine:1:descending", tmp_path)
    tables = [a for a in shown.all("table") if a.get("data-key") == "mine"]
    assert len(tables) == 1 and [
        a["data-method"] for a in shown.all("tr") if "data-method" in a
    ] == ["LoRA-GA & co_1", EVIL]


def test_all_runs_are_there_also_those_of_no_sweep(made: Path, tmp_path: Path) -> None:
    """In a browser: a table with links to the folders, a scatter with a point for each run that has
    both numbers."""
    shown, _ = dump(made, "", tmp_path)
    assert "18 under" in " ".join(shown.text.split()) and "18 of 18 runs" in shown.text
    links = [a["href"] for a in shown.all("a") if (a.get("href") or "").startswith("..")]
    assert len(links) == 18 and all((made.parent / str(link)).is_dir() for link in links)
    assert len(shown.all("circle")) == 17 + 1  # the failed one has numbers too
    assert {"tweets", "tiny-bert"} <= set(shown.text.split())


def test_rows_of_all_runs_are_flat(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    cells = fill(wanted, lambda cell: (0.5, 0.6))
    (cells[0].folder / "adapter").mkdir()
    (cells[1].folder / "record.json").write_text("[]")
    rows = page.all_runs(tmp_path / "outputs", tmp_path / "site")
    first = next(row for row in rows if row["run"] == cells[0].folder.name)
    assert len(rows) == 24 and [row["status"] for row in rows].count("unreadable") == 1
    assert (first["init"], first["lr"], first["seed"], first["dev/accuracy"], first["best"]) == (
        "lora",
        1e-3,
        0,
        0.5,
        0.6,
    )
    assert (
        first["href"].startswith("../outputs/tweets-tiny-bert/")
        and first["adapter"] == first["href"] + "/adapter"
    )


def test_a_variant_is_headed_by_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CONTENT + "variants:\n  smoke: {about: a tiny model}\n")
    assert (
        reading.load(str(path), "smoke").heading
        == "A tiny model (in place of: Two methods on two tasks)"
    )
    assert reading.load(str(path)).heading == "Two methods on two tasks"
