"""The past of a model as keys and values with room for more, which rows can leave and join."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOM = 128  # columns that a layer's buffers grow by
# kinds of layers whose past is keys and values, and can be padded on the left
LAYERS = {"full_attention", "sliding_attention"}


class Roomy(DynamicLayer):
    """Keys and values as views of buffers with room behind: a step writes a column, where a
    concatenation copies all."""

    def __init__(self, **given: object) -> None:
        super().__init__(**given)  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < after:
            # A prompt alone needs no room yet: its cache is copied once its rows are known.
            room = after + ROOM if before else after
            held = [self.keys, self.values] if before else [None, None]
            self._buffers = [
                _with_room(x, new, room)
                for x, new in zip(held, (key_states, value_states), strict=True)
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., before:after, :] = new
        self.keys, self.values = (buffer[..., :after, :] for buffer in self._buffers)
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """As the layer's own, which copies an empty tensor from the host."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, whatever was held before; room comes with the next step."""
        self.keys, self.values, self._buffers = keys, values, []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As beam search asks: the rows in another order."""
        self.keep(beam_idx)

    def keep(self, rows: Tensor, empty: int = 0) -> None:
        """These rows alone, without their first columns."""
        assert self.keys is not None and self.values is not None
        self.put(self.keys[rows, :, empty:], self.values[rows, :, empty:])


def _with_room(held: Tensor | None, new: Tensor, room: int) -> Tensor:
    buffer = new.new_empty(*new.shape[:-2], room, new.shape[-1])
    if held is not None:
        buffer[..., : held.shape[-2], :] = held
    return buffer


def can_decode(model: PreTrainedModel) -> bool:
    """Whether the model's past is a cache of keys and values, which rows can leave and join."""
    config: Any = model.config
    kinds = set(
        getattr(config.get_text_config(decoder=True), "layer_types", None) or ["full_attention"]
    )
    return kinds <= LAYERS and not getattr(model, "_is_stateful", False)


def past(model: PreTrainedModel) -> Any:
    """An empty past of keys and values, with room."""
    both = [Cache(layer_class_to_replicate=Roomy) for _ in range(2)]
    return EncoderDecoderCache(*both) if model.config.is_encoder_decoder else both[0]
