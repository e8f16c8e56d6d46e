"""A sweep without runs: a small-scale experiment, whose values and curves are filed like a run.

The function behind `compute._target_` is called with the other keys of `compute` and with
`progress`, and returns `Computed`. Its folder is `<output_root>/computed/<sweep>-<id>/`:
`record.json` as a run has it, and the curves beside it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from loraexp import config
from loraexp.config import ConfigError, Plain
from loraexp.config.identity import computed_folder
from loraexp.machine.files import finite
from loraexp.machine.progress import Progress
from loraexp.records import curves
from loraexp.records.curves import Computed
from loraexp.records.sections import RunRecord
from loraexp.sweep.cells import lookup
from loraexp.sweep.schema import OF_RUNS, Sweep

ELSEWHERE = ("progress", "output_root", "data_dir", "device")  # where and how, not what


def folder(sweep: Sweep, output_root: str | Path) -> Path:
    assert sweep.compute is not None
    return computed_folder(Path(output_root), sweep.key, sweep.compute)


def check(sweep: Sweep) -> Callable[..., Computed]:
    """The function of a computed sweep, its keywords checked against its signature; raises
    ConfigError."""
    assert sweep.compute is not None
    try:
        component = config.Component.of(sweep.compute, "compute")
        component.check()
    except ConfigError as error:
        raise ConfigError(f"{sweep.path.name}: {error}") from error
    return component.function


def configuration(sweep: Sweep) -> tuple[Plain, Plain]:
    """The keywords that the function is called with, defaults among them, and the resolved
    configuration of its own runs.

    A function that takes `output_root` files its runs beside all others: their `overrides` are
    composed like any run's. Of a function without runs the second is empty.
    """
    assert sweep.compute is not None
    parameters = inspect.signature(check(sweep)).parameters
    keywords = {
        name: sweep.compute.get(name, parameter.default)
        for name, parameter in parameters.items()
        if name not in ELSEWHERE
    }
    if "output_root" not in parameters or "overrides" not in keywords:
        return keywords, {}
    return keywords, config.check(config.compose(keywords.pop("overrides")))[1]


def value_of(sweep: Sweep, key: str, default: Any = None) -> Any:
    """What a computed sweep has for a key that its paper states: of its runs, a keyword (also
    `compute.KEY`), or an override."""
    keywords, plain = configuration(sweep)
    found = lookup(plain, key, default)
    if found is not default:
        return found
    found = lookup(keywords, key.removeprefix("compute."), default)
    if found is not default:
        return found
    said = dict(word.split("=", 1) for word in keywords.get("overrides") or [] if "=" in word)
    return yaml.safe_load(said[key]) if key in said else default


def run(
    sweep: Sweep, output_root: str | Path, progress: Progress | None = None, *, force: bool = False
) -> Path:
    """Compute and file the result, unless it is there; a failure leaves a record that says why, and
    raises.

    Another process that computes the same is waited for.
    """
    from loraexp.records.record import Finished, Record

    function = check(sweep)
    assert sweep.compute is not None
    into = folder(sweep, output_root)
    keywords = {key: value for key, value in sweep.compute.items() if key != "_target_"}
    if "output_root" in inspect.signature(function).parameters:
        keywords["output_root"] = Path(output_root)  # its own runs are filed beside all others
        if "overrides" in keywords:
            more = (word for word in sweep.overrides if word.partition("=")[0] in OF_RUNS)
            keywords["overrides"] = [*keywords["overrides"], *more]
    described = {"sweep": sweep.key, "compute": sweep.compute}
    try:
        with Record(
            into, into.name.rpartition("-")[2], described, forced=force, waits=True
        ) as record:
            began = time.perf_counter()
            made = function(**keywords, progress=progress or (lambda done, total: None))
            curves.write(into, made)
            cost = {"seconds": time.perf_counter() - began}
            record.update(data=made.data, metrics={"values": finite(made.values)}, cost=cost)
            record.finish()
    except Finished:
        pass
    return into


def load(into: Path) -> tuple[RunRecord, Computed] | None:
    """The record and the result of a finished computed sweep; None where there is none."""
    from loraexp.records import record

    content = record.read(into)
    if content is None or content["status"] != "finished":
        return None
    values: curves.Values = dict(content["metrics"]["values"])
    return content, curves.read(into, values, content.get("data", {}))
