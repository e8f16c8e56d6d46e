"""Ray's workers for a sweep: actors, each of which has its cards while it lasts and keeps model and
task from one cell to the next.

Hydra's own launcher hands Ray a task a cell, and Ray ends a worker after every task that had a
card: each cell would load everything anew.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from loraexp.config import ConfigError

DIED = [{"outcome": "died"}]  # of a cell, and those with it, whose worker went without a word
CARDS = "GPU"  # what Ray calls them
STORE = 78_643_200  # bytes for what workers return, the least that Ray takes: they return a line


class Actors:
    """In the place of Hydra's launcher for Ray, which is set up and says how Ray is started and
    what a worker is to have."""

    def __init__(self, plugin: Any, each: int) -> None:
        self.plugin, self.each = plugin, each
        self.idle: list[Any] = []  # from one round to the next

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Every cell in an actor that is free; what each returned, in order."""
        import ray
        from hydra.core.singleton import Singleton
        from hydra.core.utils import JobReturn, JobStatus, setup_globals

        setup_globals()
        started(self.plugin.ray_cfg.init)
        needs = needed(self.plugin.ray_cfg.remote, self.each, nodes())
        cells = deque(
            (number, self.composed(overrides, initial_job_idx + number))
            for number, overrides in enumerate(job_overrides)
        )
        returned = [JobReturn(_return_value=DIED, status=JobStatus.COMPLETED) for _ in cells]
        busy: dict[Any, tuple[Any, int]] = {}
        make: Any = ray.remote(**needs)(Worker)
        state = Singleton.get_state()
        while cells or busy:
            while cells and len(busy) < places(needs, nodes()):
                actor = self.idle.pop() if self.idle else make.remote()
                number, composed = cells.popleft()
                task, context = self.plugin.task_function, self.plugin.hydra_context
                busy[actor.run.remote(context, composed, task, state)] = actor, number
            [done], _ = ray.wait(list(busy), num_returns=1)
            actor, number = busy.pop(done)
            try:
                returned[number] = ray.get(done)
            except ray.exceptions.RayActorError:
                continue  # its cards are free for another
            self.idle.append(actor)
        return returned

    def composed(self, overrides: Sequence[str], number: int) -> Any:
        """The configuration of a cell, as Hydra's launchers compose it."""
        from omegaconf import open_dict

        loader = self.plugin.hydra_context.config_loader
        found = loader.load_sweep_config(self.plugin.config, list(overrides))
        with open_dict(found):
            found.hydra.job.update({"id": f"job_id_for_{number}", "num": number})
        return found


def started(init: Any) -> None:
    """Ray, as `hydra.launcher.ray.init` says: here, or a cluster that is there already."""
    import ray
    from omegaconf import OmegaConf

    if ray.is_initialized():
        return
    asked: Any = OmegaConf.to_container(init, resolve=True) if init else {}
    if not (asked.get("address") or os.environ.get("RAY_ADDRESS")):
        asked = {"object_store_memory": STORE} | asked
    ray.init(**asked)


class Worker:
    """A process of the cluster that makes one cell after another."""

    def run(self, *given: Any) -> Any:
        from hydra_plugins.hydra_ray_launcher._launcher_util import _run_job

        return _run_job(*given)


def nodes() -> list[dict[str, float]]:
    """What each node of the cluster has, as it is now."""
    import ray

    there: Any = ray.nodes  # which has no types
    return [node["Resources"] for node in there() if node["Alive"]]


def needed(remote: Any, each: int, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What an actor has to itself: a core, `each` cards where the cluster has any, and whatever
    `hydra.launcher.ray.remote` says.

    Raises: ConfigError where no node has as many cards.
    """
    from omegaconf import OmegaConf

    most = max((node.get(CARDS, 0) for node in nodes), default=0)
    asked: Any = OmegaConf.to_container(remote, resolve=True) if remote else {}
    found: dict[str, Any] = {"num_cpus": 1} | ({"num_gpus": each} if most else {}) | asked
    if found.get("num_gpus", 0) > most:
        raise ConfigError(
            f"{found['num_gpus']} cards a run: no node of the Ray cluster has more than {most:g};"
            " lower train.gpus_per_run, or hydra.launcher.ray.remote.num_gpus"
        )
    return found


def places(needs: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many actors these nodes hold; at least one, which waits."""
    wanted = {"CPU": needs["num_cpus"], CARDS: needs.get("num_gpus", 0)}
    wanted = {
        kind: much for kind, much in (wanted | (needs.get("resources") or {})).items() if much
    }
    held = [
        min((int(node.get(kind, 0) // much) for kind, much in wanted.items()), default=0)
        for node in nodes
    ]
    return max(1, sum(held))
