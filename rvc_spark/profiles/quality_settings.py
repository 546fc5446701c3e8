"""Where a recording stops being good enough: every threshold of the quality report, with its unit, range and reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rvc_spark.errors import ConfigError


def _limit(default: float, help: str, low: float, high: float, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "unit": unit})


@dataclass(frozen=True)
class QualitySettings:
    """What recordings must be to enrol a voice. Out of range raises ConfigError naming value and range.

    Of two thresholds of one thing, the one ending in `reject` must be the worse.
    """

    min_sample_duration: float = _limit(3.0, "a shorter recording shows too little of a voice", 0.5, 30, "s")
    max_sample_duration: float = _limit(30.0, "a longer one is offered in cut form", 3, 600, "s")
    min_total_duration: float = _limit(10.0, "usable sound of all recordings together", 1, 3600, "s")
    max_samples: int = _limit(64, "every sample is compared with every other", 1, 500)
    max_file_seconds: float = _limit(3600.0, "a longer file is refused; cut it", 30, 43_200, "s")
    max_file_bytes: int = _limit(1 << 30, "a larger file is refused unread", 1_000, 1 << 40, "bytes")

    clipped_warn: float = _limit(0.0001, "share of samples flattened at the top: 0.01 % is heard as crackle", 0, 1)
    clipped_reject: float = _limit(0.01, "above 1 % it is distortion, and would be learned as part of the voice", 0, 1)
    peak_warn: float = _limit(-30.0, "below it, the noise of the recorder comes up with the voice", -90, 0, "dBFS")
    silence: float = _limit(-70.0, "peaks below it are no recording of anything", -120, -20, "dBFS")
    dc_warn: float = _limit(0.01, "mean of the samples: a faulty input, heard as a click at every cut", 0, 1)
    dc_reject: float = _limit(0.1, "a tenth of full scale is lost", 0, 1)
    hum_note: float = _limit(-45.0, "mains hum (50, 60 Hz) against the speech, hardly heard", -90, 20, "dB")
    hum_warn: float = _limit(-24.0, "above it hum is heard in pauses", -90, 20, "dB")
    hum_reject: float = _limit(-10.0, "hum nearly as loud as the speech", -90, 40, "dB")

    min_speech_seconds: float = _limit(1.0, "less speech is no voice to learn", 0.1, 30, "s")
    speech_share_warn: float = _limit(0.4, "share of speech; mostly pauses", 0, 1)
    snr_note: float = _limit(35.0, "below it noise is told of, and does no harm", 0, 100, "dB")
    snr_warn: float = _limit(20.0, "speech over noise; below it the noise is cloned with the voice", 0, 100, "dB")
    snr_reject: float = _limit(10.0, "below it the noise is as plain as the voice", -20, 100, "dB")
    bandwidth_warn: float = _limit(5_500.0, "the telephone ends at 3.4 kHz, speech at 8 kHz", 1_000, 20_000, "Hz")
    bandwidth_reject: float = _limit(2_500.0, "below it, consonants are gone", 500, 20_000, "Hz")

    voices_warn: float = _limit(
        0.80, "similarity of the two voices a recording falls into best; one speaker: 0.82 and more (measured)", 0, 1
    )
    voices_reject: float = _limit(0.70, "two speakers as different as most are", 0, 1)
    music_warn: float = _limit(0.75, "share of moments with a steady tone; speech: at most 0.72 (measured)", 0, 1)
    music_reject: float = _limit(0.94, "music alone, or as loud as the voice", 0, 1)
    singing_snr: float = _limit(28.0, "steady tones with quiet between: a singer alone", 0, 100, "dB")
    similarity_accept: float = _limit(
        0.855, "similarity to the other samples; one speaker: 0.87 and more, two: at most 0.842 (measured)", 0, 1
    )
    similarity_reject: float = _limit(0.75, "below it, another person", 0, 1)
    duplicate_similarity: float = _limit(0.95, "correlation of loudness over time that makes two files one", 0.8, 1)

    def __post_init__(self) -> None:
        for item in fields(self):
            low, high, unit = (item.metadata[name] for name in ("low", "high", "unit"))
            value = getattr(self, item.name)
            kinds = int if item.type == "int" else int | float
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise ConfigError(
                    f"{item.name}={value!r} is outside {low:g} to {high:g} {unit}".rstrip(),
                    "Choose a value in that range.",
                )
        for better, worse in (
            ("max_sample_duration", "min_sample_duration"), ("clipped_reject", "clipped_warn"),
            ("dc_reject", "dc_warn"), ("hum_reject", "hum_warn"), ("hum_warn", "hum_note"),
            ("snr_warn", "snr_reject"), ("snr_note", "snr_warn"),
            ("bandwidth_warn", "bandwidth_reject"), ("voices_warn", "voices_reject"), ("music_reject", "music_warn"),
            ("similarity_accept", "similarity_reject"), ("peak_warn", "silence"),
        ):  # fmt: skip
            if getattr(self, better) < getattr(self, worse):
                raise ConfigError(
                    f"{better}={getattr(self, better):g} is below {worse}={getattr(self, worse):g}",
                    f"Choose {better} above {worse}.",
                )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All field names, in order."""
        return tuple(item.name for item in fields(cls))

    def changed(self, **changes: Any) -> QualitySettings:
        """A copy with some fields replaced; an unknown name raises ConfigError listing the known ones."""
        unknown = sorted(set(changes) - set(self.names()))
        if unknown:
            raise ConfigError(
                f"there is no setting {', '.join(unknown)}", f"The settings are: {', '.join(self.names())}."
            )
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Every threshold with its value, for reports."""
        return asdict(self)
