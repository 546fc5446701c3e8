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
from rvc_spark.rvc_config import Choice
from rvc_spark.rvc_modules import VC

PAUSE_SECONDS = 0.1  # engines put at least this much digital silence between sentences
LONGEST_SECONDS = 30.0  # of a part without a pause; then it is cut where it is


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


def parts_between_pauses(spoken: Iterator[Audio]) -> Iterator[tuple[Audio, int]]:
    """(speech, samples of silence after it), in order; together they are all samples that came."""
    held = np.zeros(0, np.float32)
    rate = 0
    for piece in spoken:
        rate = piece.rate
        held = np.concatenate([held, piece.samples.reshape(-1)])
        while (found := _first_pause(held, rate)) is not None:
            start, stop = found
            if stop == len(held):  # it may go on in the next piece
                break
            yield Audio(held[:start], rate), stop - start
            held = held[stop:]
        if len(held) > LONGEST_SECONDS * rate:
            yield Audio(held, rate), 0
            held = held[:0]
    if len(held):
        found = _first_pause(held, rate)
        start = len(held) if found is None else found[0]
        yield Audio(held[:start], rate), len(held) - start


def _first_pause(samples: np.ndarray, rate: int) -> tuple[int, int] | None:
    """The first run of digital silence that has speech before it and is long enough: its start and end."""
    loud = np.flatnonzero(samples)
    if not len(loud):
        return None
    edges = np.append(loud, len(samples))
    gaps = np.flatnonzero(np.diff(edges) > PAUSE_SECONDS * rate)
    if not len(gaps):
        return None
    return int(edges[gaps[0]]) + 1, int(edges[gaps[0] + 1])


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

