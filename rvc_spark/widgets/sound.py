"""A sound as a player in a notebook cell: compressed, self-contained, and still there when the notebook is sent on.

The sound travels inside the cell's output, so its size is the notebook's size: hence Ogg, a limit, and a caption that
says what was given up for it. Levels are left as they are; nothing is normalised behind the listener's back.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, encode_audio, read_audio
from rvc_spark.errors import AudioError

MIME_TYPES = {"ogg": "audio/ogg", "flac": "audio/flac", "wav": "audio/wav"}
MAX_SECONDS = 600.0
MAX_BYTES = 144_000  # 192,000 characters of base64: a notebook with twenty such players still opens at once
BYTES_RANGE = (10_000, 8_000_000)  # Vorbis' own tables take 4,000; 8 MB is an hour's patience of a browser's save
VORBIS_RATES = (8_000, 48_000)  # what every browser's Vorbis decoder plays; other rates are resampled
# What is given up to keep a sound whole, in this order: Vorbis quality and the highest rate, then the second channel.
# MAX_BYTES hold about 13, 19, 19, 30 and 45 s of speech (measured on the demo voice's examples).
OGG_STEPS = ((0.8, 48_000, 2), (0.5, 32_000, 2), (0.5, 32_000, 1), (0.3, 24_000, 1), (0.0, 16_000, 1))
TASTE_SECONDS = 4.0  # three such pieces of a long sound are encoded at each step before the whole is
SHOWN = "none"  # watermark: recordings of people are shown as well as results; what is written gets its mark there
SURE_TO_FAIL = 1.5  # times the limit: the pieces may be louder than the rest, but not by so much


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
    sound: Audio | str | Path | bytes, title: str = "", *, format: str = "ogg", max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> SoundPlayer:  # fmt: skip
    """A player for a sound or a sound file.

    Args:
        title: said before the length in the caption; plain text, never markup.
        format: "ogg" (small; a long sound is coded more coarsely before it is cut), "flac" or "wav" (every sample that
            is shown as it is).
        max_seconds: a longer sound is cut there and the caption says so; 600 at most.
        max_bytes: of the encoded sound, 10,000 to 8,000,000; in the notebook base64 makes them a third more. What does
            not fit is cut, and the caption says so.

    Raises AudioError (no sound, an unknown format, a limit outside its range).
    """
    if format not in MIME_TYPES:
        raise AudioError(f"format {format!r} cannot be played in a notebook", f"Use one of: {', '.join(MIME_TYPES)}.")
    if not 0 < max_seconds <= MAX_SECONDS:
        raise AudioError(f"max_seconds={max_seconds!r} is outside 0 to {MAX_SECONDS:g}", "Save longer sounds as files.")
    if not BYTES_RANGE[0] <= max_bytes <= BYTES_RANGE[1]:
        low, high = BYTES_RANGE
        raise AudioError(f"max_bytes={max_bytes!r} is outside {low:,} to {high:,}", "Save longer sounds as files.")
    whole = sound if isinstance(sound, Audio) else read_audio(sound)
    shown = _beginning(whole, max_seconds)
    fitted = _fitted_ogg(_stereo(shown), max_bytes) if format == "ogg" else _cut_to_fit(
        _stereo(shown), EncodeOptions(format=format, watermark=SHOWN), max_bytes
    )  # fmt: skip
    notes = [f"{whole.seconds:.2f} s at {whole.rate} Hz", *fitted.notes]
    if fitted.seconds < whole.seconds - 0.5 / whole.rate:
        too_large = fitted.seconds < shown.seconds
        why = ", as the notebook would grow too large; write_audio keeps the whole" if too_large else ""
        notes.append(f"only the first {fitted.seconds:.0f} s{why}")
    peak = float(np.abs(shown.samples).max())
    if peak > 1.0 and format != "wav":
        notes.append(f"peaks of {peak:.2f} are cut off at 1")
    if peak == 0.0:
        notes.append("digital silence")
    caption = f"{' '.join(title.split())}: {', '.join(notes)}" if title.strip() else ", ".join(notes)
    return SoundPlayer(fitted.data, MIME_TYPES[format], caption)


@dataclass(frozen=True)
class _Fitted:
    """An encoded sound that is small enough, how much of the sound it holds, and what was given up besides length."""

    data: bytes
    seconds: float
    notes: tuple[str, ...] = ()


def _fitted_ogg(sound: Audio, max_bytes: int) -> _Fitted:
    """The finest step that holds all of the sound; the beginning at the coarsest one if none does."""
    for step in OGG_STEPS:
        quality, highest, channels = step
        options = EncodeOptions(format="ogg", quality=quality, watermark=SHOWN)
        rate = min(max(sound.rate, VORBIS_RATES[0]), highest)
        coarser = sound if sound.channels <= channels else sound.mono()
        times_too_large = _bytes_expected(coarser, rate, options) / max_bytes
        if times_too_large > SURE_TO_FAIL:
            if step != OGG_STEPS[-1]:
                continue
            coarser = _beginning(coarser, SURE_TO_FAIL * coarser.seconds / times_too_large)
        playable = coarser.resampled(rate)
        data = encode_audio(playable, options)
        if len(data) <= max_bytes:
            break
    notes = ("coded more coarsely to stay small",) if step != OGG_STEPS[0] else ()
    if len(data) > max_bytes:
        return replace(_cut_to_fit(playable, options, max_bytes), notes=notes)
    return _Fitted(data, coarser.seconds, notes)


def _bytes_expected(sound: Audio, rate: int, options: EncodeOptions) -> float:
    """Size of a long sound, extrapolated from pieces at its beginning, middle and end; 0, unknown, for a short one."""
    frames = int(TASTE_SECONDS * sound.rate)
    if sound.frames <= 6 * frames:
        return 0.0  # encoding it whole is as quick
    starts = (0, (sound.frames - frames) // 2, sound.frames - frames)
    tasted = np.concatenate([sound.samples[..., start : start + frames] for start in starts], axis=-1)
    return len(encode_audio(Audio(tasted, sound.rate).resampled(rate), options)) * sound.frames / tasted.shape[-1]


def _cut_to_fit(sound: Audio, options: EncodeOptions, max_bytes: int) -> _Fitted:
    """As much of the beginning as fits; a sound that fits stays whole."""
    shown = sound
    data = encode_audio(shown, options)
    while len(data) > max_bytes:
        shown = _beginning(shown, 0.97 * shown.seconds * max_bytes / len(data))
        data = encode_audio(shown, options)
    return _Fitted(data, shown.seconds)


def _beginning(sound: Audio, max_seconds: float) -> Audio:
    frames = max(1, int(max_seconds * sound.rate))
    return sound if frames >= sound.frames else Audio(sound.samples[..., :frames], sound.rate)


def _stereo(sound: Audio) -> Audio:
    """Browsers play one or two channels of every format; more are mixed down."""
    return sound if sound.channels <= 2 else sound.mono()
