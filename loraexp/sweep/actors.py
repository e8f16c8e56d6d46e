"""Ray's workers for a sweep: actors, each of which has its cards while it lasts and keeps model and
task from one cell to the next.

Hydra's own launcher hands Ray a task a cell, and Ray ends a worker after every task that had a
card: each cell would load everything anew.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from loraexp.config import ConfigError
from loraexp.machine.progress import notice
from loraexp.machine.signals import Stop, undisturbed
from loraexp.machine.words import reason_of

DIED = [{"outcome": "died"}]  # of a cell, and those with it, whose worker went without a word
CARDS = "GPU"  # what Ray calls them
LOOK = 0.5  # seconds between two looks whether the sweep was told to stop
ANSWER = 5.0  # seconds in which a cluster answers
STORE = 78_643_200  # bytes for what workers return, the least that Ray takes: they return a line


class Actors:
    """In the place of Hydra's launcher for Ray, which is set up and says how Ray is started and
    what a worker is to have."""

    def __init__(self, plugin: Any, each: int, stop: Stop | None = None) -> None:
        self.plugin, self.each = plugin, each
        self.stop = stop or Stop()
        self.idle: list[Any] = []  # from one round to the next
        self.where: dict[Any, Any] = {}  # each actor is, once it has begun

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Every cell in an actor that is free; what each returned, in order. Told to stop, it tells
        its actors, and waits until they have."""
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
        task, context = self.plugin.task_function, self.plugin.hydra_context
        state, stopped = Singleton.get_state(), False
        while cells or busy:
            if self.stop.name is not None and not stopped:
                cells.clear()
                self.tell([actor for actor, _ in busy.values()])
                stopped = True
            while cells and len(busy) < places(needs, nodes()):
                actor = self.actor(needs)
                number, composed = cells.popleft()
                busy[actor.run.remote(context, composed, task, state)] = actor, number
            for done in ray.wait(list(busy), num_returns=1, timeout=LOOK)[0] if busy else ():
                actor, number = busy.pop(done)
                with suppress(ray.exceptions.RayActorError):  # its cards are free for another
                    returned[number] = ray.get(done)
                    self.idle.append(actor)
        return returned

    def actor(self, needs: Mapping[str, Any]) -> Any:
        """One that is idle, or a new one."""
        import ray

        if self.idle:
            return self.idle.pop()
        made: Any = ray.remote(**needs)(Worker)
        actor = made.remote()
        self.where[actor] = actor.where.remote()
        return actor

    def tell(self, actors: Sequence[Any]) -> None:
        """Ask actors to end their runs where they can go on, each by a signal from its own machine;
        one that has not begun is no longer wanted."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        begun, _ = ray.wait([self.where[a] for a in actors], num_returns=len(actors), timeout=LOOK)
        for actor in actors:
            if self.where[actor] not in begun:
                ray.kill(actor)
                continue
            with suppress(ray.exceptions.RayActorError):
                node, process = ray.get(self.where[actor])
                remote: Any = ray.remote  # whose types know no strategy of this kind
                there = remote(num_cpus=0, scheduling_strategy=On(node, soft=False))
                there(told).remote(process)

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
    alone = {"object_store_memory": STORE} | asked | {"address": "local"}
    left = None
    if not (asked.get("address") or os.environ.get("RAY_ADDRESS")):
        left = left_behind(asked.get("_temp_dir"))
        if left is None:
            asked = alone
        elif not answers(left):
            say_gone(left)
            left, asked = None, alone
    try:
        with undisturbed():  # Ray would end this process, and whatever its workers do
            try:
                ray.init(**asked)
            except ConnectionError:
                if left is None:
                    raise
                say_gone(left)
                ray.init(**alone)
    except ConnectionError as error:
        raise ConfigError(
            f"{reason_of(error)}: expected the address of a cluster (ray start --head prints it);"
            " where it asks for a token, RAY_AUTH_MODE=token gives it that of this machine"
        ) from error


def left_behind(folder: str | None) -> str | None:
    """The address of the cluster that was begun last on this machine, which Ray connects to where
    none is named; it stays on disk when the cluster is killed."""
    try:
        from ray._private.services import find_bootstrap_address
    except ImportError:  # no part of what Ray promises
        return None
    address: str | None = find_bootstrap_address(folder)
    return address or None


def answers(address: str) -> bool:
    """Whether anybody listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER):
            return True
    except (OSError, ValueError):
        return False


def say_gone(address: str) -> None:
    notice(
        f"Ray: the cluster at {address} is gone, and only the note of its address is left (ray stop"
        " removes it); starting one here"
    )


def told(process: int) -> None:
    """Ask a process of this machine to end where it can go on."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)


class Worker:
    """A process of the cluster that makes one cell after another."""

    def where(self) -> tuple[str, int]:
        """Its node, and its number there."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

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
