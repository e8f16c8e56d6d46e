"""lm-eval's evaluation of one task, quietly and without its global generators."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from loraexp.scoring.backends import quiet

TASKS = Path(__file__).resolve().parent / "harness_tasks"
FEWSHOT_SEED = 1234  # lm-eval's own default


@cache
def task_manager(folder: Path) -> Any:
    """lm-eval's index of the tasks in one folder; that of all its own, which are thousands, takes
    seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def lm_evaluate(
    live: Any, task: str, overrides: Mapping[str, object], benchmark: str | None = None
) -> dict[str, Any]:
    """lm-eval on one task of ours, or of its own for a benchmark, with some keys replaced; quietly
    and without its bootstrap.

    Its `simple_evaluate` is not what is called: that seeds the global generators, which are the
    training's, and gives no result to a process whose LOCAL_RANK is not 0. `evaluate` has no
    opinion about either.
    """
    import lm_eval
    from lm_eval.evaluator import evaluate

    with quiet(), tempfile.TemporaryDirectory() as place:
        manager = task_manager(
            TASKS if benchmark is None else Path(lm_eval.__file__).parent / "tasks" / benchmark
        )
        variant = Path(place) / f"{task}.yaml"
        # JSON is YAML
        variant.write_text(
            json.dumps({"include": str(manager.task_index[task].yaml_path), **overrides})
        )
        tasks = manager.load([str(variant)])
        for one in tasks["tasks"].values():
            if one.get_config("num_fewshot") is None:
                one.set_config(key="num_fewshot", value=0)
            one.set_fewshot_seed(seed=FEWSHOT_SEED)
        found = evaluate(lm=live, task_dict=tasks, bootstrap_iters=0, log_samples=True)
    if found is None:
        raise RuntimeError(
            f"lm-eval gave no result for {task}: its model calls itself process {live.rank} of"
            f" {live.world_size}"
        )
    return dict(found)
