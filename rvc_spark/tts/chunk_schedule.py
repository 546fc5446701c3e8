"""Which tokens are decoded when, so that sound leaves while tokens are still being made.

The codec decodes a token from its neighbours on both sides (`reach` tokens, 67 for the published one). A window is
therefore wider than what is delivered of it:

    tokens     0 ........ 50 ........ 117                    450
    window 1   [== kept ==|~ context ~]
    window 2        [~ context ~|=========== kept ===========|~ context ~]
               start          keep_start                keep_stop     stop

With `context="exact"` the kept samples are those of the whole decode. A smaller context begins earlier and is not
exact; how much not, `tools/benchmark.py spark` prints. Every token is delivered once. Knows no sound and no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rvc_spark.errors import ConfigError

TOKENS_PER_SECOND = 50
MAX_CONTEXT = 1_000
_SECONDS = {"first_seconds": (0.02, 60.0), "max_seconds": (0.02, 60.0), "overlap_seconds": (0.0, 5.0)}


@dataclass(frozen=True)
class ChunkSettings:
    """How streamed speech is cut. Out of range raises ConfigError naming value and range.

    first_seconds: length of the first chunk. scale: each later chunk is this much longer than the one before.
    max_seconds: no chunk is longer. context: tokens waited for after a chunk, "exact" for all that matter.
    overlap_seconds: how much of the chunk before each later one begins with again, for clients that cross-fade.
    """

    first_seconds: float = 1.0
    scale: float = 8.0
    max_seconds: float = 30.0
    context: int | Literal["exact"] = "exact"
    overlap_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in {**_SECONDS, "scale": (1.0, 100.0)}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(
                    f"{name} of streamed speech is {value!r:.40}, it must be {low:g} to {high:g}",
                    f"Try {name}={ChunkSettings.__dataclass_fields__[name].default:g}.",
                )
        whole = isinstance(self.context, int) and not isinstance(self.context, bool)
        if self.context != "exact" and not (whole and 0 <= self.context <= MAX_CONTEXT):
            raise ConfigError(
                f"context of streamed speech is {self.context!r:.40}, it must be 'exact' or 0 to {MAX_CONTEXT} tokens",
                "Use 'exact'; a few tokens begin sooner and are not exact.",
            )
        if self.overlap >= self.first:
            raise ConfigError(
                f"overlap_seconds={self.overlap_seconds:g} is not shorter than first_seconds={self.first_seconds:g}",
                "Use overlap_seconds=0.1 or 0.",
            )

    @property
    def first(self) -> int:
        """Tokens of the first chunk."""
        return math.ceil(self.first_seconds * TOKENS_PER_SECOND)

    @property
    def longest(self) -> int:
        """Tokens of the longest chunk."""
        return max(self.first, math.ceil(self.max_seconds * TOKENS_PER_SECOND))

    @property
    def overlap(self) -> int:
        """Tokens that two chunks share."""
        return math.ceil(self.overlap_seconds * TOKENS_PER_SECOND)


@dataclass(frozen=True)
class Window:
    """Tokens `start..stop` are decoded, the samples of `keep_start..keep_stop` are delivered."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


class ChunkSchedule:
    """The windows of one utterance, asked for as its tokens come.

    reach: tokens on either side a decoded token depends on (`BiCodec.reach`).
    """

    def __init__(self, settings: ChunkSettings, reach: int) -> None:
        self._settings, self._reach = settings, reach
        self._context = reach if settings.context == "exact" else settings.context
        self._chunk = settings.first
        self._known = 0
        self._delivered = 0

    @property
    def delivered(self) -> int:
        """Tokens that have been put into windows."""
        return self._delivered

    @property
    def known(self) -> int:
        """Tokens that are known."""
        return self._known

    def push(self, count: int = 1) -> list[Window]:
        """`count` more tokens are known: the windows that can be decoded now, mostly none.

        So much is held back that the last chunk is long enough for two cross-fades.
        """
        self._known += count
        windows = []
        held = max(self._context, self._settings.overlap)
        while self._known - held >= self._delivered + self._chunk:
            windows.append(self._window(self._delivered + self._chunk))
            self._chunk = min(self._settings.longest, int(self._chunk * self._settings.scale))
        return windows

    def finish(self) -> list[Window]:
        """No more tokens: what is left, in chunks no longer than the longest."""
        windows = []
        while self._delivered < self._known:
            left = self._known - self._delivered
            stop = self._known
            if left > self._settings.longest + self._settings.overlap:
                stop = self._delivered + self._settings.longest
            windows.append(self._window(stop))
        return windows

    def _window(self, keep_stop: int) -> Window:
        """Looks no further than `context`, even where more is known: the result must not depend on who was quicker."""
        keep_start = max(0, self._delivered - self._settings.overlap)
        self._delivered = keep_stop
        return Window(
            max(0, keep_start - self._reach), min(self._known, keep_stop + self._context), keep_start, keep_stop
        )
