"""The base model: where it is, how it is loaded, its tokenizer, and the layers that get an
adapter."""

from loraexp.models.base import Base, open
from loraexp.models.load import PEFT_TASK, draw_head, dtype_of, head, notes, untied
from loraexp.models.targets import check_rank, is_linear, new_modules, target_layers
from loraexp.models.vocabulary import check_reach
from loraexp.models.weights import written_out

__all__ = [
    "PEFT_TASK",
    "Base",
    "check_rank",
    "check_reach",
    "draw_head",
    "dtype_of",
    "head",
    "is_linear",
    "new_modules",
    "notes",
    "open",
    "target_layers",
    "untied",
    "written_out",
]
