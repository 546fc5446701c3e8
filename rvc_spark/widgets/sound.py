"""A sound as a player in a notebook cell: compressed, self-contained, and still there when the notebook is sent on.

The sound travels inside the cell's output, so its size is the notebook's size: hence Ogg, a length limit, and a caption
that says what was left out. Levels are left as they are; nothing is normalised behind the listener's back.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, encode_audio, read_audio
from rvc_spark.errors import AudioError

MIME_TYPES = {"ogg": "audio/ogg", "flac": "audio/flac", "wav": "audio/wav"}
MAX_SECONDS = 600.0  # about 5 MB of Ogg; a notebook that holds more becomes slow to open and to save
VORBIS_RATES = (8_000, 48_000)  # what every browser's Vorbis decoder plays; other rates are resampled


@dataclass(frozen=True)
class SoundPlayer:
    """An encoded sound with its caption; the last line of a cell shows it as a player."""

    data: bytes
    mime_type: str
    caption: str

    def _repr_html_(self) -> str:
        address = f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode('ascii')}"
        words = html.escape(self.caption)
        return (
            '<figure style="margin:0.3em 0"><figcaption style="font:0.9em sans-serif;margin-bottom:0.2em">'
            f'{words}</figcaption><audio controls preload="auto" aria-label="{words}" '
            f'style="width:100%;max-width:36em" src="{address}"></audio></figure>'
        )

    def __repr__(self) -> str:
        return self.caption


def show_audio(
    sound: Audio | str | Path | bytes, title: str = "", *, format: str = "ogg", max_seconds: float = MAX_SECONDS
) -> SoundPlayer:
    """A player for a sound or a sound file.

    Args:
        title: said before the length in the caption; plain text, never markup.
        format: "ogg" (small), "flac" or "wav" (every sample as it is).
        max_seconds: a longer sound is cut there and the caption says so; 600 at most.

    Raises AudioError (no sound, an unknown format, a limit outside 0 to 600 s).
    """
    if format not in MIME_TYPES:
        raise AudioError(f"format {format!r} cannot be played in a notebook", f"Use one of: {', '.join(MIME_TYPES)}.")
    if not 0 < max_seconds <= MAX_SECONDS:
        raise AudioError(f"max_seconds={max_seconds!r} is outside 0 to {MAX_SECONDS:g}", "Save longer sounds as files.")
    whole = sound if isinstance(sound, Audio) else read_audio(sound)
    shown = _beginning(whole, max_seconds)
    notes = [f"{whole.seconds:.2f} s at {whole.rate} Hz"]
    if shown.frames < whole.frames:
        notes.append(f"the first {shown.seconds:.0f} s")
    peak = float(np.abs(shown.samples).max())
    if peak > 1.0 and format != "wav":
        notes.append(f"peaks of {peak:.2f} are cut off at 1")
    if peak == 0.0:
        notes.append("digital silence")
    caption = f"{' '.join(title.split())}: {', '.join(notes)}" if title.strip() else ", ".join(notes)
    playable = _stereo(shown)
    if format == "ogg":
        playable = playable.resampled(min(max(playable.rate, VORBIS_RATES[0]), VORBIS_RATES[1]))
    return SoundPlayer(encode_audio(playable, EncodeOptions(format=format)), MIME_TYPES[format], caption)


def _beginning(sound: Audio, max_seconds: float) -> Audio:
    frames = max(1, int(max_seconds * sound.rate))
    return sound if frames >= sound.frames else Audio(sound.samples[..., :frames], sound.rate)


def _stereo(sound: Audio) -> Audio:
    """Browsers play one or two channels of every format; more are mixed down."""
    return sound if sound.channels <= 2 else sound.mono()
