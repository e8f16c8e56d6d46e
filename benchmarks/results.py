"""`python -m benchmarks.results OUTPUTS GLUE NAME[@VARIANT] …`: their sections of
`sweeps/RESULTS.md` made anew from the records under OUTPUTS, and their pictures drawn anew.

The sentence under a heading is ours and stays; every number below it comes from a record.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from PIL import Image

from loraexp.artifacts import drawing, formats, plots, table
from loraexp.artifacts.parts import Section
from loraexp.artifacts.table import Table
from loraexp.machine.words import spoken
from loraexp.records.reading import run_seconds
from loraexp.results import gather
from loraexp.sweep import reading
from loraexp.sweep.schema import Sweep

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"
KEPT = ("Claims of the paper", "Problems")
DECLARED = ("found in the configuration", "declared")


def main(arguments: list[str]) -> None:
    """Rewrite the sections that are named, and their lines of the overview."""
    outputs, glue, *names = arguments
    text = (SWEEPS / "RESULTS.md").read_text()
    for name in names:
        sweep, words = opened(name, outputs, glue)
        results = gather.gather(sweep)
        built = table.build(results)
        taken = [run_seconds(record) for record in results.records.values()]
        assert taken, f"{name}: no record under {outputs}"
        seconds = max(1.0, sum(taken))  # a record has whole seconds
        text = section(text, built, words, seconds)
        text = overview(text, built, seconds)
    (SWEEPS / "RESULTS.md").write_text(text)


def opened(name: str, outputs: str, glue: str) -> tuple[Sweep, str]:
    """A sweep of `make figures` with its results under `outputs`, and the words of its command."""
    of, _, variant = name.partition("@")
    plain = reading.load(of, variant or None)
    key = "task.data_dir" if plain.compute is None else "compute.data_dir"
    data = [f"{key}={glue}"] if variant == "sst2" else []
    sweep = reading.load(of, variant or None, [f"output_root={outputs}", *data])
    return sweep, plain.words + (f" {key}=glue" if data else "")


def heading(sweep: Sweep) -> str:
    """A variant made in the place of the whole, `cpu` or `sst2`, is not in the heading."""
    replaced = {"cpu", "reduced"} | ({"sst2"} if sweep.name != "lora_one_fig6" else set())
    shown = sweep.variant if sweep.variant and sweep.variant not in replaced else ""
    return f"{sweep.name} {shown}".strip()


def pictures(results: gather.Results) -> list[str]:
    """Draws them in 256 colours; their file names."""
    made = []
    for plot in results.sweep.plots:
        into = SWEEPS / "pictures" / f"{results.sweep.key}-{plot.name}"
        picture = plots.make(results, plot)
        if not picture.empty:
            (path,) = drawing.save(picture, into, ["png"])
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
            made.append(path.name)
    return made


def section(text: str, built: Table, words: str, seconds: float) -> str:
    """The text with this sweep's section made anew, or put behind the last one; one that had no
    picture gets none."""
    title = heading(built.sweep)
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^##? |\Z)", text, re.M | re.S)
    said = found[1].strip().split("\n\n")[0] if found else f"{built.sweep.heading}."
    parts = [f"## {title}", said, f"`loraexp sweep {words}` · {spoken(seconds)}"]
    if not found or "](pictures/" in found[1]:
        names = pictures(built.results)
        parts += [f"![{Path(name).stem}](pictures/{name})" for name in names]
    if any(entry.mean is not None for entry in built.entries.values()):
        parts += formats.markdown(built, brief=True).strip().split("\n\n")[2:]
    parts += [part(one) for one in built.sections if one.title in KEPT]
    declared = [
        line for one in built.sections if one.title.endswith(DECLARED) for line in one.lines
    ]
    if declared:
        parts.append("Deviations:\n\n" + "\n".join(f"- {formats.escaped(d)}" for d in declared))
    made = "\n\n".join(parts) + "\n\n"
    if found:
        return text[: found.start()] + made + text[found.end() :]
    behind = re.search(r"^# Methods on real tasks", text, re.M)
    assert behind is not None
    return text[: behind.start()] + made + text[behind.start() :]


def part(one: Section) -> str:
    """Its rows, and its sentences under them."""
    rows = [[formats.escaped(word) for word in row] for row in one.rows]
    lines = "\n".join(f"- {formats.escaped(line)}" for line in one.lines)
    shown = [formats.pipes(one.header, rows, one.words())] if rows else []
    return "\n\n".join([*shown, *([lines] if lines else [])])


def overview(text: str, built: Table, seconds: float) -> str:
    """The sweep's line of the first table: its time, and how many claims hold."""
    title = heading(built.sweep)
    holding = sum(claim["verdict"].startswith("holds") for claim in built.claims)
    claims = f"{holding} of {len(built.claims)}" if built.claims else "none made"
    found = re.search(rf"^\| \[{re.escape(title)}\]\([^|]*\| (?P<what>[^|]*) \|.*\n", text, re.M)
    what = found["what"] if found else built.sweep.heading
    line = f"| [{title}](#{title.replace(' ', '-')}) | {what} | {spoken(seconds)} | {claims} |\n"
    if found:
        return text[: found.start()] + line + text[found.end() :]
    behind = re.search(r"^\| \[cg_lora_table1\].*\n", text, re.M)
    assert behind is not None
    return text[: behind.start()] + line + text[behind.start() :]


if __name__ == "__main__":
    main(sys.argv[1:])
