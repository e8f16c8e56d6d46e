"""Checked settings and the identity of a run; read `settings` first, then `check`."""

from loraexp.config.check import check, checked, place, typed
from loraexp.config.component import Component, signature_of, target
from loraexp.config.compose import (
    GROUPS,
    about,
    base,
    compose,
    expand,
    file_of,
    known_keys,
    names,
    read_yaml,
    readable,
    resolved,
    settled,
    translated,
)
from loraexp.config.errors import ConfigError, nearest
from loraexp.config.fit import build, fit, type_hints
from loraexp.config.identity import RECORD, STORED, WHERE, digest, match_key, run_folder, run_id
from loraexp.config.paths import HUB
from loraexp.config.search import folder
from loraexp.config.settings import Plain

__all__ = [
    "GROUPS",
    "HUB",
    "RECORD",
    "STORED",
    "WHERE",
    "Component",
    "ConfigError",
    "Plain",
    "about",
    "base",
    "build",
    "check",
    "checked",
    "compose",
    "digest",
    "expand",
    "file_of",
    "fit",
    "folder",
    "known_keys",
    "match_key",
    "names",
    "nearest",
    "place",
    "read_yaml",
    "readable",
    "resolved",
    "run_folder",
    "run_id",
    "settled",
    "signature_of",
    "target",
    "translated",
    "type_hints",
    "typed",
]
