"""Keys and values of the positions already computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import mlx.core as mx

BUCKET = 256  # positions; one allocation for about ten seconds of speech


def buckets(positions: int) -> int:
    """The capacity that holds so many positions."""
    return max(1, math.ceil(positions / BUCKET)) * BUCKET


class KVCache:
    """Keys and values of one layer, ``[B, kv_heads, capacity, head_dim]``, grown in place.

    All B are equally long, and their length is known to the host.
    """

    def __init__(self):
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0  # positions filled

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in (self.keys, self.values) if store is not None)

    def copy(self) -> KVCache:
        """A cache of its own over the same arrays, which its first append copies."""
        copied = KVCache()
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
    """Where the requests of ``Slots`` stand. The layers share it, and it holds none of them.

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

    def __init__(self, places: Places, keys: mx.array, values: mx.array):
        self.places, self.keys, self.values = places, keys, values

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


class Slots:
    """The caches of B requests that are differently long, one slot each.

    Attributes:
        layers: one ``SlotCache`` a layer.
        lengths: positions filled, for the host; empty while a step is being compiled.
    """

    def __init__(
        self,
        offsets: mx.array,
        stores: Iterable[tuple[mx.array, mx.array]],
        lengths: Iterable[int] = (),
    ):
        stores = list(stores)
        self._places = Places(offsets, stores[0][0].shape[2])
        self.layers = [SlotCache(self._places, keys, values) for keys, values in stores]
        self.lengths = list(lengths)

    @classmethod
    def of(cls, caches: Sequence[KVCache]) -> Slots:
        """One request's caches, a layer each, as a batch of one."""
        offset = caches[0].offset
        stores = [(c.keys, c.values) for c in caches if c.keys is not None and c.values is not None]
        return cls(mx.array([offset], dtype=mx.int32), stores, [offset])

    @property
    def offsets(self) -> mx.array:
        """The lengths on the device, int32 ``[B]``."""
        return self._places.offsets

    @property
    def capacity(self) -> int:
        return self.layers[0].keys.shape[2]

    def begin(self) -> None:
        """Make room for one position more in every slot, and look no further than that."""
        longest = max(self.lengths) + 1
        self.reserve(longest)
        self._places.see(longest)

    def advance(self) -> None:
        """The position just written counts."""
        self._places.offsets = self.offsets + 1
        self.lengths = [length + 1 for length in self.lengths]

    def reserve(self, positions: int) -> None:
        """Room for so many positions in every slot."""
        for layer in self.layers:
            layer.keys = grown(layer.keys, layer.keys, buckets(positions))
            layer.values = grown(layer.values, layer.values, buckets(positions))

    def take(self, kept: list[int]) -> None:
        """Keep some of the slots, no longer than they need."""
        if kept == list(range(len(self.lengths))):
            return
        index = mx.array(kept)
        self.lengths = [self.lengths[slot] for slot in kept]
        room = buckets(max(self.lengths) + 1)
        for layer in self.layers:
            layer.replace(layer.keys[index][:, :, :room], layer.values[index][:, :, :room])
        self._places = self._moved(self.offsets[index])

    def join(self, other: Slots) -> None:
        """Put the other's slots behind these; it gives them up layer by layer."""
        capacity = max(self.capacity, other.capacity)
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            keys = [grown(store, store, capacity) for store in (ours.keys, theirs.keys)]
            values = [grown(store, store, capacity) for store in (ours.values, theirs.values)]
            theirs.keys = theirs.values = mx.zeros((0,))
            ours.replace(mx.concatenate(keys), mx.concatenate(values))
        self.lengths += other.lengths
        self._places = self._moved(mx.concatenate([self.offsets, other.offsets]))

    def _moved(self, offsets: mx.array) -> Places:
        places = Places(offsets, self.capacity)
        for layer in self.layers:
            layer.places = places
        return places
