"""Takes from a text what makes espeak-ng crash, which keeps words, numbers and symbol names in buffers of fixed size.

Found by fuzzing (stack overflows that end the process). Ordinary writing in any script passes unchanged; emoji and
ornaments are left out, as their names, read aloud, are what overflows first. Knows nothing of voices or the library.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MAX_NUMBER = 12
"""Characters of one number, with its points and commas; a longer one is spoken as several."""
MAX_WORD = 40
"""A longer row without a space is spoken as several words."""
MAX_MARKS = 4
"""Accents on one letter; the scripts that stack most need three."""

_NUMBER = re.compile(rf"\d[\d.,٫٬]{{{MAX_NUMBER},}}")
_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")
_KEPT_SYMBOLS = frozenset("°©®±×÷−≈≠≤≥´¨¸¯")
_KEPT_FORMATS = frozenset("\u200c\u200d")  # they shape words in Persian and the Indic scripts
_JOINED_SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "IDEOGRAPHIC": "CJK"}


def tamed(text: str) -> str:
    """The text in a form that is safe to speak; blank where nothing of it can be."""
    if not text.isascii():
        text = _checked_marks("".join(map(_spoken, unicodedata.normalize("NFC", text))))
    text = _NUMBER.sub(lambda run: _grouped(run[0], MAX_NUMBER, ", "), text)
    return _WORD.sub(lambda run: _grouped(run[0], MAX_WORD, " "), text)


def _grouped(run: str, size: int, between: str) -> str:
    return between.join(run[start : start + size] for start in range(0, len(run), size))


@lru_cache(maxsize=4096)
def _spoken(char: str) -> str:
    """What is spoken for one character: itself, its plain form (Ⅷ, ﬁ, ｗ, ⓜ, १), a space, or nothing."""
    if char.isascii():
        return char
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))  # every voice reads 12, few read १२ beside ౧౨
    if category == "Cf":
        return char if char in _KEPT_FORMATS else ""
    if ord(char) >= 0x2000 and category in ("Lu", "Ll", "Lo", "Lm", "Nl", "No", "So", "Po", "Ps", "Pe"):
        plain = unicodedata.normalize("NFKC", char).replace("\u2044", "/")
        if plain != char and all(map(_is_plain, plain)):
            return plain
    if category in ("So", "Sk", "Sm"):
        return char if char in _KEPT_SYMBOLS else " "
    return char if _is_plain(char) else " "


def _is_plain(char: str) -> bool:
    """Whether it is a character of ordinary writing that a voice can have a sound for."""
    if unicodedata.category(char) in ("Cn", "Co", "Cs", "So") or ord(char) > 0xFFFF:
        return False
    return not 0x1100 <= ord(char) <= 0x11FF  # single parts of Korean syllables


def _checked_marks(text: str) -> str:
    """Accents only after letters and only so many; a space where a word changes its script."""
    out: list[str] = []
    marks = MAX_MARKS
    script = ""
    for char in text:
        if unicodedata.category(char)[0] == "M":
            marks += 1
            if marks <= MAX_MARKS:
                out.append(char)
            continue
        if char not in _KEPT_FORMATS:
            marks = 0 if char.isalpha() else MAX_MARKS
            own = _script(char) if char.isalpha() else ("" if char.isspace() else script)
            if own and script and own != script:
                out.append(" ")
            script = own
        out.append(char)
    return "".join(out)


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The first word of a letter's name, which is its script: LATIN, CYRILLIC, CJK."""
    first = unicodedata.name(letter, "?").split()[0]
    return _JOINED_SCRIPTS.get(first, first)
