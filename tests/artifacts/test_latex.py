"""LaTeX of the tables: every sweep's compiles, every letter has a sign, and nothing is wider than
the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from loraexp.artifacts import table
from loraexp.artifacts.latex import chunks, latex, tex
from loraexp.results import gather as gather_module
from loraexp.results.gather import gather
from loraexp.sweep import cells, reading
from tests.support.measured import CONTENT, expanded_once, fill, load

__all__ = ["expanded_once"]
ALPHABET = (
    "αβγδεζηθικλμνξοπρσςτυφχψω ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ √‖∇⊥∞∂≤≥≈≠∈×±−†·→… ²³⁻ᵀ₀₁ᵢ ½ äéñß “q” ‘q’ —"
    ' – \\&%$#_{}~^<>|["x ✓ 漢'
)
HEAD = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}"
HEAD += r"\usepackage{booktabs,tabularx}\begin{document}"


def has_latex() -> bool:
    if shutil.which("pdflatex") is None:
        return False
    found = subprocess.run(
        ["kpsewhich", "booktabs.sty", "tabularx.sty"], capture_output=True, text=True, check=False
    )
    return len(found.stdout.split()) == 2


needs_latex = pytest.mark.skipif(
    not has_latex(), reason="no pdflatex with booktabs (Debian: texlive-latex-recommended)"
)


def compiled(body: str, folder: Path) -> str:
    """The log of pdflatex; it stops at the first error."""
    (folder / "table.tex").write_text(f"{HEAD}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:]
    return (folder / "table.log").read_text(errors="replace")


def too_wide(log: str, points: float) -> list[str]:
    return [
        line
        for line in log.splitlines()
        if (found := re.match(r"Overfull \\hbox \(([\d.]+)pt", line)) and float(found[1]) > points
    ]


def test_letters_have_signs() -> None:
    assert tex("α√‖ΔW‖Σ Ω") == r"$\alpha$$\surd$$\|$$\Delta$W$\|$$\Sigma$ $\Omega$"
    assert tex("x² Aᵀ ½ ≤ ΑΒ") == r"x$^{2}$ A$^{\top}$ $\frac12$ $\le$ $\mathrm{A}$$\mathrm{B}$"
    assert tex("漢") == "{[}U+6F22]" and tex("naïve") == "naïve"


@needs_latex
def test_every_letter_compiles(tmp_path: Path) -> None:
    compiled(tex(ALPHABET), tmp_path)


@needs_latex
def test_the_table_of_every_sweep_compiles_and_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One document of all of them, without records."""
    monkeypatch.setenv("LORAEXP_DATA", str(tmp_path))
    # all of it, not a test's sweep kept from before
    monkeypatch.setattr(gather_module, "expand", cells.expand)
    bodies = []
    for name in reading.names():
        found = gather(reading.load(name, None, [f"output_root={tmp_path / 'none'}"]))
        bodies += [latex(table.build(found)), r"\clearpage"]
    assert not too_wide(compiled("\n".join(bodies), tmp_path), 30)


@needs_latex
def test_a_table_with_many_wide_columns_is_split(tmp_path: Path) -> None:
    columns = "".join(
        f"  c{i}: {{label: Column {i}, overrides: [task.limit_train={70 + i}], value:"
        " dev/accuracy}\n"
        for i in range(9)
    )
    wanted = load(tmp_path, CONTENT.replace("columns:\n", f"columns:\n{columns}"))
    fill(wanted, lambda cell: (0.7 + cell.point["seed"] / 100, 0.8))
    text = latex(table.build(gather(wanted)))
    assert text.count(r"\end{tabular}") > 4 and "Column 8" in text
    assert not too_wide(compiled(text, tmp_path), 10)


def test_columns_stand_side_by_side_as_long_as_they_fit() -> None:
    assert (
        chunks([10, 10, 10], 24) == [[0, 1], [2]]
        and chunks([50, 3], 20) == [[0], [1]]
        and chunks([], 9) == []
    )


def test_brief_is_the_table_alone(tmp_path: Path) -> None:
    wanted = load(tmp_path)
    fill(wanted, lambda cell: (0.7, 0.8))
    made = table.build(gather(wanted))
    assert (
        "Claims" in latex(made)
        and "Claims" not in latex(made, brief=True)
        and r"\end{table}" in latex(made, brief=True)
    )
    from loraexp.artifacts import formats

    assert "**Protocol**" in formats.markdown(made) and "**" not in formats.markdown(
        made, brief=True
    ).replace("**70", "").replace("0** (", "")
