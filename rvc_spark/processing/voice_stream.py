"""Speech converted part by part while the rest is still being spoken.

    spoken pieces -> cut at the pauses between sentences -> converted one after the other -> sound in the chosen voice

A part ends at a pause, so nothing is cut inside a word. The key that was found for the first part is kept for all, and
the joined parts are as long as the conversion of the whole would be.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.processing.spoken_parts import parts_between_pauses
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_modules import VC


class VoiceStream:
    """Iterator over converted sound, float32 [T] at the voice's rate. Closing it ends the speaking too.

    engines: which engine did what and why; complete with the first part.
    Raises while iterating what speaking and `VC.convert` raise.
    """

    def __init__(self, vc: VC, spoken: Iterator[Audio], why: Choice, settings: ConversionSettings) -> None:
        self.engines: dict[str, Choice] = {"tts": why}
        self._spoken = spoken
        self._sound = _converted(vc, spoken, settings, self.engines)

    def __iter__(self) -> VoiceStream:
        return self

    def __next__(self) -> Audio:
        return next(self._sound)

    def close(self) -> None:
        """End everything."""
        self._sound.close()
        close = getattr(self._spoken, "close", None)
        if close is not None:
            close()


def _converted(
    vc: VC, spoken: Iterator[Audio], settings: ConversionSettings, engines: dict[str, Choice]
) -> Iterator[Audio]:
    heard = made = 0
    for speech, pause in parts_between_pauses(spoken):
        conversion = vc.convert(speech, settings)
        if len(engines) == 1:
            engines.update(conversion.engines)
            settings = settings.changed(key=float(conversion.engines["key"].value), auto_key="off")
        sound = conversion.audio.samples
        heard += speech.frames + pause
        end = round(heard * conversion.rate / speech.rate)  # where the whole conversion would be by now
        silence = np.zeros(max(0, end - made - len(sound)), np.float32)
        sound = np.concatenate([sound[: end - made], silence])
        made = end
        yield Audio(sound, conversion.rate)

