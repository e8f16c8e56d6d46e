"""What data-driven initializers read, collected layer by layer from the calibration batches within
a memory budget."""

from loraexp.statistics.cache import Store, fingerprint
from loraexp.statistics.calibration import Calibration, layer_generator, token_mask
from loraexp.statistics.collect import HOST, Collected, Report, collect, weight
from loraexp.statistics.plan import Plan, Size, plan

__all__ = [
    "HOST",
    "Calibration",
    "Collected",
    "Plan",
    "Report",
    "Size",
    "Store",
    "collect",
    "fingerprint",
    "layer_generator",
    "plan",
    "token_mask",
    "weight",
]
