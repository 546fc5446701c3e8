"""What a user can choose about one conversion: one frozen record, a reason and a range per field."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rvc_spark.errors import ConfigError

RANGES: dict[str, tuple[float, float, str]] = {
    "key": (-48, 48, "semitones"),
    "formant": (-12, 12, "semitones"),
    "autotune": (0, 1, ""),
    "filter_radius": (0, 7, "frames"),
    "index_rate": (0, 1, ""),
    "neighbours": (1, 64, ""),
    "protect": (0, 0.5, ""),
    "rms_mix_rate": (0, 1, ""),
    "speaker": (0, 4095, ""),
    "seed": (0, 2**63 - 1, ""),
}
RESAMPLE_RATES = (8_000, 192_000)
TARGET_HZ = (40.0, 1200.0)
PROFILES = ("classic", "r26")


@dataclass(frozen=True)
class ConversionSettings:
    """How a recording becomes the voice. Out of range raises ConfigError naming value and range."""

    key: float = 0.0  # semitones; fractions allowed; about +12 from a low to a high voice
    auto_key: str | float = "off"  # "off"; "voice": meet the voice's own median; or the median wanted, in Hz
    f0_method: str = "auto"  # a name of PITCH_METHODS; auto takes the best that is present and says which
    f0_curve: str | None = None  # a CSV of seconds,Hz that replaces the tracked pitch where it has values
    autotune: float = 0.0  # 0 leaves the melody alone, 1 puts every voiced frame on a note
    scale: str = "chromatic"  # notes autotune may use, such as "A minor"
    formant: float = 0.0  # semitones; moves the vowels' colour without the pitch
    filter_radius: int = 3  # frames of median smoothing for harvest; 2 and less is none
    profile: str = "classic"  # "classic" keeps unvoiced frames unvoiced; "r26" fills them, as RVC of 2026 does
    index_rate: float = 0.75  # how much of the features comes from the index; more accent, more artefacts
    neighbours: int = 8  # vectors averaged per frame; 8 in every reference
    protect: float = 0.33  # below 0.5, breath and consonants keep that much less of the index
    rms_mix_rate: float = 0.25  # 1 keeps the voice's own loudness, 0 imposes the source's
    resample_rate: int = 0  # Hz of the result; 0 is the voice's own rate
    speaker: int = 0  # row of a multi-speaker voice
    seed: int = 0  # same seed, same samples

    def __post_init__(self) -> None:
        for name, (low, high, unit) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(
                    f"{name}={value!r} is outside {low:g} to {high:g} {unit}".rstrip(), "Choose a value in that range."
                )
        for name in ("filter_radius", "neighbours", "speaker", "seed", "resample_rate"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a whole number", "Give an integer.")
        self._check_names()

    def _check_names(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigError(f"profile={self.profile!r} is not one of {', '.join(PROFILES)}", "Choose one of those.")
        low, high = RESAMPLE_RATES
        if self.resample_rate and not low <= self.resample_rate <= high:
            raise ConfigError(
                f"resample_rate={self.resample_rate} is outside {low} to {high} Hz", "Use 0 for the voice's own rate."
            )
        if self.auto_key in ("off", "voice"):
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
        return tuple(field.name for field in fields(cls))

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
