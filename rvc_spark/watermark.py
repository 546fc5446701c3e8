"""Is a sound marked? The question to any file or Audio; the marking itself is a stage of every writer.

    verify_watermark("she.mp3")      perth present, score 1.00: found in all of 12.3 s

Reads block by block, so a file of any length will do.
"""

from __future__ import annotations

import numpy as np

from rvc_spark.audio import Audio, AudioSource, open_audio
from rvc_spark.audio_watermark import WatermarkReport, examine

__all__ = ["WatermarkReport", "verify_watermark"]


def verify_watermark(sound: AudioSource | Audio) -> WatermarkReport:
    """Look for the watermark `perth` in a sound.

    A score near 1 over several seconds is a mark; it survives 64 kb/s MP3, resampling to 16 kHz, changes of loudness
    and cutting. It names nobody: it says that a program made the sound, not which. No mark proves nothing.

    Args:
        sound: a path, bytes, a binary stream, or an Audio.

    Returns:
        score, whether that counts as present, the seconds examined, and the reason in words.

    Raises:
        AudioError: the sound cannot be read.
        MissingPackageError, WatermarkModelError: the package resemble-perth is not there, or not as it should be.
    """
    if isinstance(sound, Audio):
        return examine(iter([np.atleast_2d(sound.samples)]), sound.rate)
    with open_audio(sound) as reader:
        return examine(reader.blocks(), reader.rate)
