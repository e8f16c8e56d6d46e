"""Everything of Weights & Biases: the copy of a record that it gets, and records read back from it.

The record on disk comes first. W&B gets the configuration, every logged line, and in its summary
the whole record, so that a table can be made from a project, or from the folders of offline runs,
alone.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from weakref import WeakSet

from loraexp.config import ConfigError, Plain
from loraexp.machine.files import finite
from loraexp.machine.progress import notice
from loraexp.machine.words import one_line
from loraexp.records.blocks import chunks
from loraexp.records.sections import Evaluation, Line, RunRecord

if TYPE_CHECKING:
    import wandb

    from loraexp.config.settings import WandbSettings


class Open:
    """What W&B has going in this process, which serves the copies of several runs at once."""

    copies: WeakSet[Copy] = WeakSet()  # one that nobody holds any more holds nobody up
    failed = False  # a copy that nobody has told W&B the end of


class Copy:
    """W&B's copy of one record; when W&B fails, the run goes on without it, and `error` says
    why."""

    def __init__(
        self, settings: WandbSettings | None, folder: Path, run_id: str, config: Plain
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.run_id = run_id
        self.config = config
        self.run: Any = None
        self.error: str | None = None

    def start(self) -> None:
        """Begin, once, under the run's own id, so that a resumed run goes on there too."""
        if (
            self.settings is None
            or self.settings.mode == "disabled"
            or self.run is not None
            or self.error is not None
        ):
            return
        Open.copies.add(self)
        with self.second_to_disk():
            import wandb

            names = {
                group: self.config[group]["name"]
                for group in ("task", "model", "init", "optimizer")
            }
            self.run = wandb.init(
                mode=self.settings.mode,
                project=self.settings.project,
                entity=self.settings.entity,
                group=self.settings.group or f"{names['task']}-{names['model']}",
                name=self.folder.name,
                id=self.run_id,
                resume="allow",
                dir=str(self.folder),
                config=self.config,
                tags=list(names.values()),
                reinit="create_new",  # other runs of this process go on beside it
                settings=wandb.Settings(silent=True, console="off", save_code=False),
            )
            unhook()
            self.run.define_metric("*", step_metric="step")

    @contextmanager
    def second_to_disk(self) -> Iterator[None]:
        """Whatever W&B raises, the run on disk matters more: standard error says so once."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - W&B's own, of any kind
            self.run = None
            self.error = f"{type(error).__name__}: {error}"
            Open.failed = True
            self.close()
            notice(f"loraexp: W&B stopped ({one_line(self.error)}); the record on disk goes on")

    def log(self, line: Mapping[str, object]) -> None:
        """A line under its own step. A run that W&B goes on with has had later ones already, after
        the checkpoint that this one began at, and W&B drops what goes back: such a run counts for
        itself, and `step` is the axis."""
        if self.run is not None:
            with self.second_to_disk():
                step = line["step"] if not self.run.starting_step else None
                self.run.log({k: v for k, v in line.items() if v is not None}, step=step)

    def finish(self, record: RunRecord) -> None:
        """Put the record, finished or failed, into the summary, its numbers also one by one, and
        end."""
        if self.run is None:
            return
        with self.second_to_disk():
            self.run.summary.update(summary(record))
            self.run.finish(exit_code=0 if record["status"] == "finished" else 1)
        self.close()

    def close(self) -> None:
        """No longer one of those that W&B has going; after the last of them, one that failed is let
        go."""
        Open.copies.discard(self)
        if Open.failed and not Open.copies:
            Open.failed = False
            let_go()


def unhook() -> None:
    """Take W&B out of the import of other modules, where it would speak to a process that may be
    dead by then."""
    try:
        from wandb.sdk.lib import import_hooks

        import_hooks.unregister_all_post_import_hooks()
    except (ImportError, AttributeError):  # another version has none
        return


def let_go() -> None:
    """End W&B's part in this process after it failed: nothing of it is left to fail again when the
    process ends."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown(exit_code=1)


def flattened(evaluation: Evaluation) -> dict[str, float]:
    """The numbers of a re-score by `evaluations/KEY/SPLIT/METRIC`: none is taken for one of the
    run's own."""
    return {
        f"evaluations/{evaluation['key']}/{split}/{name}": value
        for split, metrics in evaluation["metrics"].items()
        for name, value in metrics.items()
    }


def summary(record: RunRecord) -> Plain:
    """What W&B's summary holds of a record: `record` is all of it but the configuration, which W&B
    has already."""
    flat = {
        f"{split}/{name}": value
        for split, metrics in record["metrics"].items()
        for name, value in metrics.items()
    }
    for section in ("cost", "parameters"):
        flat |= {f"{section}/{name}": value for name, value in record[section].items()}
    for evaluation in record.get("evaluations") or ():
        flat |= flattened(evaluation)
    if record["best"] is not None:
        flat["best/value"] = record["best"]["value"]
    summary: Plain = finite(
        {
            **flat,
            "status": record["status"],
            "record": {k: v for k, v in record.items() if k != "config"},
        }
    )
    return summary


# --------------------------------------------------------------------------------------------------
# reading back


@dataclass(frozen=True, kw_only=True)
class Copied:
    """One run as W&B has it."""

    where: str
    run_id: str
    state: str  # running | finished | failed | crashed | killed
    config: Plain
    # None: it has not ended, or something else than this program made it
    record: RunRecord | None
    lines: Callable[[], list[Line]]


def read(source: str) -> Iterator[Copied]:
    """The runs of a project `entity/project`, or those whose offline folders are under a directory.

    Raises: ConfigError where the source is neither, or where W&B does not give the project.
    """
    if Path(source).expanduser().is_dir():
        return offline(Path(source).expanduser())
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise ConfigError(
            f"--from wandb:{source}: there is no such folder; expected wandb:ENTITY/PROJECT, or a"
            " folder of offline runs"
        )
    return project(source)


def project(source: str) -> Iterator[Copied]:
    """The runs of a project through W&B's public API."""
    try:
        import wandb

        api = wandb.Api()
        at_once: Plain = {"lazy": False} if "lazy" in inspect.signature(api.runs).parameters else {}
        runs = list(api.runs(source, **at_once))
    except Exception as error:  # noqa: BLE001 - no key, no network, no such project: W&B has a class for each
        raise ConfigError(
            f"--from wandb:{source}: W&B does not give it"
            f" ({type(error).__name__}: {one_line(error, 300)})"
        ) from error
    for run in runs:
        yield Copied(
            where=f"wandb:{source}/{run.id}",
            run_id=run.id,
            state=run.state,
            config=plain(run.config),
            record=plain(run.summary).get("record"),
            lines=partial(history_of, run),
        )


def history_of(run: wandb.apis.public.Run) -> list[Line]:
    return merged([line(row) for row in run.scan_history()])


def plain(value: object) -> Any:
    """W&B's dict-like objects as dicts, all the way down."""
    if hasattr(value, "items"):
        return {str(key): plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def line(row: Mapping[str, object]) -> Line:
    """A row of W&B's history as a line of metrics.jsonl: without W&B's own keys."""
    return {
        key: value for key, value in row.items() if not key.startswith("_") and value is not None
    }


def offline(folder: Path) -> Iterator[Copied]:
    """The runs under a folder as W&B wrote them to disk: `offline-run-<time>-<id>/run-<id>.wandb`.

    An interrupted run has several files. The last one tells how it ended, and each goes on where
    its first step says.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("run-*.wandb"), key=lambda path: path.parent.name):
        files.setdefault(path.stem.removeprefix("run-"), []).append(path)
    for run_id, paths in files.items():
        last = log_file(paths[-1])
        yield Copied(
            where=str(paths[-1]),
            run_id=run_id,
            state=last["state"],
            config=last["config"],
            record=last["summary"].get("record"),
            lines=partial(histories_of, paths),
        )


def histories_of(paths: Sequence[Path]) -> list[Line]:
    return joined([log_file(path)["history"] for path in paths])


def joined(histories: list[list[Line]]) -> list[Line]:
    """Histories one after the other, each in place of what those before it logged after its first
    step."""
    lines: list[Line] = []
    for history in histories:
        lines = [
            line for line in lines if not history or line["step"] <= history[0]["step"]
        ] + history
    return merged(lines)


def merged(lines: list[Line]) -> list[Line]:
    """One line for each step, in their order; of what was sent twice the later counts."""
    by_step: dict[int, Line] = {}
    for one in lines:
        if "step" in one:
            by_step[one["step"]] = by_step.get(one["step"], {}) | one
    return [by_step[step] for step in sorted(by_step)]


class LogFile(TypedDict):
    """A `run-<id>.wandb`: W&B's copy of one attempt at a run."""

    config: Plain
    summary: Plain
    history: list[Line]
    state: str


def log_file(path: Path) -> LogFile:
    """Configuration, summary, history and state from one `run-<id>.wandb`."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    found = LogFile(config={}, summary={}, history=[], state="running")
    for content in chunks(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            updates = record.run.config.update if kind == "run" else record.config.update
            put(found["config"], (item for item in updates if item.key != "_wandb"))
        elif kind == "summary":
            put(found["summary"], record.summary.update)
        elif kind == "history":
            row: Line = {}
            put(row, record.history.item)
            found["history"].append(line(row))
        elif kind == "exit":
            found["state"] = "finished" if record.exit.exit_code == 0 else "failed"
    return found


def put(into: Plain, items: Any) -> None:
    """Set the keys, nested ones too, of W&B's key and JSON pairs."""
    for item in items:
        *path, name = item.nested_key or [item.key]
        node = into
        for part in path:
            node = node.setdefault(part, {})
        node[name] = json.loads(item.value_json)
