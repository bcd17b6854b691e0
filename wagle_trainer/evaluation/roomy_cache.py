"""Keys and values with room behind them: a new token is written there, where Transformers copies all tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Places that are made at once. More of them save copies and take memory.
ROOM = 16


class RoomyLayer(DynamicLayer):
    """As `DynamicLayer`; its keys and values are the beginning of larger tensors."""

    keys: Tensor
    values: Tensor
    _rooms: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> RoomyLayer:
        """A layer with the states of another."""
        made = cls()
        made.__dict__.update(layer.__dict__)
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See `DynamicLayer.update`."""
        before, new = self.get_seq_length(), key_states.shape[-2]
        if not before:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self._has_room(new):
            self._rooms = None  # before there are two of them
            self._rooms = self._with_room(self.keys, new), self._with_room(self.values, new)
        assert self._rooms is not None
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., before : before + new, :] = states
        self.keys, self.values = (room[..., : before + new, :] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """See `DynamicLayer.batch_select_indices`; rows that fill gaps are all that is copied, see `without_gaps`."""
        number, moved = len(indices), [(new, old) for new, old in enumerate(indices.tolist()) if new != old]
        if self._rooms is None or not self._has_room(0) or any(old < number for _, old in moved):
            super().batch_select_indices(indices)
            self._rooms = None  # they hold the memory of rows that are gone
            return
        if moved:
            gaps, rows = map(list, zip(*moved, strict=True))
            for states in (self.keys, self.values):
                states[gaps] = states[rows]
        keys, values = self._rooms
        self._rooms = keys[:number], values[:number]
        self.keys, self.values = self.keys[:number], self.values[:number]
        if 2 * self._rooms[0].nbytes < keys.untyped_storage().nbytes():  # most of it is of rows that are gone
            self.keys, self.values, self._rooms = self.keys.clone(), self.values.clone(), None

    def _has_room(self, places: int) -> bool:
        """Whether keys and values are still the beginning of the rooms (not after rows were repeated) that are not full."""
        return self._rooms is not None and all(
            states.data_ptr() == room.data_ptr()
            and states.shape[:-2] == room.shape[:-2]
            and states.shape[-2] + places <= room.shape[-2]
            for room, states in zip(self._rooms, (self.keys, self.values), strict=True)
        )

    @staticmethod
    def _with_room(states: Tensor, places: int) -> Tensor:
        *rows, length, width = states.shape
        room = states.new_empty(*rows, length + max(places, ROOM), width)
        room[..., :length, :] = states
        return room


def without_gaps(rows: Sequence[int]) -> list[int]:
    """`rows` that stay of a batch, in an order in which the last of them fill the gaps of those that go."""
    staying = set(rows)
    last = iter([row for row in rows if row >= len(rows)])
    return [row if row in staying else next(last) for row in range(len(rows))]


def with_room(cache: Cache) -> Cache:
    """The cache, whose plain layers have room from now on."""
    cache.layers = [RoomyLayer.of(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
