"""What a profile may be called, and what it is called inside: a name for people, an id for everything else.

A name is shown and compared, never made into a path: folders are named after ids. Two names that look or sound the
same to a search (case, width, composition) are one name.
"""

from __future__ import annotations

import re
import unicodedata
import uuid

from rvc_spark.errors import ProfileError

MAX_NAME = 80
"""Characters."""
PREFIX = "profile:"
"""Before a name or an id wherever a file or a voice could be meant as well."""

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_LIKE_ID = re.compile(r"[0-9a-f-]{32,}", re.IGNORECASE)
# Cc, Cf: control and format characters, among them those that turn the direction of a line; Cs, Co, Cn: no characters;
# Zl, Zp: line ends; Zs is checked by itself: only the plain space
_REFUSED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_PUNCTUATION = set('/\\:*?"<>|')
# Names that end like a file are taken for one wherever both could be given.
_FILE_SUFFIX = re.compile(r"\.[a-z0-9]{1,11}$", re.IGNORECASE)


def checked_name(raw: object, what: str = "the profile's name") -> str:
    """The name in composed form, without space around it.

    Raises ProfileError: no text, empty, over MAX_NAME characters, control or direction-changing characters, a
    character of paths, a beginning with `.` or `-`, an ending like a file's, or the looks of an id.
    """
    if not isinstance(raw, str):
        raise ProfileError(f"{what} is of type {type(raw).__name__}, not str", "Give a name such as Anna.")
    if len(raw) > 4 * MAX_NAME:
        raise ProfileError(f"{what} has {len(raw)} characters, the limit is {MAX_NAME}", "Shorten it.")
    name = unicodedata.normalize("NFC", raw).strip(" ")
    shown = ascii(name[:MAX_NAME])
    if bad := next((c for c in name if unicodedata.category(c) in _REFUSED or (c.isspace() and c != " ")), None):
        raise ProfileError(f"{what} {shown} holds U+{ord(bad):04X}, which cannot be seen", "Write it without.")
    if not any(c.isalnum() for c in name):
        raise ProfileError(f"{what} {shown} has no letter or digit", "Give a name such as Anna.")
    if len(name) > MAX_NAME:
        raise ProfileError(f"{what} has {len(name)} characters, the limit is {MAX_NAME}", "Shorten it.")
    if bad := next((c for c in name if c in _PUNCTUATION), None):
        raise ProfileError(f"{what} {shown} holds {bad!r}", "Use letters, digits, spaces and other punctuation.")
    if name[0] in ".-~@":
        raise ProfileError(f"{what} {shown} begins with {name[0]!r}", "Begin with a letter or a digit.")
    if _FILE_SUFFIX.search(name):
        raise ProfileError(f"{what} {shown} ends like the name of a file", "Leave the ending out.")
    if _LIKE_ID.fullmatch(name):
        raise ProfileError(f"{what} {shown} looks like an id", "Give a name that people say.")
    return name


def name_key(name: str) -> str:
    """Equal for names that count as the same: compatibility form, case folded, runs of spaces as one."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def new_id() -> str:
    """A fresh random id (UUID version 4): it says nothing of whose voice it is."""
    return str(uuid.uuid4())


def is_id(text: object) -> bool:
    """Whether a text is an id in the one spelling that is written."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None
