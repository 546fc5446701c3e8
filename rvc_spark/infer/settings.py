"""What a user can choose about one conversion: one frozen record, a reason and a range per field."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rvc_spark.errors import ConfigError
from rvc_spark.infer.pitch_edit import Scale, VoiceRange

RESAMPLE_RATES = (8_000, 192_000)
TARGET_HZ = (40.0, 1200.0)
PROFILES = ("classic", "r26")


def setting(default: Any, help: str, low: float | None = None, high: float | None = None, unit: str = "") -> Any:
    """A field with what a person should know of it; command line and panels show the very same words."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "unit": unit})


def check_ranges(settings: Any) -> None:
    """Hold every field of a dataclass made of `setting`s to its range and to whole numbers where it is an int.

    Raises:
        ConfigError: names the field, its value and its range.
    """
    for item in fields(settings):
        low, high, unit = (item.metadata[name] for name in ("low", "high", "unit"))
        value = getattr(settings, item.name)
        if item.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{item.name}={value!r} is not a whole number", "Give an integer.")
        if low is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(
                f"{item.name}={value!r} is outside {low:g} to {high:g} {unit}".rstrip(),
                "Choose a value in that range.",
            )


@dataclass(frozen=True)
class ConversionSettings:
    """How a recording becomes the voice. Out of range raises ConfigError naming value and range."""

    key: float = setting(
        0.0, "shift of the melody; fractions allowed; about +12 from a low to a high voice", -48, 48, "semitones"
    )
    auto_key: str | float | VoiceRange = setting(
        "off", "find the key by itself: 'voice' meets the voice's own median pitch, a number that median in Hz"
    )
    f0_method: str = setting("auto", "pitch tracker; auto takes the best that is present and says which")
    f0_curve: str | None = setting(None, "CSV of seconds,Hz that replaces the tracked pitch where it has values")
    autotune: float = setting(0.0, "0 leaves the melody alone, 1 puts every voiced frame on a note", 0, 1)
    scale: str = setting("chromatic", "notes autotune may use, such as 'A minor'")
    formant: float = setting(0.0, "moves the colour of the vowels without the pitch", -12, 12, "semitones")
    filter_radius: int = setting(3, "median smoothing of harvest's pitch; 2 and less is none", 0, 7, "frames")
    profile: str = setting(
        "classic", "classic keeps unvoiced frames unvoiced; r26 fills them, as RVC of 2026 does (protect then idles)"
    )
    index_rate: float = setting(
        0.75, "how much of the features comes from the index: more of the voice's accent, more artefacts", 0, 1
    )
    neighbours: int = setting(8, "vectors of the index averaged per frame", 1, 64)
    protect: float = setting(
        0.33, "below 0.5, breath and consonants keep that much less of the index; 0.5 is off", 0, 0.5
    )
    rms_mix_rate: float = setting(0.25, "1 keeps the voice's own loudness, 0 imposes the source's", 0, 1)
    resample_rate: int = setting(0, "rate of the result; 0 is the voice's own", unit="Hz")
    speaker: int = setting(0, "which speaker of a multi-speaker voice", 0, 4095)
    seed: int = setting(0, "same seed, same samples", 0, 2**63 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_names()

    def _check_names(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigError(f"profile={self.profile!r} is not one of {', '.join(PROFILES)}", "Choose one of those.")
        Scale.parse(self.scale)
        low, high = RESAMPLE_RATES
        if self.resample_rate and not low <= self.resample_rate <= high:
            raise ConfigError(
                f"resample_rate={self.resample_rate} is outside {low} to {high} Hz", "Use 0 for the voice's own rate."
            )
        if self.auto_key in ("off", "voice") or isinstance(self.auto_key, VoiceRange):
            return
        target = self.auto_key
        if isinstance(target, str | bool) or not math.isfinite(target) or not TARGET_HZ[0] <= target <= TARGET_HZ[1]:
            raise ConfigError(
                f"auto_key={target!r} is neither 'off', 'voice' nor {TARGET_HZ[0]:g} to {TARGET_HZ[1]:g} Hz",
                "Give the median pitch you want in Hz, or 'voice'.",
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All field names, in order."""
        return tuple(item.name for item in fields(cls))

    def changed(self, **changes: Any) -> ConversionSettings:
        """A copy with some fields replaced; an unknown name raises ConfigError listing the known ones."""
        unknown = sorted(set(changes) - set(self.names()))
        if unknown:
            raise ConfigError(
                f"there is no setting {', '.join(unknown)}", f"The settings are: {', '.join(self.names())}."
            )
        if isinstance(changes.get("f0_curve"), Path):
            changes["f0_curve"] = str(changes["f0_curve"])
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Every setting with its value, for reports."""
        return asdict(self)
