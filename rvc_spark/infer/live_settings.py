"""How far a live conversion looks back and ahead, and in what steps it goes.

    ... context ...|---- block ----|-- lookahead --|          what the networks hear for one block
                   ^ comes out now ^..^ crossfade: made now, joined with the next block

All four are rounded to the 20 ms of a content frame (the crossfade to 10 ms), so every block hears the same grid as the
whole recording would.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from rvc_spark.errors import ConfigError
from rvc_spark.infer.segments import FEATURE_HOP, HOP, SAMPLE_RATE

FEATURE_SECONDS = FEATURE_HOP / SAMPLE_RATE
FRAME_SECONDS = HOP / SAMPLE_RATE


def _seconds(default: float | None, help: str, low: float, high: float) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "unit": "s"})


@dataclass(frozen=True)
class Grid:
    """A LiveSettings in frames of 10 ms."""

    block: int
    context: int
    lookahead: int
    crossfade: int

    @property
    def window(self) -> int:
        """Frames the networks see for one block."""
        return self.context + self.block + self.lookahead


@dataclass(frozen=True)
class LiveSettings:
    """Delay against fidelity, in seconds. Out of range raises ConfigError naming value and range."""

    block: float | None = _seconds(
        None, "how much is converted at once; None measures which keeps up on this machine", 0.02, 2
    )
    context: float = _seconds(2.0, "past the networks hear; more is nearer to the whole recording, and slower", 0.2, 10)
    lookahead: float = _seconds(0.12, "future the networks hear; adds to the delay", 0.02, 1)
    crossfade: float = _seconds(0.02, "over which two blocks are joined, inside the lookahead", 0.01, 0.1)

    def __post_init__(self) -> None:
        for item in fields(self):
            value, low, high = getattr(self, item.name), item.metadata["low"], item.metadata["high"]
            if value is None and item.name == "block":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(
                    f"{item.name}={value!r} is outside {low:g} to {high:g} s", "Choose a value in that range."
                )
        if self.crossfade > self.lookahead:
            raise ConfigError(
                f"crossfade={self.crossfade:g} is longer than lookahead={self.lookahead:g}, inside which it lies",
                "Make the lookahead longer or the crossfade shorter.",
            )

    def grid(self, block: float) -> Grid:
        """The steps for a block of so many seconds."""

        def even(seconds: float) -> int:
            return 2 * max(1, round(seconds / FEATURE_SECONDS))

        lookahead = even(self.lookahead)
        return Grid(even(block), even(self.context), lookahead, min(round(self.crossfade / FRAME_SECONDS), lookahead))
