"""Takes from a text what makes espeak-ng crash, which keeps words, numbers and symbol names in buffers of fixed size.

Found by fuzzing (overflows that end the process). What overflows first is what is not writing in the voice's language:
emoji, ornaments and letters of other alphabets, which the library spells out by name or number. They are left out.
Latin and Greek letters pass in every voice, and the language's own alphabet in its own.
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

_LANGUAGES = {  # alphabet, as Unicode names its letters -> languages written in it
    "CYRILLIC": "ru be bg uk mk sr bs kk ky tt ba cv nog",
    "ARABIC": "ar fa ur sd ug ku",
    "HEBREW": "he",
    "DEVANAGARI": "hi mr ne kok",
    "BENGALI": "bn as bpy",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "ORIYA": "or",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "MYANMAR": "my shn",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy hyw",
    "ETHIOPIC": "am ti",
    "CHEROKEE": "chr",
    "HANGUL": "ko",
    "CJK": "cmn yue hak ja ko",
    "BOPOMOFO": "cmn",
}
_JOINED = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "IDEOGRAPHIC": "CJK"}
_NO_GREEK = {"vi"}  # this dictionary has no way of naming a foreign letter
_SYMBOLS = frozenset(
    "!\"#$%&'()*+,-./:;<=>?@¡¢£¥§©«®°±´·¶»¿×÷–—‘’‚“”„…′″‰€₩₪₫₴₹₺₽−≈≠≤≥،؛؟۔।॥、。〈〉《》「」『』【】・〜！？：；"
)
_KEPT_FORMATS = frozenset("\u200c\u200d")  # they shape words in Persian and the Indic scripts
_NUMBER = re.compile(rf"\d[\d.,]{{{MAX_NUMBER},}}")
_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")


def tamed(text: str, voice: str) -> str:
    """The text in a form that is safe to speak; blank where nothing of it can be.

    voice: the library's identifier, such as gmw/en-US+f3.
    """
    alphabets = _alphabets(voice)
    text = "".join(_spoken(char, alphabets) for char in unicodedata.normalize("NFC", text))
    if not text.isascii():
        text = _checked_marks(text)
    text = _NUMBER.sub(lambda run: _grouped(run[0], MAX_NUMBER, ", "), text)
    return _WORD.sub(lambda run: _grouped(run[0], MAX_WORD, " "), text)


def _grouped(run: str, size: int, between: str) -> str:
    return between.join(run[start : start + size] for start in range(0, len(run), size))


@lru_cache(maxsize=256)
def _alphabets(voice: str) -> frozenset[str]:
    language = re.split(r"[-+]", voice.split("/")[-1])[0]
    own = {alphabet for alphabet, languages in _LANGUAGES.items() if language in languages.split()}
    return frozenset(own | {"LATIN"} | (set() if language in _NO_GREEK else {"GREEK"}))


@lru_cache(maxsize=16_384)
def _spoken(char: str, alphabets: frozenset[str]) -> str:
    """What is spoken for one character: itself, its plain form (Ⅷ, ﬁ, ｗ, ⓜ, १), a space, or nothing."""
    if char in _SYMBOLS or char.isspace() or (char.isascii() and char.isalnum()):
        return char
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))  # every voice reads 12, few read १२ beside ౧౨
    if category == "Cf":
        return char if char in _KEPT_FORMATS else ""
    if category[0] == "M":
        return char
    plain = unicodedata.normalize("NFKC", char).replace("\u2044", "/")
    if plain != char and ord(char) >= 0x2000:
        return "".join(_spoken(part, alphabets) for part in plain)
    known = ord(char) <= 0xFFFF and (category[0] == "L" and _alphabet(char) in alphabets or category == "No")
    return char if known else " "


def _checked_marks(text: str) -> str:
    """Accents only after letters and only so many; a space where a word changes its alphabet."""
    out: list[str] = []
    marks = MAX_MARKS
    alphabet = ""
    for char in text:
        if unicodedata.category(char)[0] == "M":
            marks += 1
            if marks <= MAX_MARKS:
                out.append(char)
            continue
        if char not in _KEPT_FORMATS:
            marks = 0 if char.isalpha() else MAX_MARKS
            own = _alphabet(char) if char.isalpha() else ("" if char.isspace() else alphabet)
            if own and alphabet and own != alphabet:
                out.append(" ")
            alphabet = own
        out.append(char)
    return "".join(out)


@lru_cache(maxsize=16_384)
def _alphabet(letter: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK."""
    if letter in "ªºµ":
        return "LATIN"
    first = unicodedata.name(letter, "?").split()[0]
    return _JOINED.get(first, first)
