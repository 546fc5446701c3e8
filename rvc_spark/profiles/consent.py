"""Whose voice it is and that they agreed: without it nothing is enrolled.

The consent is bound to the recordings it was given for by their hash, so that it cannot be moved to others unseen.
Whether a person told the truth is not for a program to find out; a spoken consent is at least compared with the voice.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rvc_spark.errors import ConsentError

METHODS = ("checkbox", "recording")
STATEMENT_CHARS = (10, 2_000)
WHO_CHARS = (2, 200)
STATEMENT = (
    "This is my own voice, or I have the permission of the person whose voice it is. I agree that it is stored on this "
    "machine and used to make synthetic speech, and I know that I can delete it at any time."
)
"""What the notebook and the documentation propose; any statement of one's own does as well."""
FUTURE = datetime.timedelta(hours=24)
"""How far ahead a consent may lie: clocks differ, by a time zone at most."""

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Consent:
    """A consent as it is kept. Raises ConsentError when it is incomplete.

    statement: what was agreed to. who: whose voice it is, and who agreed for them if that is somebody else. when: the
    moment, ISO 8601 with its time zone. method: how it was given: a "checkbox" that was ticked (or its likeness on a
    command line), or a "recording" of it being spoken. sample_sha256: of the recordings it is for; empty until they
    are known.
    """

    statement: str
    who: str
    when: str
    method: str = "checkbox"
    sample_sha256: str = ""

    def __post_init__(self) -> None:
        _check_text("statement", self.statement, STATEMENT_CHARS)
        _check_text("who", self.who, WHO_CHARS)
        if self.method not in METHODS:
            raise ConsentError(
                f"the consent's method is {self.method!r:.40}", f"It must be one of: {', '.join(METHODS)}."
            )
        _check_moment(self.when)
        if not isinstance(self.sample_sha256, str) or (self.sample_sha256 and not _HASH.fullmatch(self.sample_sha256)):
            raise ConsentError("the consent's sample hash is no sha256", "Enrol the voice again.")

    def bound_to(self, sample_hashes: Iterable[str]) -> Consent:
        """The consent for exactly these recordings. sample_hashes: sha256 of each, in any order."""
        return replace(self, sample_sha256=joint_hash(sample_hashes))


def given_consent(statement: str, who: str, *, method: str = "checkbox", when: str | None = None) -> Consent:
    """A consent that is given now. Raises ConsentError when something is missing."""
    return Consent(statement, who, when or now(), method)


def joint_hash(sample_hashes: Iterable[str]) -> str:
    """One sha256 that stands for several, whatever their order."""
    return hashlib.sha256("\n".join(sorted(sample_hashes)).encode()).hexdigest()


def now() -> str:
    """This moment: `2026-11-29T12:00:00+00:00`."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_text(name: str, text: object, limits: tuple[int, int]) -> None:
    low, high = limits
    if not isinstance(text, str) or len(text.strip()) < low:
        raise ConsentError(
            f"the consent's {name} is {text!r:.40}, at least {low} characters are needed",
            "A voice is enrolled only with its owner's consent: say what was agreed to, and by whom.",
        )
    if len(text) > high:
        raise ConsentError(f"the consent's {name} has {len(text):,} characters, the limit is {high:,}", "Shorten it.")
    if bad := next((c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"), None):
        raise ConsentError(f"the consent's {name} holds U+{ord(bad):04X}, which cannot be seen", "Write it without.")


def _check_moment(when: object) -> None:
    cure = "Write it like 2026-11-29T12:00:00+00:00."
    try:
        moment = datetime.datetime.fromisoformat(when)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConsentError(f"the consent's time {when!r:.40} is no moment", cure) from error
    if moment.tzinfo is None:
        raise ConsentError(f"the consent's time {when!r:.40} has no time zone", cure)
    if moment > datetime.datetime.now(datetime.UTC) + FUTURE:
        raise ConsentError(f"the consent's time {when!r:.40} lies in the future", "Correct the clock or the time.")
