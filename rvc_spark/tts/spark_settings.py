"""How Spark-TTS speaks: every setting with its range, and how a text becomes pieces and token limits.

Imports no torch: the server's front model uses it as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rvc_spark.errors import ConfigError
from rvc_spark.processing.pieces import PIECE_CHARS, is_wide, speech_pieces
from rvc_spark.processing.utils import MIN_SENTENCE_CHARS
from rvc_spark.tts.chunk_schedule import TOKENS_PER_SECOND, ChunkSettings

SAMPLES_PER_TOKEN = 320
MAX_TOKENS = 3_000
"""Tokens of one piece of text, 60 s; the model was trained on less."""
_SECONDS_PER_WIDE = 0.25  # slow reading of Chinese or Japanese
_SECONDS_PER_DIGIT = 0.35  # "7" is "seven"
_SECONDS_PER_LETTER = 0.08
_LIMIT_SECONDS, _LIMIT_FACTOR = 3.0, 3.0  # what is allowed beyond a slow reading before it counts as running away
_RANGES = {
    "temperature": (0.0, 5.0), "top_k": (0, 1_000_000), "top_p": (0.01, 1.0), "max_chars": (MIN_SENTENCE_CHARS, 1_000),
    "pause_seconds": (0.0, 10.0), "attempts": (1, 20), "lookahead": (0, 8),
}  # fmt: skip


@dataclass(frozen=True)
class SparkSettings:
    """Settings of Spark-TTS. Out of range raises ConfigError naming value and range.

    temperature, top_k, top_p: of sampling, in this order; temperature 0 takes the likeliest token, top_k 0 keeps all.
    seed: same seed, same speech; None draws one, which is told with the result.
    max_tokens: where each piece is ended, in semantic tokens of 20 ms; None: no piece is cut, and one that goes on for
    much longer than its text can take has run away.
    max_chars: longest piece of a text. pause_seconds: silence between pieces. lookahead: pieces begun early.
    attempts: how often a piece that came out empty or ran away is tried, each time with another seed.
    chunks: how the sound is cut while it is being made.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    seed: int | None = None
    max_tokens: int | None = None
    max_chars: int = PIECE_CHARS
    pause_seconds: float = 0.2
    lookahead: int = 1
    attempts: int = 4
    chunks: ChunkSettings = field(default_factory=ChunkSettings)

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            kinds = int | float if isinstance(SparkSettings.__dataclass_fields__[name].default, float) else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                self._refuse(name, value, f"{low:g} to {high:g}")
        for name, high in (("seed", 2**63 - 1), ("max_tokens", MAX_TOKENS)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high):
                self._refuse(name, value, f"None or 0 to {high}")

    @staticmethod
    def _refuse(name: str, value: object, span: str) -> None:
        default = SparkSettings.__dataclass_fields__[name].default
        raise ConfigError(f"{name} of Spark-TTS is {value!r:.40}, it must be {span}", f"Try {name}={default}.")

    def limit_for(self, text: str) -> int:
        """Semantic tokens a piece may take before it counts as having run away."""
        if self.max_tokens is not None:
            return max(1, self.max_tokens)
        seconds = _LIMIT_SECONDS + _LIMIT_FACTOR * slow_reading_seconds(text)
        return min(MAX_TOKENS, math.ceil(seconds * TOKENS_PER_SECOND))

    def pieces(self, text: str) -> list[str]:
        """The text in pieces the model can keep in mind. Raises TextError."""
        return speech_pieces(text, self.max_chars)


def slow_reading_seconds(text: str) -> float:
    """How long a slow reader takes."""
    wide = sum(map(is_wide, text))
    digits = sum(map(str.isdigit, text))
    other = len(text) - wide - digits
    return wide * _SECONDS_PER_WIDE + digits * _SECONDS_PER_DIGIT + other * _SECONDS_PER_LETTER
