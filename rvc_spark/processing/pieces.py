"""A text in pieces that a neural speech engine can keep in mind: sentences, the short ones together, the long ones cut.

One rule for every way to Spark-TTS, so that the same text and seed are the same sound in process and on a server.
Works from the text alone.
"""

from __future__ import annotations

from rvc_spark.processing.utils import (
    MAX_SENTENCE_CHARS,
    MIN_SENTENCE_CHARS,
    normalise_text,
    split_text_and_validate,
)

PIECE_CHARS = 200
"""Longest piece unless asked otherwise, about 15 s."""
WIDE_CHARS = 60
"""The same for scripts of wide letters, whatever is asked."""
SHORT_CHARS = 40
"""A piece shorter than this is spoken together with the next: very short texts are what the models fail at."""


def speech_pieces(text: str, max_chars: int = PIECE_CHARS, language: str | None = None) -> list[str]:
    """Pieces in order, of at most `max_chars`; nothing is lost. Raises TextError as `split_text_and_validate`."""
    text = normalise_text(text)
    wide = sum(map(is_wide, text[:10_000])) > len(text[:10_000]) / 4
    most = min(max_chars, WIDE_CHARS) if wide else max_chars
    joint = "" if wide else " "
    pieces: list[str] = []
    longest = max(MIN_SENTENCE_CHARS, min(most, MAX_SENTENCE_CHARS))
    for sentence in split_text_and_validate(text, max_chars=longest, language=language):
        if pieces and len(pieces[-1]) < min(SHORT_CHARS, most // 2) and len(pieces[-1]) + len(sentence) < most:
            pieces[-1] += joint + sentence
        else:
            pieces.append(sentence)
    return pieces


def is_wide(char: str) -> bool:
    """Whether a character belongs to a script whose letters stand for a syllable or a word."""
    return ord(char) >= 0x2E80
