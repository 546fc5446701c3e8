"""What can be wrong with a recording, as values: a code, how bad, the number, its limit, and what to record better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rvc_spark.errors import ProfileError

GRADES = ("ok", "warn", "reject")
"""From best to worst."""

CODES = {
    "unreadable": "it cannot be decoded",
    "too_large": "the file is beyond the limits of size or length",
    "too_short": "shorter than a sample must be",
    "too_long": "longer than a sample may be; it is offered in cut form",
    "silence": "nothing was recorded",
    "no_speech": "nobody speaks",
    "little_speech": "mostly pauses",
    "clipped": "peaks are cut off flat, here or before it was turned down",
    "quiet": "recorded far too quietly",
    "dc_offset": "the waveform does not lie around zero",
    "hum": "mains hum of 50 or 60 Hz",
    "noisy": "noise between the words",
    "narrow_band": "no high frequencies, and a rate that says so",
    "upsampled": "no high frequencies, though its rate has room for them: it was once at a lower rate",
    "second_speaker": "it falls into two different voices",
    "music": "music, or steady tones as music has them",
    "singing": "notes are held, and nothing sounds between them: a voice that sings",
    "duplicate": "the same recording as another sample",
    "other_speaker": "another voice than the other samples",
    "not_compared": "there is too little speech to compare the voice",
    "too_little_speech": "all usable samples together are too short",
    "similarity_unchecked": "whether it is one speaker could not be checked",
    "no_samples": "no sample is usable",
}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    code: a key of CODES. severity: one of GRADES; "ok" is worth knowing and does no harm. value, limit, unit: what was
    measured, and the threshold it passed, where there are any. advice: a sentence on what to record better.
    """

    code: str
    severity: str
    value: float | None
    limit: float | None
    unit: str
    advice: str

    def __post_init__(self) -> None:
        if self.code not in CODES or self.severity not in GRADES:
            raise ProfileError(f"there is no finding {self.code!r} of severity {self.severity!r}", "Examine it again.")
        for number in (self.value, self.limit):
            if number is not None and not math.isfinite(number):
                raise ProfileError(f"the finding {self.code} holds {number}", "Examine the recording again.")

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def worst(severities: Iterable[str]) -> str:
    """The worst of some grades; "ok" for none."""
    return max(severities, key=GRADES.index, default="ok")
