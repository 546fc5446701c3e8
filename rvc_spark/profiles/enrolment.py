"""What a person says of a voice that is enrolled: its name, whose it is, that they agreed, what the recordings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rvc_spark.errors import ConsentError, ProfileError
from rvc_spark.profiles.consent import Consent
from rvc_spark.profiles.findings import GRADES
from rvc_spark.profiles.profile_names import checked_name
from rvc_spark.profiles.profile_record import MAX_SAMPLES, checked_language, checked_transcript


@dataclass(frozen=True)
class Enrolment:
    """Raises ProfileError for what cannot be.

    name: of the profile. consent: without it nothing is enrolled. consent_recording: the consent being spoken, a path,
    bytes or Audio, where its method is "recording"; it must be the same voice. transcripts: what each recording says,
    word for word, None where that is not known. language: such as en or de-AT. keep_originals: keep the files as they
    came, beside the normalised ones. cut: take the pieces that are offered of recordings that are too long. accept: the
    worst grade that is enrolled: "ok", "warn" or "reject".
    """

    name: str
    consent: Consent | None = None
    consent_recording: Any = None
    transcripts: Sequence[str | None] = ()
    language: str | None = None
    keep_originals: bool = False
    cut: bool = False
    accept: str = "warn"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", checked_name(self.name))
        object.__setattr__(self, "transcripts", tuple(checked_transcript(text) for text in self.transcripts))
        checked_language(self.language)
        if self.accept not in GRADES:
            raise ProfileError(f"accept={self.accept!r:.20} is no grade", f"Choose one of: {', '.join(GRADES)}.")

    def checked_consent(self) -> Consent:
        """The consent, if it is complete. Raises ConsentError."""
        if self.consent is None:
            raise ConsentError(
                "nobody's consent is given, and no voice is enrolled without",
                "Say whose voice it is and what they agreed to: consent=given_consent(STATEMENT, 'Anna Example').",
            )
        if (self.consent.method == "recording") != (self.consent_recording is not None):
            raise ConsentError(
                f"the consent's method is {self.consent.method!r} and a recording of it is "
                f"{'not ' if self.consent_recording is None else ''}given",
                "Give consent_recording together with method='recording', and neither for a ticked box.",
            )
        return self.consent

    def texts(self, count: int) -> list[str | None]:
        """A transcript or None for each of `count` recordings. Raises ProfileError when there are more or fewer."""
        if not 1 <= count <= MAX_SAMPLES:
            raise ProfileError(f"{count} recordings are given", f"Give 1 to {MAX_SAMPLES}; three or more are best.")
        if self.transcripts and len(self.transcripts) != count:
            raise ProfileError(
                f"there are {len(self.transcripts)} transcripts for {count} recordings",
                "Give one for each, None where nobody wrote it down.",
            )
        return list(self.transcripts) or [None] * count
