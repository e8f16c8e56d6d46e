"""What a run is doing, for the record of one that ends before its end, and what to change where
memory ran out."""

from __future__ import annotations

import errno
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loraexp.machine.measure import asked_for, ran_out
from loraexp.machine.progress import log
from loraexp.machine.signals import Interrupted, Stop
from loraexp.machine.words import spoken
from loraexp.records.record import Record

if TYPE_CHECKING:
    from loraexp.config.settings import Settings

WORDS = {
    "data": "reading the data",
    "model": "loading the model",
    "initialisation": "initialising",
    "training": "training",
    "evaluation": "evaluating",
    "saving": "saving",
}


class OutOfMemory(MemoryError):
    """Memory was refused; the message says in which phase, how much was asked for, and which key to
    change."""


class OutOfFiles(OSError):
    """The process has as many files open as it may; the message says the limit."""


class Phases:
    """`with phases("evaluation"):` the record says so, being told to stop ends it, and a lack of
    memory is explained."""

    def __init__(self, settings: Settings, record: Record, stop: Stop) -> None:
        self.settings, self.record, self.stop = settings, record, stop

    @contextmanager
    def __call__(self, name: str, *, patient: bool = False) -> Iterator[None]:
        """`patient`: being told to stop is only noted, because what is within looks itself."""
        log(WORDS[name])
        began = time.perf_counter()
        try:
            with self.record.phase(name), self.stop.patiently(patient):
                yield
            log(f"  took {spoken(time.perf_counter() - began)}")
        except Interrupted as told:
            told.where = told.where or f"while {WORDS[name]}; the same command goes on"
            raise
        except Exception as error:
            if isinstance(error, (OutOfMemory, OutOfFiles)):
                raise
            if ran_out(error):
                raise OutOfMemory(self.explained(name, error)) from error
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                said = (
                    f"too many open files while {WORDS[name]} (the limit is {limit}): raise it, for"
                    " example ulimit -n 4096"
                )
                raise OutOfFiles(error.errno, said) from error
            raise

    def explained(self, name: str, error: BaseException) -> str:
        """One line: the phase, how much was asked for, the key to change."""
        asked = asked_for(error)
        sized = f" ({asked} were asked for)" if asked else ""
        return f"out of memory while {WORDS[name]}{sized}: {self.remedy(name)}"

    def remedy(self, name: str) -> str:
        """The keys that make a phase need less, with what they are now."""
        settings = self.settings
        recompute = (
            ""
            if settings.model.gradient_checkpointing
            else ", or set model.gradient_checkpointing=true"
        )
        parts = settings.train.micro_batches
        if name == "initialisation":
            return (
                f"raise train.micro_batches (now {parts}; its passes have as many rows as"
                f" training's) or lower init.memory_budget{recompute}"
            )
        if name == "training":
            return (
                f"raise train.micro_batches (now {parts}; the step's gradient stays the same),"
                f" lower train.batch_size (now {settings.train.batch_size}){recompute}"
            )
        if name == "evaluation":
            return f"lower train.eval_batch_size (now {settings.train.eval_batch_size})"
        if name == "data":
            return "lower task.limit_train or task.limit_eval"
        return "choose a smaller model, model.dtype=bfloat16 or model.quantise=4bit"
