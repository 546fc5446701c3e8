"""How the next token is drawn from logits: temperature, then top-k, then top-p, then one number of the seed's stream.

    logits / temperature -> the k largest -> of those, the largest whose predecessors together stay below p -> draw

The draw is an inverse distribution: the kept ids stand in ascending order, each as wide as its probability, and a
number u in 0..1 points at one. u is number `step` of the counter-based stream of `seed` (Philox, Salmon et al. 2011),
so it depends neither on the device nor on what else is being made; and because the order is that of the ids, rounding
that swaps two nearly equal logits moves no border by more than their difference. Refuses to know networks, requests.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rvc_spark.errors import ConfigError

MAX_SEED = 2**64 - 1
TIES = 14  # logits equal to the k-th that are kept beyond k; bfloat16 logits are coarse
WIDTH_STEP = 64  # candidates are looked at in multiples of this, so that few sizes occur
NOTHING = -1  # what `choose` answers for a row that has no finite logit


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises ConfigError for a value out of range.

    temperature: 0 always takes the likeliest token; below 1 prefers it; 0 to 10.
    top_k: how many of the likeliest tokens may come, 0 for all.
    top_p: the likeliest tokens whose probabilities reach this may come, above 0 to 1.
    seed: same seed, same tokens; None draws a new one.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, isinstance(self.temperature, int | float), 0.0, 10.0)
        _check("top_k", self.top_k, isinstance(self.top_k, int), 0, 1_000_000)
        _check("top_p", self.top_p, isinstance(self.top_p, int | float), 1e-6, 1.0)
        if self.seed is not None:
            _check("seed", self.seed, isinstance(self.seed, int), 0, MAX_SEED)
        if 0 < self.temperature < 1e-3:
            raise ConfigError(f"temperature={self.temperature!r} is too small", "Use 0 for the likeliest token.")

    def resolved_seed(self) -> int:
        """The seed, or a new one (32 bits, easy to note down)."""
        return secrets.randbits(32) if self.seed is None else self.seed


def _check(name: str, value: float, typed: bool, low: float, high: float) -> None:
    if isinstance(value, bool) or not typed or not low <= value <= high:  # NaN compares false
        raise ConfigError(f"{name}={str(value)[:40]}", f"It must be {low:g} to {high:g}.")


def uniforms(seed: int, count: int) -> np.ndarray:
    """The first `count` numbers in 0 <= u < 1 of a seed's stream: float64 [count], the same on every machine."""
    return (np.random.Philox(key=seed).random_raw(count) >> 32) * 2.0**-32


def candidates(top_k: int, columns: int) -> int:
    """How many logits of a row `choose` has to look at for this top_k (0: all), of `columns`."""
    wanted = -(-(top_k + TIES) // WIDTH_STEP) * WIDTH_STEP if top_k else columns
    return min(wanted, columns)


@dataclass(frozen=True)
class Draws:
    """The settings of the rows of one step, on the device of their logits."""

    temperature: Tensor  # float32 [B], 0 for greedy
    top_k: Tensor  # int64 [B], 0 for all
    top_p: Tensor  # float64 [B] (float32 where the device has no float64)
    uniform: Tensor  # as top_p: the number that draws


def choose(logits: Tensor, draws: Draws, width: int) -> Tensor:
    """Draw one column per row, all rows at once and without asking the device anything.

    Same candidates and probabilities as transformers' temperature, top-k and top-p warpers in this order, except that
    of logits equal to the k-th at most `width` - k more are kept.

    Args:
        logits: [B, A] of any float type.
        width: at least `candidates` of every row's top_k.

    Returns:
        int64 [B], columns of `logits`; NOTHING where a row's largest logit is not finite.
    """
    largest, columns, weights = _kept(logits, draws, width)
    columns, order = columns.sort(dim=-1)
    reached = weights.gather(1, order).cumsum(-1)
    target = torch.where(draws.temperature > 0, draws.uniform, 0.0)[:, None] * reached[:, -1:]
    place = (reached <= target).sum(-1, keepdim=True).clamp_(max=columns.shape[1] - 1)
    return torch.where(torch.isfinite(largest[:, 0]), columns.gather(1, place)[:, 0], NOTHING)


def kept_probabilities(logits: Tensor, draws: Draws) -> Tensor:
    """The distribution `choose` draws from: [B, A], 0 for what may not come; for tests and for looking at a model."""
    _, columns, weights = _kept(logits, draws, logits.shape[1])
    full = torch.zeros(logits.shape, dtype=weights.dtype, device=weights.device).scatter_(1, columns, weights)
    return full / full.sum(-1, keepdim=True)


def _kept(logits: Tensor, draws: Draws, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logits [B, width] falling, their columns, and their weights: proportional to probability, or 0."""
    scaled = logits.float() / torch.where(draws.temperature > 0, draws.temperature, 1.0)[:, None]
    largest, columns = scaled.topk(width, dim=-1)
    last = torch.where(draws.top_k > 0, draws.top_k, width).clamp_(max=width) - 1
    likely = largest >= largest.gather(1, last[:, None])
    likely &= (draws.temperature > 0)[:, None] | (largest == largest[:, :1])  # greedy: the likeliest, first by id
    weights = torch.exp(largest.to(draws.uniform.dtype) - largest[:, :1]) * likely
    reached = weights.cumsum(-1)
    within = reached - weights < (draws.top_p[:, None] * reached[:, -1:])
    within |= draws.top_p[:, None] >= 1.0  # by rounding the smallest would fail
    return largest, columns, weights * within
