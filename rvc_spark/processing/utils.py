"""Text splitting and validation: whatever people paste becomes sentences a speech engine can take one by one.

Works from the text alone, by rules: it knows no speech engine and no dictionary beyond a table of abbreviations.
Nothing is lost or reordered: the sentences without their white space are the text without its own.

    text -> normalise (refuse what cannot be spoken) -> blocks (paragraphs, list items, headings)
         -> sentences -> pieces of at most max_chars (clauses, then words, then hard)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from rvc_spark.errors import TextError
from rvc_spark.processing.abbreviations import (
    MONTHS,
    NUMBERED,
    ORDINAL_LANGUAGES,
    STARTERS,
    WEEKDAYS,
    Abbreviations,
    abbreviations,
)

MAX_TEXT_CHARS = 200_000
"""Longest text taken at once, in characters; about four hours of speech."""
DEFAULT_SENTENCE_CHARS = 300
"""Longest piece handed to an engine unless asked otherwise; neural engines lose the thread beyond it."""
MIN_SENTENCE_CHARS = 20
MAX_SENTENCE_CHARS = 5_000
"""Range of max_chars."""
WRAPPED_LINE_CHARS = 40
"""A line at least this long that ends without a stop was broken by its width, not by its author."""
WRAPPED_WIDE_CHARS = 20
"""The same for scripts whose letters are twice as wide and written without spaces."""

_SPACELESS_STOPS = "。！？｡．؟۔।॥။።។៕‼⁇⁈⁉"
_STOPS = ".!?…‽" + _SPACELESS_STOPS
_CLOSERS = "\\\"'”’»›)\\]}」』）】〉》〗｣＂"
_OPENERS = "\"'“‘„‚«‹»›([{「『（【〈《¿¡—–-*_#•"
_EMOJI = "\u2600-\u27bf\u2b50\u2b55\ufe0f\u200d\U0001f000-\U0001faff"
# After the stop: what closes (“ and « close in German and Danish, « opens elsewhere), footnote marks, a smiley.
_STOP = (
    rf"(?P<run>[{_STOPS}]+)(?P<close>(?:[{_CLOSERS}]|[“«‹](?=\s|$)| »(?=[\s,.;]|$))*)"
    rf"(?:\[\d{{1,3}}\])*(?: ?[{_EMOJI}]+(?=\s|$))*"
)
_AFTER = re.compile(rf" ?[{re.escape(_OPENERS)} ]{{0,6}}(?P<word>[\w']{{0,24}})(?P<dot>\.?)")
_WORD_BEFORE = re.compile(rf"[^\s{re.escape('([{')}\"“‘„«»‹›¿¡/—–]*$")
_SPACED_INITIALS = re.compile(r"(?:^|[\s(])((?:\w\. ){1,3}\w{1,3})$")
_DOTTED = re.compile(r"(?:\w{1,2}\.-?)+\w")
_ROMAN = re.compile(r"[IVXLC]+")
_LIST_ITEM = re.compile(r"(?:[-*+•‣▪◦●–—] |\(?\w{1,3}[.)] |\d{1,3}[.)])")
_STRONG_CLAUSE = re.compile(rf"(?:[;:؛—–…][{_CLOSERS}]*(?= )|[；：]| (?=[—–(]))")
_CLAUSE = re.compile(rf"(?:[,،;:؛)\]—–][{_CLOSERS}]*(?= )|[、，；：])")
_UNCUT_RUN = re.compile(r"[!-~\u00a1-\u052f]+")  # a Latin, Greek or Cyrillic word or URL in text without spaces
_FLAG_LETTERS = re.compile("[\U0001f1e6-\U0001f1ff]+$")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028]")


def split_text_and_validate(
    text: str, *, max_chars: int = DEFAULT_SENTENCE_CHARS, language: str | None = None
) -> list[str]:
    """Sentences of a text, in order, each with at most `max_chars` characters.

    language: a code such as "en" or "de-AT" to choose abbreviations and ordinals; without it those of all known
    languages are used. Longer sentences are cut after clauses, then between words; a word or address is cut only if it
    alone exceeds `max_chars`.

    Raises TextError: empty, nothing to speak (punctuation, emoji), over MAX_TEXT_CHARS, control characters, unpaired
    surrogates, not a str; or max_chars out of its range.
    """
    if not MIN_SENTENCE_CHARS <= max_chars <= MAX_SENTENCE_CHARS:
        raise TextError(
            f"max_chars is {max_chars}, it must lie between {MIN_SENTENCE_CHARS} and {MAX_SENTENCE_CHARS}",
            f"Use {DEFAULT_SENTENCE_CHARS}.",
        )
    rules = _Rules.of(language)
    pieces: list[str] = []
    for block in _blocks(normalise_text(text)):
        for sentence in rules.sentences(block):
            pieces.extend(_pieces(sentence, max_chars))
    return _with_silent_joined(pieces, max_chars)


def normalise_text(text: str) -> str:
    """Validated text in composed Unicode: single spaces, lines by newline, paragraphs by one empty line.

    Byte order marks, soft hyphens and zero-width spaces vanish. Raises TextError as `split_text_and_validate` does.
    """
    if not isinstance(text, str):
        raise TextError(f"the text is of type {type(text).__name__}, not str", "Decode it first, as UTF-8.")
    if len(text) > MAX_TEXT_CHARS:
        raise TextError(
            f"the text has {len(text):,} characters, up to {MAX_TEXT_CHARS:,} are taken at once",
            "Pass it chapter by chapter.",
        )
    for pattern, what in ((_SURROGATE, "an unpaired surrogate"), (_CONTROL, "a control character")):
        if bad := pattern.search(text):
            raise TextError(
                f"the text holds {what}, U+{ord(bad[0]):04X}, at character {bad.start() + 1}",
                "Remove it; text decoded with the wrong encoding, or binary data, looks like this.",
            )
    text = _INVISIBLE.sub("", _LINE_END.sub("\n", text).replace("\u2029", "\n\n"))
    if not text.isascii():
        # In short runs: ordering thousands of stacked accents at once takes quadratic time.
        text = re.sub(r"\S{1,256}", lambda run: unicodedata.normalize("NFC", run[0]), text)
    text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if not text:
        raise TextError("the text is empty", "Write at least one word.")
    if not any(map(str.isalnum, text)):
        shown = text if len(text) <= 20 else text[:20] + "..."
        raise TextError(f"the text {shown!r} holds no letter and no digit", "Write at least one word.")
    return text


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, list items and headings, each as one line: where the author broke the text, not its width."""
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        current = lines[0]
        width = len(current)  # of the last line alone
        for line in lines[1:]:
            joint = _joint(current, width, line)
            if joint is None:
                yield current
                current = line
            else:
                current += joint + line
            width = len(line)
        yield current


def _joint(before: str, width: int, line: str) -> str | None:
    """What joins two lines of a paragraph, or None where they belong apart."""
    if not before or not line or _LIST_ITEM.match(line):
        return None
    if _is_wide(before[-1]) and _is_wide(line[0]):
        return "" if width >= WRAPPED_WIDE_CHARS and before[-1] not in _STOPS else None
    return " " if width >= WRAPPED_LINE_CHARS or line[0].islower() else None


def _is_wide(char: str) -> bool:
    """Scripts written without spaces between words: Chinese, Japanese, and their punctuation."""
    return unicodedata.east_asian_width(char) in "WF" and not 0x1F000 <= ord(char) <= 0x1FFFF


class _Rules:
    """Where sentences end in one language."""

    def __init__(self, language: str | None) -> None:
        code = (language or "").lower().replace("_", "-").split("-")[0]
        self.table: Abbreviations = abbreviations(language)
        self.ordinals = code in ORDINAL_LANGUAGES
        # Greek asks with a semicolon.
        self.stop = re.compile(_STOP.replace("(?P<run>[", "(?P<run>[;") if code == "el" else _STOP)

    @staticmethod
    @lru_cache(maxsize=64)
    def of(language: str | None) -> _Rules:
        return _Rules(language)

    def sentences(self, block: str) -> Iterator[str]:
        start = 0
        for stop in self.stop.finditer(block):
            if stop.end() < len(block) and self._ends(block, stop):
                yield block[start : stop.end()].strip()
                start = stop.end()
        if rest := block[start:].strip():
            yield rest

    def _ends(self, block: str, stop: re.Match[str]) -> bool:
        run, closed, following = stop["run"], bool(stop["close"]), block[stop.end()]
        if any(char in _SPACELESS_STOPS for char in run):
            return self._wide_stop_ends(block, stop)
        if following != " ":
            return _is_wide(following) and following.isalnum() and not block[stop.start() - 1].isdigit()
        after = _AFTER.match(block, stop.end())
        word = after["word"] if after else ""
        lower = word[:1].islower()
        if run != ".":
            trails_off = not any(char in "!?;‽" for char in run)
            return not (lower and (closed or trails_off))
        if closed:
            return not lower
        return self._full_stop_ends(block, stop.start(), word, bool(after and after["dot"]))

    @staticmethod
    def _wide_stop_ends(block: str, stop: re.Match[str]) -> bool:
        following = block[stop.end()]
        if "．" in stop["run"] and following.isdigit():
            return False
        # 「はい。」と言った: the quotation is part of the sentence that reports it.
        return not (stop["close"] and following in "とっ、，,") and following not in _CLOSERS + _STOPS

    def _full_stop_ends(self, block: str, at: int, next_word: str, next_has_dot: bool) -> bool:
        """Whether the single full stop at `block[at]`, followed by a space, ends a sentence."""
        before = block[max(0, at - 40) : at]
        found = _WORD_BEFORE.search(before)
        word = found[0] if found else ""
        lower, digit = next_word[:1].islower(), next_word[:1].isdigit()
        if not word:
            return True
        if at == len(word) and len(word) <= 3 and (word.isdigit() or len(word) == 1):
            return False  # "1. First": the number of a list item
        plain = word.lower()
        spaced = len(word) <= 3 and _SPACED_INITIALS.search(before[-13:])
        if plain in self.table.never or (spaced and spaced[1].replace(" ", "").lower() in self.table.never):
            return False
        if plain in NUMBERED and (digit or (_ROMAN.fullmatch(next_word) and len(word) > 1)):
            return False
        if word.isdigit() or _ROMAN.fullmatch(word) and len(word) > 1:
            return self._number_ends(word, next_word)
        if plain in self.table.likely:
            zone = "." in plain and (next_word in WEEKDAYS or (next_word.isupper() and 2 <= len(next_word) <= 4))
            return not (lower or digit or zone)  # 5 p.m. EST, 7 a.m. Monday
        if plain == "al" and before.endswith("et al"):
            return next_word in STARTERS
        if plain in self.table.maybe or _DOTTED.fullmatch(word):
            return next_word in STARTERS
        if len(word) == 1 and word.isalpha():
            return next_word in STARTERS and not next_has_dot
        # An unknown word without a vowel, and the sentence goes on in lower case: an abbreviation (Abtlg., dgl.).
        vowelless = word.isascii() and word.isalpha() and not set(plain) & set("aeiouy")
        return not (lower and vowelless)

    def _number_ends(self, word: str, next_word: str) -> bool:
        if not next_word or next_word[0].islower() or next_word.lower() in MONTHS:
            return not next_word
        if self.ordinals and len(word) <= 2 or self.ordinals and not word.isdigit():
            return next_word in STARTERS
        return True


def _pieces(sentence: str, max_chars: int) -> Iterator[str]:
    """The sentence, cut into pieces of at most max_chars."""
    start = 0
    while len(sentence) - start > max_chars:
        end = _cut(sentence, start, max_chars)
        yield sentence[start:end].strip()
        start = end + (sentence[end : end + 1] == " ")
    if rest := sentence[start:].strip():
        yield rest


def _cut(sentence: str, start: int, max_chars: int) -> int:
    """Where to end the piece that begins at `start`: after a clause, else after a word, else anywhere sensible."""
    limit = start + max_chars
    for pattern, share in ((_STRONG_CLAUSE, 0.5), (_CLAUSE, 0.3)):
        ends = [match.end() for match in pattern.finditer(sentence, start + int(share * max_chars), limit + 1)]
        ends = [end for end in ends if start < end <= limit]
        if ends:
            return ends[-1]
    space = sentence.rfind(" ", start + 1, limit + 1)
    if space > start:
        return space
    return _hard_cut(sentence, start, limit)


def _hard_cut(sentence: str, start: int, limit: int) -> int:
    """A cut in text without spaces: not inside a Latin word or address, nor between a letter and its accents."""
    if _UNCUT_RUN.match(sentence[limit]):
        run = limit
        while run > start and _UNCUT_RUN.match(sentence[run - 1]):
            run -= 1
        if run > start:
            return run
    for end in range(limit, start + (limit - start) // 2, -1):
        if not _sticks(sentence, end):
            return end
    return limit


def _sticks(sentence: str, at: int) -> bool:
    """Whether the character at `at` belongs to the one before: accents, emoji of several parts, flags."""
    char, before = sentence[at], sentence[at - 1]
    if unicodedata.category(char)[0] == "M" or char in "\u200c\u200d" or before in "\u200c\u200d":
        return True
    if "\U0001f3fb" <= char <= "\U0001f3ff":
        return True
    if "\U0001f1e6" <= char <= "\U0001f1ff":  # two letters make a flag: count those before, in a short stretch
        letters = _FLAG_LETTERS.search(sentence[max(0, at - 64) : at])
        return bool(letters and len(letters[0]) % 2)
    return False


def _with_silent_joined(pieces: list[str], max_chars: int) -> list[str]:
    """Pieces with nothing to speak (***, emoji) join a neighbour where that fits: engines stumble over them alone."""
    out: list[str] = []
    for piece in pieces:
        silent = not any(map(str.isalnum, piece))
        lonely = len(out) == 1 and not any(map(str.isalnum, out[0]))
        if out and (silent or lonely) and len(out[-1]) + 1 + len(piece) <= max_chars:
            out[-1] += " " + piece
        else:
            out.append(piece)
    return out
