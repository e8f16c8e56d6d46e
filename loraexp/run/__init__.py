"""One run, the whole story: base, task, initial factors, training, evaluation, checkpoint."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraexp.run.observer import Outcome


class _Run(types.ModuleType):
    """The package is what it does: `loraexp.run("init=cg_lora", "task=cola")`."""

    def __call__(self, *overrides: str) -> Outcome:
        """The run of these overrides, as on the command line; one that is finished is not run
        again.

        Raises: ConfigError where the configuration is wrong; whatever the run itself fails with,
        after its record says so.
        """
        from loraexp import config
        from loraexp.run import experiment

        return experiment.run(*config.check(config.compose(overrides)))


sys.modules[__name__].__class__ = _Run
