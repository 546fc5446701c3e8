"""Takes from a text what makes espeak-ng crash: it keeps words and numbers in buffers of fixed size.

Found by fuzzing (stack overflows that end the process). What a person would write passes unchanged. Knows nothing of
voices or of the library's calls.
"""

from __future__ import annotations

import re
import unicodedata

MAX_DIGITS = 12
"""A longer row of digits is spoken as several numbers; nobody follows 'nine hundred quintillion' anyway."""
MAX_WORD = 40
"""A longer row without a space is spoken as several words."""
MAX_MARKS = 4
"""Accents stacked on one letter; the languages that stack most need three."""

_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")
_UNKNOWN = {"Cn", "Co", "Cs"}  # unassigned, private use: no voice has a sound for them


def tamed(text: str) -> str:
    """The text in a form that is safe to speak; never empty where the text was not."""
    if not text.isascii():
        text = _without_unknown(text)
    text = _DIGITS.sub(lambda run: _grouped(run[0], MAX_DIGITS, ", "), text)
    return _WORD.sub(lambda run: _grouped(run[0], MAX_WORD, " "), text)


def _grouped(run: str, size: int, between: str) -> str:
    return between.join(run[start : start + size] for start in range(0, len(run), size))


def _without_unknown(text: str) -> str:
    """Characters without meaning become spaces, and towers of accents are cut down."""
    out = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category[0] == "M" else 0
        if category in _UNKNOWN:
            out.append(" ")
        elif marks <= MAX_MARKS:
            out.append(char)
    return "".join(out)
