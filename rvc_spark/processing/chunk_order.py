"""Parts of sentences in any order in, in order out: the pure logic, without threads, seconds or sound.

    put(2, 0)  put(0, 0)  put(0, 1, last)  fail(1)         ->   0.0  0.1  (1 is missing: why)  2.0 ...

A sentence is closed by its last part, or fails. Every part that was taken in comes out exactly once; what is late,
double, unknown or behind the end is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rvc_spark.errors import RvcSparkError, StreamError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Place:
    """Where a part belongs: its number in its sentence and the sentence's, from 0; `last` closes the sentence."""

    sentence: int
    part: int
    last: bool = False

    def __str__(self) -> str:
        return f"part {self.part} of sentence {self.sentence}"


@dataclass(frozen=True)
class Missing:
    """A sentence that failed, in its turn: everything before it has come out."""

    sentence: int
    text: str
    error: RvcSparkError


@dataclass
class _Slot(Generic[Item]):
    parts: dict[int, tuple[Place, Item]] = field(default_factory=dict)
    following: int = 0  # the part that comes out next
    taken_in: int = 0  # parts put so far, delivered ones too
    end: int | None = None  # number of the last part
    missing: Missing | None = None


class ChunkOrder(Generic[Item]):
    """The order of a stream. `count`: how many sentences there are, if it is known; else `finish` tells.

    head: the sentence that comes out next.
    """

    def __init__(self, count: int | None = None) -> None:
        self.head = 0
        self.count = count
        self._slots: dict[int, _Slot[Item]] = {}

    @property
    def ended(self) -> bool:
        """Whether everything has come out."""
        return self.count is not None and self.head >= self.count

    @property
    def waiting(self) -> int:
        """Parts that were put and have not come out."""
        return sum(len(slot.parts) for slot in self._slots.values())

    def put(self, place: Place, item: Item) -> None:
        """Take one part. Raises StreamError: late, double, unknown, after the last part, or of a failed sentence."""
        slot = self._slots.get(place.sentence) or _Slot()
        if problem := self._problem(place, slot):
            raise StreamError(f"{place} {problem}", "Put every part once, and its sentence's last part last.")
        self._slots[place.sentence] = slot
        slot.parts[place.part] = (place, item)
        slot.taken_in += 1
        if place.last:
            slot.end = place.part

    def _problem(self, place: Place, slot: _Slot[Item]) -> str:
        if place.sentence < 0 or place.part < 0:
            return "has a number below 0"
        if place.sentence < self.head or place.part < slot.following:
            return "comes late: what follows it is already out"
        if self.count is not None and place.sentence >= self.count:
            return f"is unknown: there are {self.count} sentences"
        if slot.missing is not None:
            return "belongs to a sentence that failed"
        if place.part in slot.parts:
            return "comes twice"
        if slot.end is not None and (place.part > slot.end or place.last):
            return f"comes after the last part, {slot.end}"
        if place.last and slot.parts and max(slot.parts) > place.part:
            return f"is said to be the last, but part {max(slot.parts)} is there"
        return ""

    def fail(self, sentence: int, text: str, error: RvcSparkError) -> None:
        """A sentence will not be completed. What was put of it without a hole before still comes out.

        Raises StreamError: it is out, complete, failed already or unknown.
        """
        slot = self._slots.get(sentence) or _Slot()
        unknown = self.count is not None and sentence >= self.count
        if unknown or self.complete(sentence) or slot.missing is not None:
            raise StreamError(f"sentence {sentence} cannot fail: it is complete, failed before or unknown", "Check it.")
        self._slots[sentence] = slot
        slot.missing = Missing(sentence, text, error)
        kept = slot.following
        while kept in slot.parts:
            kept += 1
        slot.parts = {number: part for number, part in slot.parts.items() if number < kept}
        slot.taken_in, slot.end = kept, None

    def reopen(self, sentence: int) -> None:
        """A failed sentence is tried again: its next parts continue those that were kept. Raises StreamError."""
        slot = self._slots.get(sentence)
        if slot is None or slot.missing is None:
            raise StreamError(f"sentence {sentence} has not failed, or is passed", "Look at the stream's gaps.")
        slot.missing = None

    def finish(self, count: int) -> None:
        """There are `count` sentences. Raises StreamError: another number was told, or more were put."""
        known = max(self._slots, default=self.head - 1) + 1
        if self.count not in (None, count) or count < max(known, self.head, 1):
            told = f"{self.count} were announced" if self.count is not None else f"{max(known, self.head)} are known"
            raise StreamError(f"the stream cannot end after {count} sentences, {told}", "End it once, with all.")
        self.count = count

    def received(self, sentence: int) -> int:
        """How many parts of a sentence were put: where a maker that begins again has to go on."""
        slot = self._slots.get(sentence)
        return 0 if slot is None else slot.taken_in

    def complete(self, sentence: int) -> bool:
        """Whether all parts of a sentence were put."""
        slot = self._slots.get(sentence)
        return sentence < self.head or (slot is not None and slot.end is not None and slot.taken_in == slot.end + 1)

    @property
    def ready(self) -> bool:
        """Whether `pop` has a part to give."""
        slot = self._slots.get(self.head)
        return slot is not None and slot.following in slot.parts

    def pop(self) -> tuple[Place, Item] | Missing | None:
        """The next part in order; a Missing as long as the sentence whose turn it is has failed; None: not here yet."""
        slot = self._slots.get(self.head)
        if slot is None:
            return None
        found = slot.parts.pop(slot.following, None)
        if found is None:
            return slot.missing
        slot.following += 1
        if found[0].last:
            self._next()
        return found

    def pass_missing(self) -> None:
        """Go on behind the failed sentence whose turn it is. Raises StreamError if it has not failed."""
        if not isinstance(self.pop_missing(), Missing):
            raise StreamError(f"sentence {self.head} has not failed", "Wait for its parts.")
        self._next()

    def pop_missing(self) -> Missing | None:
        """The failed sentence whose turn it is, if everything before it is out."""
        slot = self._slots.get(self.head)
        return None if slot is None or slot.following in slot.parts else slot.missing

    def _next(self) -> None:
        del self._slots[self.head]
        self.head += 1
