"""Which key the voice sings in and which the band plays in, so that both meet.

The voice's key is `automatic_key` of the conversion. A melody moved by whole octaves fits the band as it is; moved by
anything else, the band has to follow, by the same semitones less the nearest octave, which is never more than 6:

    voice  -12  -7  -5   0   3   5   7   9  12
    band     0   5  -5   0   3   5  -5  -3   0        voice - band is a multiple of 12
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rvc_spark.errors import ConfigError
from rvc_spark.infer.pitch_edit import KeyProposal, VoiceRange, automatic_key

OCTAVE = 12
KEY_LIMIT = 24.0
"""Semitones either way that a key may be given by hand, here and in `key_shift`."""
OCTAVE_REACH = 4.5
"""Semitones a voice may sing away from its median without sounding strained; up to here the song keeps its key, since
a band sounds best as it was recorded."""


@dataclass(frozen=True)
class KeyPlan:
    """Semitones for the voice and for the band, each with its reason."""

    voice_key: float
    music_key: float
    voice_reason: str
    music_reason: str

    @property
    def in_tune(self) -> bool:
        """Whether voice and band still meet: their difference is a whole number of octaves, to a cent."""
        difference = (self.voice_key - self.music_key) % OCTAVE
        return min(difference, OCTAVE - difference) < 0.01

    def __str__(self) -> str:
        return f"voice {self.voice_key:+g} ({self.voice_reason}), music {self.music_key:+g} ({self.music_reason})"


def propose_keys(
    f0: np.ndarray,
    voice: VoiceRange | None,
    *,
    voice_key: float | None = None,
    music_key: float | None = None,
) -> KeyPlan:
    """Keys for a song. What is given is kept as it is; the rest is proposed so that voice and band stay in tune.

    Args:
        f0: the source vocal's pitch, float [T] Hz per 10 ms, 0 = unvoiced; empty if nothing is known of it.
        voice: where the target voice is at home, or None if its card does not say.
        voice_key, music_key: semitones chosen by a person, either alone or both; each -24..24.

    Raises:
        ConfigError: a key out of range.
    """
    for name, key in (("voice_key", voice_key), ("music_key", music_key)):
        if key is not None and (isinstance(key, bool) or not math.isfinite(key) or abs(key) > KEY_LIMIT):
            raise ConfigError(
                f"{name}={key!r} is outside {-KEY_LIMIT:g} to {KEY_LIMIT:g} semitones", "Choose a value in that range."
            )
    if voice_key is not None:
        sung = KeyProposal(float(voice_key), "as set")
    elif music_key is not None:
        sung = _sung_over(f0, voice, float(music_key))
    else:
        sung = _sung(f0, voice)
    if music_key is not None:
        return KeyPlan(sung.key, float(music_key), sung.reason, "as set")
    followed = music_key_for(sung.key)
    if followed == 0:
        reason = "as recorded: the voice moves by whole octaves" if sung.key else "as recorded"
    else:
        octaves = round((sung.key - followed) / OCTAVE)
        reason = "follows the voice" + (f" less {octaves:+d} octave{'s' * (abs(octaves) != 1)}" if octaves else "")
    return KeyPlan(sung.key, followed, sung.reason, reason)


def music_key_for(voice_key: float) -> float:
    """The smallest move of the band, -6 < key <= 6 semitones, that stays in tune with a voice moved by `voice_key`."""
    key = OCTAVE / 2 - (OCTAVE / 2 - voice_key) % OCTAVE
    return round(key, 6) + 0.0


def _sung(f0: np.ndarray, voice: VoiceRange | None) -> KeyProposal:
    """The octave if the voice reaches it, else the nearest semitone."""
    if voice is None:
        return KeyProposal(0.0, "the voice names no pitch range, so the melody stays where it is")
    exact = automatic_key(f0, voice)
    octave = automatic_key(f0, voice, step=OCTAVE)
    away = abs(octave.key - exact.key)
    if away <= OCTAVE_REACH:
        return KeyProposal(octave.key, octave.reason if away == 0 else f"{octave.reason}; octaves keep the song's key")
    return KeyProposal(exact.key, f"{exact.reason}; an octave would be {away:g} semitones further")


def _sung_over(f0: np.ndarray, voice: VoiceRange | None, music_key: float) -> KeyProposal:
    """The voice's key that meets a band whose key is set: the band's, and octaves on top where the voice needs them."""
    if voice is None:
        return KeyProposal(music_key, "follows the music; the voice names no pitch range")
    moved = np.asarray(f0) * 2 ** (music_key / OCTAVE)
    octave = automatic_key(moved, voice, step=OCTAVE)
    return KeyProposal(music_key + octave.key, f"follows the music with {octave.key / OCTAVE:+g} octaves for the voice")
