"""`loraexp new`: the file and the yaml that something of one's own begins with, complete and
running as written."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from pathlib import Path

from loraexp import config
from loraexp.cli.options import Parser, expected
from loraexp.config import ConfigError
from loraexp.machine.words import shorten

KINDS = ("init", "optimizer", "task", "sweep")
SPELLINGS = {"initializer": "init", "initialiser": "init", "rule": "optimizer"}

INIT = '''"""{name}: one sentence on what it starts from. Source: author, title, equation."""

from __future__ import annotations

import torch

from loraexp.adapter import linalg
from loraexp.adapter.layer import Start
from loraexp.initializers import Factors, Layer, needs


@needs("gradient")  # others: summed_gradient, input_moment, output_moment, curvature; none: needs()
def {name}(
    layer: Layer, *, rank: int, scaling: float, generator: torch.Generator, start: Start = "shifted"
) -> Factors:
    """The best rank-r step down the gradient, from its SVD `G = U S Vh`: `scaling · B A = −G_r`.

    Shapes: W, G (d_out, d_in) → A (r, d_in), B (d_out, r). `start`: train from
    `W0 + scaling · B A` ("shifted"), or from W0 with the product taken out again ("pretrained").
    Draw random numbers from `generator` alone.
    """
    U, S, Vh = linalg.svd(-layer.gradient).leading(rank)
    return Factors(A=Vh, B=U * S / scaling, start=start)
'''
INIT_YAML = """# {name}: one line, which `loraexp list inits` shows.
name: {name}
_target_: {name}.{name}
_partial_: true
start: shifted        # shifted | pretrained
samples: 64           # calibration rows; further keys: init.batch_size, init.rows, init.mode
"""
OPTIMIZER = '''"""{name}: one sentence on its update. Source: author, title, equation."""

from __future__ import annotations

import torch

from loraexp.adapter import Adapters
from loraexp.optimizers.elementwise import AdamW
from loraexp.optimizers.rule import rule
from loraexp.optimizers.stepping import AdapterOptimizer, factor_blocks, head_section


@rule("A", "B")  # the factors that must train for it; frozen=("A",) for those that must not
def {name}(
    adapters: Adapters, *, lr: float, weight_decay: float, ratio: float = 4.0
) -> torch.optim.Optimizer:
    """AdamW in which B learns `ratio` times as fast as A; the new head keeps `lr`."""
    sections = [
        (factor_blocks(adapters, ("A", "R")), lr),
        (factor_blocks(adapters, ("B",)), ratio * lr),
        head_section(adapters, lr, None),
    ]
    return AdapterOptimizer(sections, weight_decay=weight_decay, base=AdamW(0.9, 0.999, 1e-8))
'''
OPTIMIZER_YAML = """# {name}: one line, which `loraexp list optimizers` shows.
# A class of torch.optim works as well: _target_: torch.optim.SGD
name: {name}
_target_: {name}.{name}
_partial_: true
ratio: 4.0
"""
TASK_YAML = """# {name}: one line, which `loraexp list tasks` shows.
# All keys: loraexp task=data --cfg job
defaults: [data, _self_]

name: {name}
format: csv             # csv | tsv | jsonl | parquet | hub
data_dir: {here}
train: {name}.csv
text: [text]            # the column of the text, or the two of a pair
label: label            # the column of the class
# For a model of text, in place of text and label:
# prompt: "Question: {{question}}\\nAnswer: "
# response: "{{answer}}"
"""
PLACES = ("here", "at home", "by the sea", "in town", "up there")
FOOD = ("soup", "bread", "tea", "fish", "rice", "cake", "salad", "pie")
TASK_ROWS = "text,label\n" + "".join(
    f"the {food} {place} was {word},{label}\n"
    for food in FOOD
    for place in PLACES
    for word, label in (("lovely", "good"), ("awful", "bad"))
)
SWEEP_YAML = """# {name}: your own table, a row a method, a column a task.
# `loraexp plan {here}` says what it costs.
title: My methods under equal conditions
paper: mine
artifact: {name}
kind: table
base: [task.limit_train=2000, init.cache=true]
grid: {{lr: [5e-4, 1e-3], seed: [0, 1, 2]}}
rows:
  lora: {{label: LoRA, overrides: [init=lora]}}
  lora_one: {{label: LoRA-One, overrides: [init=lora_one]}}
  # mine: {{label: Mine, overrides: [init=my_init]}}
columns:
  tweets: {{label: tweets, value: dev/accuracy, overrides: [task=tweets]}}
select: {{over: [lr], by: held_out/accuracy}}
report: {{unit: percent, digits: 2}}
"""


def new(arguments: Sequence[str]) -> int:
    """Write the file and the yaml that an initializer, an optimizer, a task or a sweep of your own
    begins with."""
    parser = Parser("loraexp new", description=new.__doc__)
    parser.add_argument("kind", metavar="|".join(KINDS))
    parser.add_argument("name", metavar="NAME", help="a Python name, such as my_init")
    parser.add_argument(
        "--to",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the folder to begin in (default: here)",
    )
    options = parser.parse_args(arguments)
    kind, name = options.kind, options.name
    kind = SPELLINGS.get(kind.removesuffix("s"), kind.removesuffix("s"))  # an initializer, tasks
    if kind not in KINDS:
        raise ConfigError(f"new {options.kind}: {expected(options.kind, KINDS)}")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(
            f"new {kind} {name}: expected a Python name, letters, digits and underscores"
        )
    if kind != "sweep" and name in config.names(kind):
        raise ConfigError(f"new {kind} {name}: there is one of that name already; choose another")
    files = contents(kind, name, options.to)
    for path in files:
        if path.exists():
            raise ConfigError(
                f"{path}: there is such a file; choose another name, or --to another folder"
            )
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"written: {shorten(path)}")
    print(f"try it:  {trial(kind, name, options.to)}")
    return 0


def contents(kind: str, name: str, to: Path) -> dict[Path, str]:
    """What is written: a module beside the folder `conf`, and the yaml in it."""
    yaml = to / "conf" / kind / f"{name}.yaml"
    if kind == "sweep":
        path = to / f"{name}.yaml"
        return {path: SWEEP_YAML.format(name=name, here=shorten(path))}
    if kind == "task":
        return {
            yaml: TASK_YAML.format(name=name, here=to.absolute()),
            to / f"{name}.csv": TASK_ROWS,
        }
    code, keys = {"init": (INIT, INIT_YAML), "optimizer": (OPTIMIZER, OPTIMIZER_YAML)}[kind]
    return {to / f"{name}.py": code.format(name=name), yaml: keys.format(name=name)}


def trial(kind: str, name: str, to: Path) -> str:
    """The command that runs what was written."""
    if kind == "sweep":
        return f"loraexp plan {shorten(to / f'{name}.yaml')}"
    return f"loraexp --config-dir {shorten(to / 'conf')} {kind}={name} experiment=debug"
