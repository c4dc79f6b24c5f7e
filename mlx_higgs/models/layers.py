"""Layers the talkers share: attention with a cache, gated FFN, routing by modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..memory import on_cpu
from .cache import KVCache, SlotCache
from .rotary import Rotation, Turn

Cache = KVCache | SlotCache
Layer = Callable[[mx.array], mx.array]
Change = Callable[[mx.array, Rotation], mx.array]
Modality = Literal["text", "audio"]


@dataclass(frozen=True)
class AttentionArgs:
    """Grouped-query attention: its widths.

    ``qk_norm_eps``: normalise each head's queries and keys before their positions (Qwen3).
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qk_norm_eps: float | None = None


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions, no biases.

    Attributes:
        SPLIT: its matrices that ``shard`` cuts, by heads, and how.
    """

    SPLIT: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "all-to-sharded"),
        "o_proj": "sharded-to-all",
    }

    def __init__(self, args: AttentionArgs):
        super().__init__()
        D, d = args.hidden_size, args.head_dim
        self.num_heads, self.num_kv_heads, self.head_dim = args.num_heads, args.num_kv_heads, d
        self.q_proj = nn.Linear(D, args.num_heads * d, bias=False)
        self.k_proj = nn.Linear(D, args.num_kv_heads * d, bias=False)
        self.v_proj = nn.Linear(D, args.num_kv_heads * d, bias=False)
        self.o_proj = nn.Linear(args.num_heads * d, D, bias=False)
        if args.qk_norm_eps is not None:
            self.q_norm = nn.RMSNorm(d, eps=args.qk_norm_eps)
            self.k_norm = nn.RMSNorm(d, eps=args.qk_norm_eps)

    def __call__(self, x: mx.array, cache: Cache | None, turn: Rotation) -> mx.array:
        """``[B, S, D]`` after what ``cache`` holds; None when ``x`` is all there is.

        ``turn`` is the rotation of these positions (see ``Rotary.at``).
        """
        B, S, _ = x.shape
        q, k, v = self._project(x, turn)
        scale = self.head_dim**-0.5
        if cache is not None:
            k, v = cache.update(k, v)
            out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=cache.mask(S))
        else:
            out = _attend(q, k, v, scale)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, S, -1))

    def _project(self, x: mx.array, turn: Rotation) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values ``[B, heads, S, head_dim]``, at their positions."""
        qkv: Any = self.get("qkv_proj")
        if qkv is None:
            q = turn(self._normed(self._heads(self.q_proj(x)), "q_norm"))
            k = turn(self._normed(self._heads(self.k_proj(x)), "k_norm"))
            return q, k, self._heads(self.v_proj(x))
        heads = self._heads(qkv(x))
        rotated = self.num_heads + self.num_kv_heads
        both = turn(self._normed(heads[:, :rotated], "qk_norm"))
        return both[:, : self.num_heads], both[:, self.num_heads :], heads[:, rotated:]

    def _normed(self, heads: mx.array, norm: str) -> mx.array:
        return self[norm](heads) if norm in self else heads

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)

    def narrow(self, parts: int) -> None:
        """Hold one of so many parts of the heads."""
        self.num_heads //= parts
        self.num_kv_heads //= parts

    def fuse(self) -> None:
        """One multiplication for queries, keys and values, where all three are stored alike."""
        fuse_linears(self, ("q_proj", "k_proj", "v_proj"), "qkv_proj")
        if "qkv_proj" in self and "q_norm" in self:
            norms = [self.q_norm] * self.num_heads + [self.k_norm] * self.num_kv_heads
            self.qk_norm = HeadNorm(norms)
            del self.q_norm, self.k_norm


class HeadNorm(nn.Module):
    """The norms of heads ``[B, heads, S, head_dim]`` at once, each with a weight of its own."""

    def __init__(self, norms: list[nn.RMSNorm]):
        super().__init__()
        self.weight = mx.stack([norm.weight for norm in norms])[:, None]
        self.eps = norms[0].eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, None, self.eps) * self.weight


def _attend(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Causal attention ``[B, heads, S, head_dim]`` of all positions there are, in training."""
    if not on_cpu():
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
    # the fast one computes everything again for its gradient, and the exponentials are what a CPU
    # spends its time on
    B, heads, S, d = q.shape
    shared = k.shape[1]
    grouped = (scale * q).reshape(B, shared, heads // shared * S, d)
    scores = (grouped @ k.swapaxes(-1, -2)).reshape(B, heads, S, S)
    later = mx.triu(mx.full((S, S), -mx.inf, scores.dtype), k=1)
    weights = mx.softmax(scores + later, axis=-1, precise=True)
    return (weights.reshape(B, shared, -1, S) @ v).reshape(B, heads, S, d)


class MLP(nn.Module):
    """Gated feed-forward network: ``down(silu(gate(x)) * up(x))``.

    Attributes:
        SPLIT: its matrices that ``shard`` cuts, by columns of what is between them, and how.
    """

    SPLIT: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("gate_proj", "up_proj"), "all-to-sharded"),
        "down_proj": "sharded-to-all",
    }

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        both: Any = self.get("gate_up_proj")
        if both is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = mx.split(both(x), 2, axis=-1)
        return self.down_proj(_gated(gate, up))

    def fuse(self) -> None:
        """One multiplication for gate and up, where both are stored alike."""
        fuse_linears(self, ("gate_proj", "up_proj"), "gate_up_proj")


@partial(mx.compile, shapeless=True)
def _gated(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) * up`` in one kernel."""
    return gate * mx.sigmoid(gate) * up


def fuse_linears(parent: nn.Module, names: tuple[str, ...], joined: str) -> None:
    """Put the rows of some linear layers into one, the quantised too: each row has its own scales.

    Layers that an adapter wraps, or that are stored in different ways, stay as they are.
    """
    layers = [parent[name] for name in names if name in parent]
    kinds = {_storage(layer) for layer in layers}
    if len(layers) < len(names) or len(kinds) > 1 or None in kinds:
        return
    whole = layers[0]
    rows = {key: mx.concatenate([layer[key] for layer in layers]) for key in whole.parameters()}
    whole.update(rows)
    for name in names:
        del parent[name]
    parent[joined] = whole


def _storage(layer: nn.Module) -> tuple | None:
    """How a linear layer's rows are stored; None for anything else, an adapter for one."""
    if type(layer) is nn.Linear:
        return (layer.weight.dtype, *sorted(layer.parameters()))
    if type(layer) is nn.QuantizedLinear:
        return (layer.bits, layer.group_size, layer.mode, *sorted(layer.parameters()))
    return None


class Route:
    """Sends every position of ``[B, S, D]`` through the text or the audio function, each once.

    Args:
        is_audio: host-side bool ``[B, S]``, or None when all positions are audio. Deciding on
            the host is what keeps the other path's weights out of the graph.
    """

    def __init__(self, is_audio: np.ndarray | None):
        self._is_audio, self._parts = is_audio, {}
        flat = np.ones(1, dtype=bool) if is_audio is None else is_audio.reshape(-1)
        self._all = "audio" if flat.all() else "text" if not flat.any() else None
        if self._all is None:
            order = np.concatenate([np.flatnonzero(~flat), np.flatnonzero(flat)])
            self._num_text = int((~flat).sum())
            self._order, self._back = mx.array(order), mx.array(np.argsort(order))

    def __call__(self, x: mx.array, text: Layer, audio: Layer) -> mx.array:
        if self._all is not None:
            return audio(x) if self._all == "audio" else text(x)
        flat: Any = _permuted(x.reshape(-1, x.shape[-1]), self._order, self._back)
        parts = [text(flat[: self._num_text]), audio(flat[self._num_text :])]
        whole: Any = _permuted(mx.concatenate(parts), self._back, self._order)
        return whole.reshape(*x.shape[:-1], -1)

    def only(self, modality: Modality, x: mx.array, turn: Turn, change: Change) -> mx.array:
        """``x`` with the positions of one modality changed; the others pass by.

        Args:
            change: positions ``[B, n, D]`` by themselves, in their order, and their rotation ->
                what becomes of them. With a cache of its own B is 1, or S is.
        """
        if self._all is not None:
            return change(x, turn) if self._all == modality else x
        if modality not in self._parts:
            assert self._is_audio is not None
            self._parts[modality] = Part(self._is_audio == (modality == "audio"))
        return self._parts[modality](x, turn, change)


class Part:
    """The positions of one modality among ``[B, S]``, first and in their order.

    Where a sequence has fewer than another, those of the other modality fill it up: they come
    after all of its own, so nothing that counts looks at them.
    """

    def __init__(self, mine: np.ndarray):
        B, S = mine.shape
        counts = mine.sum(axis=1)
        order = np.argsort(~mine, axis=1, kind="stable")
        flat = (order + S * np.arange(B)[:, None]).reshape(-1)
        self._order, self._back = mx.array(flat), mx.array(np.argsort(flat))
        self._places = mx.array(order[:, : counts.max()])
        self._mine = mx.array(np.arange(counts.max()) < counts[:, None])[..., None]

    def __call__(self, x: mx.array, turn: Turn, change: Change) -> mx.array:
        n = self._places.shape[1]
        sorted_: Any = _permuted(x.reshape(-1, x.shape[-1]), self._order, self._back)
        sorted_ = sorted_.reshape(x.shape)
        first, rest = sorted_[:, :n], sorted_[:, n:]
        first = mx.where(self._mine, change(first, turn.of(self._places)), first)
        whole = mx.concatenate([first, rest], axis=1).reshape(-1, x.shape[-1])
        back: Any = _permuted(whole, self._back, self._order)
        return back.reshape(x.shape)


@mx.custom_function
def _permuted(x: mx.array, order: mx.array, back: mx.array) -> mx.array:
    """Rows ``[N, D]`` in another order; ``back`` undoes it."""
    return x[order]


@_permuted.vjp
def _permuted_vjp(primals: Any, cotangent: Any, _: Any) -> tuple:
    # left to itself, the gradient of a gather is a scatter, which adds row by row
    _, order, back = primals
    return cotangent[back], mx.zeros_like(order), mx.zeros_like(back)
