"""Configurations as plain merges of their files, where that is all that Hydra would do: a hundred
times faster.

`conf/config.yaml` lists its groups after `_self_`; a group's file is merged under the group's name;
a method or an experiment is merged into everything, and may choose other files of groups. Whatever
is more than that (a package, a defaults list of another shape, an added key) is left to Hydra:
`merged` returns None, and so does `resolved`. A test holds both ways equal on every sweep.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loraexp import config

Node = config.Plain
Path_ = tuple[str, ...]
WHOLE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")  # the value of another key, and nothing else
NAME = re.compile(r"[\w.+-]+")
GLOBAL = ("method", "experiment")  # groups whose files are merged into everything
IGNORED = ("defaults", "hydra")


class NotPlain(ValueError):
    """A file does more than to be merged."""


def merged(choices: Sequence[str]) -> Node | None:
    """The configuration of `GROUP=NAME …` before any other override, unresolved; None where Hydra
    is needed."""
    chosen: dict[str, str] = {}
    for word in choices:
        group, equals, name = word.partition("=")
        if group not in config.GROUPS or not equals or not NAME.fullmatch(name):
            return None
        chosen[group] = name
    try:
        return merge_files(chosen, config.folder("conf"))
    except (NotPlain, OSError, OmegaConfBaseException):
        return None


def usual(words: Sequence[str], key: str) -> str:
    """A key of the configuration as the methods and experiments among these overrides leave it."""
    chosen = [word.lstrip("+").partition("=") for word in words]
    wide = {group: f"{group}={name}" for group, _, name in chosen if group in GLOBAL}
    node = merged(list(wide.values()))
    if node is None or "${" in node[key]:
        node = config.resolved(config.compose(list(wide.values())))
    return str(node[key])


def merge_files(asked: Mapping[str, str], root: Path) -> Node:
    """Base, then its groups in their order, then what is optional; raises NotPlain."""
    base, package = read(root / "config.yaml")
    usual, order, optional = defaults_of(base)
    wide = [group for group in GLOBAL if asked.get(group, usual.get(group)) not in (None, "null")]
    if package is not None or len(wide) > 1 or not set(asked) <= set(order):
        raise NotPlain
    files: dict[str, Node] = {}
    for group in wide:
        content, package = read(config.file_of(group, str(asked.get(group, usual.get(group)))))
        if package != "_global_":
            raise NotPlain
        usual = usual | overridden(content)
        files[group] = content
    result = without(base)
    for group in order:
        name = asked.get(group, usual.get(group))
        if name in (None, "null"):
            continue
        if group in wide:
            result = over(result, without(files[group]))
            continue
        result = over(
            result, {group: group_file(config.file_of(group, str(name)).parent, str(name))}
        )
    for path in (root / name for name in optional if (root / name).is_file()):
        content, package = read(path)
        if package != "_global_" or "defaults" in content:
            raise NotPlain
        result = over(result, content)
    return result


def group_file(folder: Path, name: str) -> Node:
    """The keys of a group's file, over those of the files of its group that it starts from; raises
    NotPlain."""
    content, package = read(folder / f"{name}.yaml")
    parts = content.get("defaults", ["_self_"])
    if package is not None or "_self_" not in parts:
        raise NotPlain
    keys: Node = {}
    for part in parts:
        if not isinstance(part, str) or not NAME.fullmatch(part):
            raise NotPlain
        keys = over(keys, without(content) if part == "_self_" else group_file(folder, part))
    return keys


def read(path: Path) -> tuple[Node, str | None]:
    return read_at(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def read_at(path: Path, changed: int) -> tuple[Node, str | None]:
    """The content of a file, and the package that its head names."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict):
        raise NotPlain
    head = re.search(r"^#\s*@package\s+(\S+)", path.read_text(), re.M)
    return content, head[1] if head else None


def defaults_of(base: Node) -> tuple[dict[str, str | None], list[str], list[str]]:
    """The usual choice of every group, their order, and files that count last if they are there;
    raises NotPlain."""
    listed = base.get("defaults") or []
    usual: dict[str, str | None] = {}
    optional: list[str] = []
    if not listed or listed[0] != "_self_":
        raise NotPlain
    for item in listed[1:]:
        if not isinstance(item, dict) or len(item) != 1:
            raise NotPlain
        word, name = next(iter(item.items()))
        kind, _, group = str(word).rpartition(" ")
        if kind == "override" and group.startswith("hydra/"):
            continue
        if kind == "optional" and isinstance(name, str):
            optional.append(f"{group}/{name}.yaml")
        elif (
            kind
            or optional
            or group not in config.GROUPS
            or not (name is None or isinstance(name, str))
        ):
            raise NotPlain
        else:
            usual[group] = name
    return usual, list(usual), optional


def overridden(content: Node) -> dict[str, str | None]:
    """The choices that a method or an experiment makes: `override /GROUP: NAME`; raises
    NotPlain."""
    found: dict[str, str | None] = {}
    for item in content.get("defaults") or []:
        word, name = (
            next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else ("", None)
        )
        group = str(word).removeprefix("override /")
        if (
            f"override /{group}" != word
            or group not in config.GROUPS
            or group in GLOBAL
            or not isinstance(name, str)
        ):
            raise NotPlain
        found[group] = name
    return found


def without(content: Node) -> Node:
    return {key: value for key, value in content.items() if key not in IGNORED}


def over(below: Node, above: Node) -> Node:
    """Keys of `above` in place of those below, node by node; neither is changed."""
    both = dict(below)
    for key, value in above.items():
        held = both.get(key)
        both[key] = (
            over(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
        )
    return both


# --------------------------------------------------------------------------------------------------
# values


def with_values(node: Node, values: Sequence[tuple[str, object]]) -> Node | None:
    """The same with other values of existing keys; None where a key is not there, or would be
    merged."""
    for key, value in values:
        path = tuple(key.split("."))
        if not has(node, path) or isinstance(value, dict) or isinstance(at(node, path), dict):
            return None
        node = put(node, path, value)
    return node


def has(node: object, path: Path_) -> bool:
    for part in path:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def at(node: Any, path: Path_) -> Any:
    for part in path:
        node = node[part]
    return node


def put(node: Node, path: Path_, value: object) -> Node:
    """The node with one value changed; what the way there does not touch is shared."""
    first, *rest = path
    return node | {first: put(node[first], tuple(rest), value) if rest else value}


def links(node: object, path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """Every text that has to be resolved, or is missing (`???`), with where it is."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from links(value, (*path, str(key)))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            for _ in links(value, (*path, str(i))):
                yield (*path, str(i)), ""
    elif isinstance(node, str) and ("${" in node or node == "???"):
        yield path, node


def resolved(node: Node) -> tuple[Node, dict[Path_, str]] | None:
    """The node with its references in place, and which key each whole reference names; None where
    Hydra is needed."""
    whole: dict[Path_, str] = {}
    for path, text in list(links(node)):
        found = WHOLE.fullmatch(text)
        if found:
            source = (
                at(node, tuple(found[1].split(".")))
                if has(node, tuple(found[1].split(".")))
                else "${"
            )
            if isinstance(source, (dict, list)) or (isinstance(source, str) and "${" in source):
                return None
            whole[path] = found[1]
            node = put(node, path, source)
            continue
        if not text or re.search(r"\$\{(?!oc\.env:)", text) or text == "???":
            return None
        try:
            plain = OmegaConf.to_container(OmegaConf.create({"text": text}), resolve=True)
            node = put(node, path, cast(Node, plain)["text"])
        except OmegaConfBaseException:
            return None
    return node, whole
