"""From the composed configuration to checked, typed settings; every mistake is one line that tells
the remedy.

Nothing heavy is imported before the configuration holds: the structure is checked against
`settings`, and only then the functions behind `_target_` are imported and their signatures asked
for names and types.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraexp.config import settings as schema
from loraexp.config.component import Component, target
from loraexp.config.compose import names, read_yaml, resolved
from loraexp.config.errors import ConfigError
from loraexp.config.fit import build
from loraexp.config.paths import HUB
from loraexp.config.placement import check_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
# they choose other keys, and are nothing themselves
NOT_OF_A_RUN = ("hydra", "method", "experiment")


def check(cfg: DictConfig) -> tuple[schema.Settings, schema.Plain]:
    """Settings and the plain resolved configuration of one run; raises ConfigError."""
    return checked(resolved(cfg))


def checked(composed: Mapping[str, object]) -> tuple[schema.Settings, schema.Plain]:
    """The same of a configuration that is resolved already, which stays as it is."""
    plain = placed(composed)
    if not Component.of(plain["init"], "init").trains:  # one_step is evaluated as it is
        plain = still(plain)
    check_device(plain.get("device"))
    settings = typed(plain)
    task, initializer, optimizer = (
        Component.of(getattr(settings, group), group) for group in ("task", "init", "optimizer")
    )
    for component in (task, initializer, optimizer):
        component.check()
    check_names(settings)
    check_together(settings, task, initializer, optimizer)
    return settings, plain


def placed(composed: Mapping[str, object]) -> schema.Plain:
    """What of a composed configuration is the run's, with paths from the root."""
    return absolute({key: value for key, value in composed.items() if key not in NOT_OF_A_RUN})


def still(plain: schema.Plain) -> schema.Plain:
    """A configuration of which nothing trains: no steps."""
    return {**plain, "train": plain["train"] | {"max_steps": 0}}


def absolute(plain: schema.Plain) -> schema.Plain:
    """With paths from the root, and the model's kind and name as words: one run and one id wherever
    the command is typed, and whether they were written or found."""
    for key in ("output_root", "cache_root"):
        plain[key] = rooted(plain[key])
    directories = ((key, plain["task"].get(key)) for key in ("data_dir", "eval_data_dir"))
    plain["task"] = plain["task"] | {key: place(value) for key, value in directories if value}
    if plain["task"].get("data_dir") == HUB:
        plain["task"]["data_dir"] = None  # which says the same
    # a hub id, unless there is such a path
    sources = ((key, plain["model"].get(key)) for key in ("path", "tokenizer"))
    there = {
        key: value
        for key, value in sources
        if isinstance(value, str) and Path(value).expanduser().exists()
    }
    if "path" in there and plain["model"].get("revision") is not None:
        refuse_both(there["path"], plain["model"]["revision"])
    model = plain["model"] | {key: rooted(value) for key, value in there.items()}
    plain["model"] = recognised(model)
    return plain


# of a model's keys; asked for by name, as what a `_target_` names, because models stand above
KIND = "loraexp.models.family.kind"


def recognised(model: schema.Plain) -> schema.Plain:
    """The keys of a model with what `model=hf` leaves open: its name, its kind, and its targets as
    a list."""
    if model.get("name") is None:
        path = model.get("path")
        if path is None:
            raise ConfigError(
                "model.path=null: give the folder or the hub id of a model, as in model=hf"
                " model.path=FacebookAI/roberta-base"
            )
        last = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(str(path)).name)
        model = model | {"name": last.removesuffix(".gguf").lstrip(".+-") or "model"}
    if isinstance(model.get("targets"), str):
        model = model | {"targets": [model["targets"]]}
    if model.get("kind") == "auto":
        try:
            model = model | {"kind": target({"_target_": KIND}, "model")(model)}
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return model


def refuse_both(path: str, revision: str) -> None:
    """A word that names a folder here and, with a revision, a repository of the hub: which one is
    meant is not guessed."""
    if not path.startswith((".", "/", "~", "package:")):
        raise ConfigError(
            f"model.path={path}: {rooted(path)} is a folder here, and model.revision={revision}"
            f" names a commit of the hub; set model.path=./{path} model.revision=null to read the"
            " folder, or go to another folder to read the hub"
        )


def place(path: str) -> str:
    """A folder of data from the root, or the word for the hub."""
    return HUB if path == HUB else rooted(path)


def rooted(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def typed(plain: Mapping[str, Any]) -> schema.Settings:
    """The settings of a plain resolved configuration, every value fitted to its type and bounds;
    raises ConfigError."""
    calibration = {f.name for f in dataclasses.fields(schema.CalibrationSettings)}
    parts = dict(plain)
    for group in ("task", "model"):
        parts[group] = {k: v for k, v in plain[group].items() if k != "facts"}
    parts["facts"] = {group: plain[group].get("facts") or {} for group in ("task", "model")}
    parts["init"] = {k: v for k, v in plain["init"].items() if k not in calibration}
    parts["calibration"] = {k: v for k, v in plain["init"].items() if k in calibration}
    return build(schema.Settings, parts, "")


def check_together(
    settings: schema.Settings, task: Component, initializer: Component, optimizer: Component
) -> None:
    """Choices that exclude each other: task and model; an initializer's hyper-parameters; what it
    trains and the rule needs."""
    check_kinds(settings, task)
    check_weights(settings.model, initializer)
    if settings.model.dtype == "float16":
        raise ConfigError(
            "model.dtype=float16: gradients underflow in it and the loss is not scaled; expected"
            " bfloat16 or float32"
        )
    try:
        schema.checkpoint_seconds(settings.train.checkpoint_every)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if settings.evaluate.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "evaluate.backend=vllm: vllm is not installed; pip install vllm (it needs a GPU), or"
            " set evaluate.backend=hf"
        )
    check_request(settings, initializer)
    if not settings.model.targets and initializer.trains & {"A", "B", "R"}:
        raise ConfigError(
            f"model.targets=[]: init={initializer.name} has no layer to adapt; name some, as"
            " model.targets=[query,value]"
        )
    keep = settings.train.keep_factors_every
    if keep and not initializer.trains & {"A", "B", "R"}:
        raise ConfigError(
            f"train.keep_factors_every={keep}: init={initializer.name} has no factors; set it to 0"
        )
    if not optimizer.fits(initializer.trains):
        rules = [
            name
            for name in names("optimizer")
            if Component.of(read_yaml("optimizer", name), "optimizer").fits(initializer.trains)
        ]
        raise ConfigError(
            f"optimizer={optimizer.name} {optimizer.wants}, but init={initializer.name} trains"
            f" {' and '.join(sorted(initializer.trains)) or 'nothing'}; choose"
            f" optimizer={'|'.join(rules)}"
        )


def check_request(settings: schema.Settings, initializer: Component) -> None:
    """The initializer says what it reads, and its hyper-parameters suit one another."""
    request = getattr(initializer.function, "request", None)
    if request is None:
        path = settings.init["_target_"]
        raise ConfigError(
            f"init._target_={path}: it does not say what it reads; decorate it with @needs(...), or"
            " @needs() for weights alone"
        )
    try:
        request(settings.rank, **initializer.keywords)
    except ValueError as error:
        raise ConfigError(f"init={initializer.name}: {error}") from error


def check_names(settings: schema.Settings) -> None:
    """Names of which folders are made: of task, model and initializer."""
    for key, name in (
        ("model", settings.model.name),
        ("task", settings.task.get("name")),
        ("init", settings.init.get("name")),
    ):
        if not NAME.fullmatch(str(name)):
            raise ConfigError(
                f"{key}.name={name}: expected letters, digits, '.', '_', '+' and '-': a folder is"
                " named by it"
            )


def check_weights(model: schema.ModelSettings, initializer: Component) -> None:
    """Keys of the model that contradict each other, or what trains."""
    if model.path is not None and model.config is not None:
        raise ConfigError(
            f"model.path={model.path}: model.config is given too, and would be built with random"
            " weights; set model.config=null to load what is at model.path, or model.path=null"
        )
    if model.quantise and initializer.full:
        raise ConfigError(
            f"model.quantise={model.quantise}: init={initializer.name} trains every weight; set"
            " model.quantise=null"
        )
    if model.head == "keep" and model.path is None:
        raise ConfigError(
            f"model.head=keep: model={model.name} has random weights and no head to keep; set"
            " model.head=new"
        )


def check_kinds(settings: schema.Settings, task: Component) -> None:
    """The task suits the kind of model: classes from an encoder's head, or text."""
    kind = settings.model.kind
    if kind not in task.kinds:
        suited = [
            model
            for model in names("model")
            if read_yaml("model", model).get("kind", "encoder") in task.kinds
        ]
        raise ConfigError(
            f"task={task.name} is for models of kind {' or '.join(sorted(task.kinds))}, and"
            f" model={settings.model.name} is {kind}; choose model={'|'.join(suited)}"
        )
