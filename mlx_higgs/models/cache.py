"""Keys and values of the positions already computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import mlx.core as mx

BUCKET = 256  # positions; one allocation for about ten seconds of speech
Holds = Literal["all", "text", "audio"]


def length(caches: Sequence[Any]) -> Any:
    """Positions before the next one: a number, or int32 ``[B]`` of slots."""
    return next(cache.offset for cache in caches if cache.holds == "all")


def buckets(positions: int) -> int:
    """The capacity that holds so many positions."""
    return max(1, math.ceil(positions / BUCKET)) * BUCKET


class KVCache:
    """Keys and values of one layer, ``[B, kv_heads, capacity, head_dim]``, grown in place.

    All B are equally long, and their length is known to the host.

    Args:
        holds: which positions: those of a layer that only one modality attends in are that
            modality's, one after the other.
    """

    def __init__(self, holds: Holds = "all"):
        self.holds: Holds = holds
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0  # positions filled

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in (self.keys, self.values) if store is not None)

    def copy(self) -> KVCache:
        """A cache of its own over the same arrays, which its first append copies."""
        copied = KVCache(self.holds)
        for name in ("keys", "values"):
            store = getattr(self, name)
            setattr(copied, name, None if store is None else mx.array(store))
        copied.offset = self.offset
        return copied

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append ``[B, kv_heads, S, head_dim]``; return everything filled so far."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self.keys = self._fill(self.keys, keys, start)
        self.values = self._fill(self.values, values, start)
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    def mask(self, added: int) -> str | None:
        """What ``added`` positions, the last ones, may attend."""
        return "causal" if added > 1 else None

    def _fill(self, store: mx.array | None, new: mx.array, start: int) -> mx.array:
        store = grown(store, new, buckets(self.offset))
        store[..., start : self.offset, :] = new
        return store


def grown(store: mx.array | None, like: mx.array, capacity: int) -> mx.array:
    """``store`` with room for ``capacity`` positions at least."""
    B, heads, _, dims = like.shape
    missing = capacity - (0 if store is None else store.shape[2])
    if store is not None and missing <= 0:
        return store
    room = mx.zeros((B, heads, missing, dims), like.dtype)
    return room if store is None else mx.concatenate([store, room], axis=2)


class Places:
    """Where the requests of ``Slots`` stand. Layers that hold the same positions share it.

    Attributes:
        offsets: positions filled, int32 ``[B]``.
        visible: positions that a step looks at, its own included.
        mask: bool ``[B, 1, 1, visible]``, what each may attend in this step.
    """

    def __init__(self, offsets: mx.array, visible: int):
        self.offsets = offsets
        self.see(visible)

    def see(self, visible: int) -> None:
        self.visible = visible
        self.mask = (mx.arange(visible) <= self.offsets[:, None])[:, None, None]


class SlotCache:
    """One layer's keys and values of the requests in ``Slots``."""

    def __init__(self, places: Places, keys: mx.array, values: mx.array, holds: Holds = "all"):
        self.places, self.keys, self.values = places, keys, values
        self.holds: Holds = holds

    @property
    def offset(self) -> mx.array:
        """Positions filled, int32 ``[B]``."""
        return self.places.offsets

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write one position ``[B, kv_heads, 1, head_dim]`` of each; return all that is visible."""
        self.keys = self._put(self.keys, keys)
        self.values = self._put(self.values, values)
        visible = self.places.visible
        return self.keys[..., :visible, :], self.values[..., :visible, :]

    def mask(self, added: int) -> mx.array:
        return self.places.mask

    def replace(self, keys: mx.array, values: mx.array) -> None:
        """Put others in their place at once, so that only one layer is ever there twice."""
        self.keys, self.values = keys, values
        mx.eval(keys, values)

    def _put(self, store: mx.array, new: mx.array) -> mx.array:
        if len(store) == 1:
            return mx.slice_update(store, new, self.offset, axes=(2,))
        store[mx.arange(len(store)), :, self.offset] = new[:, :, 0]
        return store


Offsets = Mapping[str, mx.array]  # by what caches hold


class Slots:
    """The caches of B requests that are differently long, one slot each.

    Attributes:
        layers: the caches, in the order the model has them.
        lengths: positions filled, for the host, by what caches hold; empty while a step is being
            compiled.
    """

    def __init__(
        self,
        offsets: Offsets,
        stores: Sequence[tuple[mx.array, mx.array]],
        holds: Sequence[Holds],
        lengths: Mapping[str, list[int]] | None = None,
    ):
        """``stores`` and ``holds``: keys, values, and which positions they are of, a cache each."""
        rooms = {held: keys.shape[2] for held, (keys, _) in zip(holds, stores, strict=True)}
        self._places = {held: Places(offsets[held], room) for held, room in rooms.items()}
        self.layers = [
            SlotCache(self._places[held], keys, values, held)
            for held, (keys, values) in zip(holds, stores, strict=True)
        ]
        self.lengths = dict(lengths or {})

    @classmethod
    def of(cls, caches: Sequence[KVCache]) -> Slots:
        """One request's caches as a batch of one."""
        stores = [(c.keys, c.values) for c in caches if c.keys is not None and c.values is not None]
        empty = mx.zeros_like(stores[0][0][:, :, :1])  # where no such position has come yet
        room = grown(None, empty, BUCKET)
        filled = iter(stores)
        lengths = {c.holds: [c.offset] for c in caches}
        return cls(
            {held: mx.array(length, dtype=mx.int32) for held, length in lengths.items()},
            [(room, room) if c.keys is None else next(filled) for c in caches],
            [c.holds for c in caches],
            lengths,
        )

    @property
    def offsets(self) -> Offsets:
        """The lengths on the device, int32 ``[B]``, by what caches hold."""
        return {held: places.offsets for held, places in self._places.items()}

    def begin(self) -> None:
        """Make room for one position more in every slot, and look no further than that."""
        self.reserve()
        for held, places in self._places.items():
            places.see(max(self.lengths[held]) + 1)

    def advance(self, said: Holds = "audio") -> None:
        """The position just written counts: one of speech, or of text."""
        for held in {"all", said} & self._places.keys():
            self._places[held].offsets = self._places[held].offsets + 1
            self.lengths[held] = [length + 1 for length in self.lengths[held]]

    def reserve(self) -> None:
        """Room for one position more in every slot."""
        for layer in self.layers:
            capacity = buckets(max(self.lengths[layer.holds]) + 1)
            layer.keys = grown(layer.keys, layer.keys, capacity)
            layer.values = grown(layer.values, layer.values, capacity)

    def take(self, kept: list[int]) -> None:
        """Keep some of the slots, no longer than they need."""
        if kept == list(range(len(self.lengths["all"]))):
            return
        index = mx.array(kept)
        self.lengths = {held: [of[slot] for slot in kept] for held, of in self.lengths.items()}
        for layer in self.layers:
            room = buckets(max(self.lengths[layer.holds]) + 1)
            layer.replace(layer.keys[index][:, :, :room], layer.values[index][:, :, :room])
        self._move({held: offsets[index] for held, offsets in self.offsets.items()})

    def join(self, other: Slots) -> None:
        """Put the other's slots behind these; it gives them up layer by layer."""
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            capacity = max(ours.keys.shape[2], theirs.keys.shape[2])
            keys = [grown(store, store, capacity) for store in (ours.keys, theirs.keys)]
            values = [grown(store, store, capacity) for store in (ours.values, theirs.values)]
            theirs.keys = theirs.values = mx.zeros((0,))
            ours.replace(mx.concatenate(keys), mx.concatenate(values))
        self.lengths = {held: of + other.lengths[held] for held, of in self.lengths.items()}
        theirs = other.offsets
        self._move({held: mx.concatenate([of, theirs[held]]) for held, of in self.offsets.items()})

    def _move(self, offsets: Offsets) -> None:
        rooms = {layer.holds: layer.keys.shape[2] for layer in self.layers}
        self._places = {held: Places(of, rooms[held]) for held, of in offsets.items()}
        for layer in self.layers:
            layer.places = self._places[layer.holds]
