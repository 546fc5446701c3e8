"""JSON from a stranger, read field by field: every field is asked for by name and kind, and none may be left over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from rvc_spark.errors import ProfileError

Value = TypeVar("Value")
NEXT = "Restore the profile from a backup, or delete it."


def parse_object(content: bytes, what: str) -> Fields:
    """A JSON object. Raises ProfileError: no UTF-8, no JSON, a name twice, NaN, nested too deep, or no object."""
    try:
        told = json.loads(
            content.decode("utf-8"), object_pairs_hook=_once_each, parse_constant=_no_number, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{what} is not JSON ({str(error)[:120]})", NEXT) from error
    return Fields(told, what)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a name stands in it twice")
    return told


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond any number")
    return value


class Fields:
    """The fields of an object that are still to be read; `end()` when all are. what: how messages call it."""

    def __init__(self, told: object, what: str) -> None:
        self.what = what
        if not isinstance(told, dict):
            self.refuse("", f"is of type {type(told).__name__}, not an object")
        self._left: dict[str, Any] = dict(told)  # type: ignore[call-overload]

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise ProfileError naming the field."""
        raise ProfileError(f"{self.what}{f', {name}' if name else ''}: {problem}", NEXT)

    def _take(self, name: str, kind: type | tuple[type, ...], words: str) -> Any:
        if name not in self._left:
            self.refuse(name, "is missing")
        value = self._left.pop(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.refuse(name, f"is {value!r:.60}, not {words}")
        return value

    def text(self, name: str, max_chars: int) -> str:
        """A text of at most so many characters, without control characters but line ends and tabs."""
        value = self._take(name, str, "a text")
        if len(value) > max_chars:
            self.refuse(name, f"has {len(value):,} characters, the limit is {max_chars:,}")
        if any((ord(c) < 32 and c not in "\n\t") or 0xD800 <= ord(c) < 0xE000 for c in value):
            self.refuse(name, "holds a control character")
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number within limits."""
        value = self._take(name, int, "a whole number")
        if not low <= value <= high:
            self.refuse(name, f"is {str(value)[:40]}, outside {low:,} to {high:,}")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        """A number within limits."""
        value = self._take(name, (int, float), "a number")
        if not low <= value <= high:
            self.refuse(name, f"is {str(value)[:40]}, outside {low:g} to {high:g}")
        return float(value)

    def maybe(self, name: str, read: Callable[[str], Value]) -> Value | None:
        """None where the field is null, else what `read` makes of it."""
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return None
        return read(name)

    def part(self, name: str) -> Fields:
        """An object inside."""
        return Fields(self._take(name, dict, "an object"), f"{self.what}, {name}")

    def rows(self, name: str, most: int) -> list[Fields]:
        """A list of objects, at most so many."""
        rows = self._take(name, list, "a list")
        if len(rows) > most:
            self.refuse(name, f"has {len(rows):,} entries, the limit is {most:,}")
        return [Fields(row, f"{self.what}, {name} {number + 1}") for number, row in enumerate(rows)]

    def names(self, most: int) -> list[str]:
        """The names of the fields that are left, at most so many."""
        if len(self._left) > most:
            self.refuse("", f"has {len(self._left):,} entries, the limit is {most:,}")
        return list(self._left)

    def rest(self) -> dict[str, Any]:
        """Everything that is left, as it is."""
        left, self._left = self._left, {}
        return left

    def end(self) -> None:
        """Raises ProfileError when a field is left that nobody asked for."""
        if self._left:
            self.refuse(ascii(next(iter(self._left))[:40]), "is unknown here")


def parse_plain(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object as a plain mapping, for a reader with a strictness of its own. Raises ProfileError."""
    return parse_object(content, what).rest()


def dump_plain(told: dict[str, Any]) -> bytes:
    """A mapping as such a file. Raises ProfileError for a number that JSON does not have."""
    try:
        return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except ValueError as error:
        raise ProfileError(f"what was measured cannot be written ({error})", "Report this as a defect.") from error
