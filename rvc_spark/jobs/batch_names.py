"""File names out of names that people, spreadsheets and strangers wrote: safe on every system, the same every time."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAX_ID_CHARS = 100
MAX_NAME_BYTES = 120  # of one part of a file name; file systems take 255, and suffixes and temporary names need room
_HASH_CHARS = 6
_UNSAFE = re.compile(r"[^\w.+()=@~ -]")
# Names of devices on Windows, with any suffix: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)


def id_problem(text: str) -> str | None:
    """Why a text cannot be the id of an item, in words; None when it can."""
    if len(text) > MAX_ID_CHARS:
        return f"it has {len(text)} characters, up to {MAX_ID_CHARS} are taken"
    if not text.isprintable():
        return "it holds a character that cannot be printed"
    if "/" in text or "\\" in text:
        return "it is a path, not a name"
    if not any(map(str.isalnum, text)):
        return "it holds no letter and no digit"
    return None


def safe_name(text: str) -> str:
    """One part of a file name for a text. A text that had to be changed gets a few characters of its hash."""
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip(" .")
    if _DEVICE.match(name) or not name or name.startswith("~"):
        name = f"_{name}"
    while len(name.encode("utf-8")) > MAX_NAME_BYTES:
        name = name[:-1]
    name = name.rstrip(" .")
    return name if name == text else marked(name, text)


def marked(name: str, text: str) -> str:
    """The name with a few characters of the text's hash, so that names that became equal differ again."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
    return f"{name}-{digest}"


def distinct_names(ids: Sequence[str]) -> list[str]:
    """A name per id, different even on a disk that is blind to case; ids are different, and may be relative paths."""
    names = ["/".join(safe_name(part) for part in text.split("/")) for text in ids]
    count = Counter(name.casefold() for name in names)
    taken: set[str] = set()
    distinct = []
    for name, text in zip(names, ids, strict=True):
        name = marked(name, text) if count[name.casefold()] > 1 else name
        while name.casefold() in taken:
            name = marked(name, text)
        taken.add(name.casefold())
        distinct.append(name)
    return distinct
