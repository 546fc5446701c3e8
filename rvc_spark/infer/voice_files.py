"""Which voices there are: the .pth files of a few folders, by name, with what is known of each.

A voice is a file `NAME.pth`. Beside it may lie `NAME.json`, its card (display name, licence, pitch range), and a
folder `content_encoder`, the encoder it was trained with when that is not the usual one. Names are looked up among the
files found, never turned into paths, so a name cannot reach outside the folders.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rvc_spark.errors import ConfigError, PitchError, RvcSparkError, VoiceNotFoundError
from rvc_spark.infer.checkpoint import VoiceInfo, inspect_checkpoint
from rvc_spark.infer.pitch_edit import VoiceRange

CARD_BYTES = 64 << 10
PITCH_HZ = (40.0, 1200.0)
PITCH_FIELDS = ("median_f0_hz", "low_f0_hz", "high_f0_hz")
DEPTH = 2  # weights/NAME.pth and weights/NAME/NAME.pth
MAX_VOICES = 10_000


@dataclass(frozen=True)
class VoiceCard:
    """What a person or the trainer wrote beside a voice; every field may be missing."""

    name: str = ""
    description: str = ""
    licence: str = ""
    median_f0_hz: float | None = None
    low_f0_hz: float | None = None  # 5th percentile of what the voice was trained on
    high_f0_hz: float | None = None  # 95th percentile

    @property
    def pitch(self) -> VoiceRange | None:
        """Where the voice is at home, None if the card does not say."""
        if self.median_f0_hz is None:
            return None
        return VoiceRange(self.median_f0_hz, self.low_f0_hz, self.high_f0_hz)


@dataclass(frozen=True)
class VoiceListing:
    """One voice file. `info` is None where `error` says why the file cannot be used."""

    name: str
    path: Path
    size: int  # bytes
    card: VoiceCard
    info: VoiceInfo | None
    error: str | None


def read_card(voice: Path) -> VoiceCard:
    """The card beside a voice, empty if there is none. Raises ConfigError when it is damaged."""
    path = voice.with_suffix(".json")
    if not path.is_file():
        return VoiceCard()
    cure = "Correct the card or delete it."
    if path.stat().st_size > CARD_BYTES:
        raise ConfigError(f"voice card {path.name} has {path.stat().st_size} bytes, more than {CARD_BYTES}", cure)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"voice card {path.name} is not JSON: {error}", cure) from error
    if not isinstance(card, dict):
        raise ConfigError(f"voice card {path.name} is not a JSON object", cure)
    texts = {name: card[name] for name in ("name", "description", "licence") if isinstance(card.get(name), str)}
    pitches = {name: card[name] for name in PITCH_FIELDS if card.get(name) is not None}
    for name, value in pitches.items():
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not usable or not PITCH_HZ[0] <= value <= PITCH_HZ[1]:
            raise ConfigError(
                f"voice card {path.name}: {name}={value!r:.40} is outside {PITCH_HZ[0]:g} to {PITCH_HZ[1]:g} Hz", cure
            )
    found = VoiceCard(**texts, **{name: float(value) for name, value in pitches.items()})
    try:
        _ = found.pitch  # checks the order of the three
    except PitchError as error:
        raise ConfigError(f"voice card {path.name}: {error.problem}", cure) from error
    return found


def voice_paths(folders: list[Path]) -> dict[str, Path]:
    """Name -> file for every voice in the folders and their direct subfolders; the first of a name wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        patterns = ["/".join(["*"] * depth + ["*.pth"]) for depth in range(DEPTH)]
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            if path.is_file() and len(found) < MAX_VOICES:
                found.setdefault(_display_name(path), path)
    return found


def _display_name(path: Path) -> str:
    try:
        return read_card(path).name or path.stem
    except ConfigError:
        return path.stem  # the damage is reported where the voice is listed or loaded


def find_voice(name: str, folders: list[Path]) -> Path:
    """The file of a voice given by name (any case, with or without .pth) or by path.

    Raises VoiceNotFoundError naming the folders and the nearest names.
    """
    known = voice_paths(folders)
    wanted = name.removesuffix(".pth")
    by_case = {key.casefold(): path for key, path in known.items()}
    if wanted in known:
        return known[wanted]
    if wanted.casefold() in by_case:
        return by_case[wanted.casefold()]
    if "\0" not in name and len(name) < 4096 and name.endswith(".pth") and Path(name).is_file():
        return Path(name)
    near = get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known voices: {', '.join(sorted(known)[:20]) or 'none'}."
    places = ", ".join(str(folder) for folder in folders)
    raise VoiceNotFoundError(f"no voice {name[:200]!r} in {places}", f"{hint} Put its .pth file there, or give a path.")


def list_voices(folders: list[Path]) -> list[VoiceListing]:
    """Every voice with what its file tells. A file that is refused is listed with the reason and spoils no other."""
    listings = []
    for name, path in voice_paths(folders).items():
        card, info, error = VoiceCard(), None, None
        try:
            card = read_card(path)
            info = inspect_checkpoint(path)
        except RvcSparkError as refusal:
            error = str(refusal)
        listings.append(VoiceListing(name, path, path.stat().st_size, card, info, error))
    return sorted(listings, key=lambda voice: voice.name.casefold())
