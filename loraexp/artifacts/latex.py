"""A table in LaTeX, for `booktabs` and `tabularx`: every letter one that pdflatex knows, every part
as wide as a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from loraexp.artifacts.parts import Entry, Section
from loraexp.artifacts.table import Table

LETTERS = 68  # of small type that a line of a page holds, about
LONG = 34  # letters of a cell from which it is broken into lines
FLOAT = [
    "% needs \\usepackage{booktabs,tabularx} and, before LaTeX of 2018,"
    " \\usepackage[utf8]{inputenc}"
]
ESCAPES = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line's end a bracket would be its argument
    '"': r"\textquotedbl{}",
}
SIGNS = {
    "±": r"\pm",
    "−": "-",
    "×": r"\times",
    "†": r"^{\dagger}",
    "·": r"\cdot",
    "→": r"\to",
    "←": r"\leftarrow",
    "≤": r"\le",
    "≥": r"\ge",
    "≈": r"\approx",
    "≠": r"\ne",
    "∈": r"\in",
    "√": r"\surd",
    "‖": r"\|",
    "∇": r"\nabla",
    "⊥": r"\perp",
    "∞": r"\infty",
    "∂": r"\partial",
    "∝": r"\propto",
    "∥": r"\|",
    "⟨": r"\langle",
    "⟩": r"\rangle",
    "∑": r"\sum",
    "∘": r"\circ",
    "⊙": r"\odot",
    "⊗": r"\otimes",
    "∪": r"\cup",
    "∩": r"\cap",
    "⁻": "^{-}",
    "⁺": "^{+}",
    "ᵀ": r"^{\top}",
    "′": "'",
    "½": r"\frac12",
    "¼": r"\frac14",
    "¾": r"\frac34",
    "⅓": r"\frac13",
    "‰": r"{}^0\!/\!_{00}",
    "°": r"^{\circ}",
    "ℓ": r"\ell",
    "ℝ": r"\mathrm{R}",
}
WORDS = {
    "—": "---",
    "–": "--",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "„": "``",
    "‘": "`",
    "’": "'",
    "\u00a0": "~",
    "\u202f": "~",
}
LIKE_LATIN = {
    "ALPHA": "A",
    "BETA": "B",
    "EPSILON": "E",
    "ZETA": "Z",
    "ETA": "H",
    "IOTA": "I",
    "KAPPA": "K",
    "MU": "M",
    "NU": "N",
    "OMICRON": "O",
    "RHO": "P",
    "TAU": "T",
    "CHI": "X",
}


def latex(table: Table, brief: bool = False) -> str:
    """A `table` environment, in parts where it is wider than a page; what stands under it as
    paragraphs, over pages."""
    sweep = table.sweep
    lines = [*FLOAT, r"\begin{table}", r"\centering\small"]
    lines.append(f"\\caption{{{tex(f'{sweep.heading} ({sweep.place}). {table.legend}')}}}")
    if table.entries:
        lines += results(table)
    lines += [r"\end{table}"]
    if brief:
        return "\n".join(lines) + "\n"
    lines += ["", r"{\footnotesize\raggedright"]
    for section in table.sections:
        lines += part(section)
    return "\n".join([*lines, "}"]) + "\n"


def tex(text: str) -> str:
    """Text as LaTeX shows it; a letter that it has no sign for is named by its code."""
    return "".join(
        letter if letter.isascii() and letter not in ESCAPES else sign(letter) for letter in text
    )


def sign(letter: str) -> str:
    if letter in ESCAPES or letter in WORDS:
        return ESCAPES.get(letter) or WORDS[letter]
    if letter in SIGNS:
        return f"${SIGNS[letter]}$"
    name = unicodedata.name(letter, "")
    kind, _, last = name.rpartition(" ")
    if name.startswith("GREEK") and kind.endswith("LETTER"):
        return greek(last.replace("LAMDA", "LAMBDA"), small="SMALL" in kind)
    base = unicodedata.normalize("NFKD", letter)
    if name.startswith(("SUPERSCRIPT", "MODIFIER LETTER")) and base.isascii():
        return f"$^{{{base}}}$"
    if name.startswith(("SUBSCRIPT", "LATIN SUBSCRIPT")) and base.isascii():
        return f"$_{{{base}}}$"
    if ord(letter) < 0x180 and letter.isalpha():
        return letter  # of a Latin alphabet
    return base if base.isascii() and base.isprintable() else f"{{[}}U+{ord(letter):04X}]"


def greek(name: str, *, small: bool) -> str:
    if small:
        return "o" if name == "OMICRON" else f"$\\{name.lower()}$"
    return f"$\\mathrm{{{LIKE_LATIN[name]}}}$" if name in LIKE_LATIN else f"$\\{name.capitalize()}$"


# --------------------------------------------------------------------------------------------------
# the table


def results(table: Table) -> list[str]:
    """The table, its columns in as many parts as it takes to fit; published numbers in small type
    under ours."""
    sweep = table.sweep
    names = list(sweep.columns)
    widths = [
        max([len(table.header(c)), *(width(table.entries[row, c]) for row in sweep.rows)])
        for c in names
    ]
    label = max(len(row.label) for row in sweep.rows.values())
    lines = []
    for some in chunks(widths, LETTERS - min(label, LONG)):
        columns = [names[i] for i in some]
        first = "l" if label <= LONG else r"p{0.35\linewidth}"
        heads = ["", *(table.header(column) for column in columns)]
        lines += [
            *tabular(heads, body(table, columns), first + "r" * len(columns)),
            r"\par\smallskip",
        ]
    return lines[:-1]


def width(one: Entry) -> int:
    return max(len(one.value) + 5, round(0.9 * len(one.given)))


def chunks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns side by side as long as there is room for them, two letters between."""
    parts: list[list[int]] = []
    used = 0
    for i, size in enumerate(widths):
        if not parts or used + size + 2 > room:
            parts.append([])
            used = 0
        parts[-1].append(i)
        used += size + 2
    return parts


def body(table: Table, columns: Sequence[str]) -> list[str]:
    """Two lines a row where the paper has numbers: ours, and the published one."""
    sweep, group = table.sweep, None
    lines: list[str] = []
    for name, row in sweep.rows.items():
        if row.group != group:
            group = row.group
            across = f"\\multicolumn{{{len(columns) + 1}}}{{l}}"
            lines += [r"\midrule"] * bool(lines) + [
                f"{across}{{\\emph{{{tex(group or '')}}}}} \\\\"
            ]
        entries = [table.entries[name, column] for column in columns]
        ours = [f"\\textbf{{{tex(one.value)}}}" if one.best else tex(one.value) for one in entries]
        marked = [value + tex(one.marks) for value, one in zip(ours, entries, strict=True)]
        lines.append(" & ".join([tex(row.label), *marked]) + r" \\")
        if any(one.given for one in entries):
            lines.append(
                " & ".join(["", *(f"{{\\footnotesize {tex(one.given)}}}" for one in entries)])
                + r" \\"
            )
    return lines


def tabular(header: Sequence[str], rows: Sequence[str], columns: str) -> list[str]:
    """Rows under a header; with a column X as wide as the page."""
    first = " & ".join(tex(word) for word in header)
    kind, wide = ("tabularx", r"{\linewidth}") if "X" in columns else ("tabular", "")
    start = f"\\begin{{{kind}}}{wide}{{{columns}}}"
    return [
        start,
        r"\toprule",
        f"{first} \\\\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        f"\\end{{{kind}}}",
    ]


# --------------------------------------------------------------------------------------------------
# under it


def part(section: Section) -> list[str]:
    lines = [f"\\par\\medskip\\textbf{{{tex(section.title)}.}}\\par"]
    if section.rows:
        lines += [*small_table(section), r"\par"]
    return lines + [f"{tex(line)}\\par" for line in section.lines]


def small_table(section: Section) -> list[str]:
    """A section's table: words are broken into lines, numbers stand in as many parts as it takes to
    fit."""
    cells = [section.header, *section.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(section.header))]
    left = section.words()
    worded = sum(left) > 1
    every = list(range(len(widths) - 1))
    room = LETTERS - min(widths[0], LONG)
    lines = []
    for some in [every] if worded else chunks(widths[1:], room):
        picked = [0, *(i + 1 for i in some)]
        broken = [left[i] and widths[i] > (LONG / 2 if worded else LONG) for i in picked]
        kinds = [
            r">{\raggedright\arraybackslash}X" if wide else "l" if left[i] else "r"
            for i, wide in zip(picked, broken, strict=True)
        ]
        rows = [" & ".join(tex(row[i]) for i in picked) + r" \\" for row in section.rows]
        lines += [
            *tabular([section.header[i] for i in picked], rows, "".join(kinds)),
            r"\par\smallskip",
        ]
    return lines[:-1]
