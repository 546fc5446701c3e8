"""The key of a live conversion: as set, or found from the first voiced sound and then held."""

from __future__ import annotations

import numpy as np

from rvc_spark.infer.pitch_edit import VoiceRange, automatic_key
from rvc_spark.infer.settings import ConversionSettings

ENOUGH = 50  # voiced frames, half a second; a melody whose key changed later would be another melody


class LiveKey:
    """Semitones to apply and why; provisional until ENOUGH voiced frames were heard."""

    def __init__(self, settings: ConversionSettings, voice_range: VoiceRange | None) -> None:
        self.key = settings.key
        self.reason = f"{settings.key:+g} semitones as set"
        self._set = settings.key
        self._target: VoiceRange | float | None = None
        if settings.auto_key != "off":
            self._target = voice_range if settings.auto_key == "voice" else settings.auto_key
            if self._target is None:
                self.reason += " (the voice names no median pitch for an automatic key)"
            else:
                self.reason += ", until something voiced is heard"
        self._heard = np.zeros(0)

    def hear(self, f0: np.ndarray, settled: int) -> None:
        """Listen to new frames, Hz [n], 0 = unvoiced; the first `settled` of them will not be given again."""
        if self._target is None:
            return
        heard = np.concatenate([self._heard, f0[f0 > 0]])
        self._heard = np.concatenate([self._heard, f0[:settled][f0[:settled] > 0]])
        if not len(heard):
            return
        found = automatic_key(heard, self._target)
        self.key, self.reason = self._set + found.key, f"{found.reason} (provisional)"
        if len(self._heard) >= ENOUGH:
            held = automatic_key(self._heard, self._target)
            self.key = self._set + held.key
            self.reason = f"{held.reason} (found in the first {len(self._heard) / 100:.1f} s of voiced sound)"
            self._target = None
