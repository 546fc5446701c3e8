"""Keys and values of everything read so far, at fixed addresses, and the three ways of attending to them.

    keys, values [layers, slots, kv_heads, capacity, head_dim]        one slot per running sequence

`PromptAttention` reads a piece of a prompt into one slot. `RowAttention` serves one new token of several slots, each
over exactly its own length (the CPU's way: no work for what is not there, and a row's result cannot depend on its
neighbours). `MaskedAttention` does the same for the first slots at once over one common length (the GPU's way: nothing
in it depends on a number the host would have to know). Refuses to know weights and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rvc_spark.tts.spark_lm_config import LMConfig

ALIGNMENT = 64  # of the capacity: attention kernels read masks in blocks


class KVCache:
    """Memory of `slots` sequences of up to `max_length` tokens.

    `scratch` is a position beyond every sequence: what an idle slot writes lands there.
    """

    def __init__(
        self, config: LMConfig, slots: int, max_length: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.slots, self.max_length, self.scratch = slots, max_length, max_length
        self.capacity = -(-(max_length + 1) // ALIGNMENT) * ALIGNMENT
        shape = (config.layers, slots, config.kv_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # zeros: a masked NaN would still be a NaN
        self.values = torch.zeros(shape, device=device, dtype=dtype)


class PromptAttention:
    """New tokens at positions start .. start + T - 1 of one slot, each seeing itself and everything before."""

    def __init__(self, cache: KVCache, slot: int, start: int, count: int) -> None:
        self._cache, self._slot, self._start, self._stop = cache, slot, start, start + count
        self._mask = None  # a piece that starts the slot is plainly causal
        if start:
            seen = torch.arange(self._stop, device=cache.keys.device)
            self._mask = seen <= seen[start:, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads * D]."""
        keys, values = self._cache.keys[layer, self._slot], self._cache.values[layer, self._slot]
        keys[:, self._start : self._stop] = k.transpose(0, 1)
        values[:, self._start : self._stop] = v.transpose(0, 1)
        heard = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None, :, : self._stop], values[None, :, : self._stop],
            attn_mask=self._mask, is_causal=self._mask is None, enable_gqa=True,
        )  # fmt: skip
        return heard[0].transpose(0, 1).reshape(q.shape[0], -1)


class RowAttention:
    """One new token in each of some slots, at a position the host knows."""

    def __init__(self, cache: KVCache, slots: Sequence[int], positions: Sequence[int]) -> None:
        self._cache = cache
        self._rows = list(zip(slots, positions, strict=True))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, heads, D], k and v [B, kv_heads, D] -> [B, heads * D]."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        rows, heads, width = q.shape
        queries = q.view(rows, 1, k.shape[1], heads // k.shape[1], width)  # those that share a key stand together
        heard = []
        for row, (slot, position) in enumerate(self._rows):
            keys[slot, :, position] = k[row]
            values[slot, :, position] = v[row]
            end = position + 1
            heard.append(
                F.scaled_dot_product_attention(
                    queries[row], keys[slot : slot + 1, :, :end], values[slot : slot + 1, :, :end]
                )
            )
        return (torch.cat(heard) if rows > 1 else heard[0]).reshape(rows, -1)


class MaskedAttention:
    """One new token in each of the first B slots, positions int64 [B] on the device, over `length` cached positions.

    A slot without a sequence has its position at the cache's scratch; what it hears is finite and meaningless.
    """

    def __init__(self, cache: KVCache, positions: Tensor, length: int) -> None:
        self._cache, self._positions, self._length = cache, positions, length
        self._slots = torch.arange(positions.shape[0], device=positions.device)
        seen = torch.arange(length, device=positions.device)
        self._mask = (seen <= positions[:, None])[:, None, None]  # [B, 1, 1, length]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, heads, D], k and v [B, kv_heads, D] -> [B, heads * D]."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._slots, :, self._positions] = k
        values[self._slots, :, self._positions] = v
        rows, heads, width = q.shape
        queries = q.view(rows, k.shape[1], heads // k.shape[1], width)
        heard = F.scaled_dot_product_attention(
            queries, keys[:rows, :, : self._length], values[:rows, :, : self._length], attn_mask=self._mask
        )
        return heard.reshape(rows, -1)
