"""What a live player leaves behind: the sound that was made, as a small player that stays with the notebook.

Everything a cell keeps of it is below 200,000 bytes, so of a long take only the beginning can be heard there, and that
is said; the whole can be saved, or had as samples, as long as the kernel lives.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, open_writer, read_audio
from rvc_spark.infer.mel import hz_to_mel
from rvc_spark.infer.pitch_trackers import HOP, SAMPLE_RATE, pm_f0
from rvc_spark.streaming.chunk import Gap
from rvc_spark.streaming.stats import StreamStats
from rvc_spark.streaming.take import TakeStore
from rvc_spark.widgets.palette_png import palette_png
from rvc_spark.widgets.sound import SoundPlayer, show_audio
from rvc_spark.widgets.spectrogram import FLOOR_DB, mel_picture

SOUND_BYTES = 120_000  # 160,000 characters; the picture takes up to 25,000 more
SHOWN_SECONDS = 60.0  # more than this does not fit even at the coarsest step
COLUMNS, BANDS, GREYS = 480, 72, 15
TOP_HZ = 8_000.0
SHOWN_GAPS = 20
F0_COLOUR = (0, 114, 178)  # the blue that `plots` draws results with


class Take:
    """Everything that was made so far, in a store that may still grow.

    Attributes: `rate` (Hz), `title`, `gaps` (sentences that are missing; the list may still grow).
    """

    def __init__(self, store: TakeStore, title: str, gaps: Sequence[Gap], stats: Callable[[], StreamStats]) -> None:
        self.rate = store.rate
        self.title = title
        self.gaps = gaps
        self._store = store
        self._stats = stats
        self._drawn = (0, "")  # frames, and the markup of the player that holds them

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self._store.seconds

    @property
    def audio(self) -> Audio:
        """All of it in memory. Raises StreamError (more than memory should hold: save it instead)."""
        return self._store.audio()

    @property
    def stats(self) -> StreamStats:
        """How it came to be."""
        return self._stats()

    def part(self, start: float, stop: float) -> Audio:
        """The sound from `start` to `stop` seconds. Raises StreamError (nothing is there)."""
        low, high = (min(self._store.frames, max(0, round(second * self.rate))) for second in (start, stop))
        return self._store.audio(low, high)

    def save(self, path: str | Path, options: EncodeOptions | None = None) -> Path:
        """Write all of it, whatever its length, in bounded memory; the suffix decides the format.

        Raises OutputError (the place or the format cannot take it), AudioError, StreamError.
        """
        with open_writer(path, self.rate, self._store.channels, options) as writer:
            for block in self._store.blocks():
                writer.write(block.T)
        return writer.path

    def close(self) -> None:
        """Free the memory and the disk it takes; it cannot be read any more."""
        self._store.close()

    def __repr__(self) -> str:
        name = f"{self.title}: " if self.title else ""
        return f"{name}{self.seconds:.2f} s at {self.rate} Hz ({self._stats()})"

    def _repr_html_(self) -> str:
        missing = [f"sentence {gap.sentence + 1} is missing: {gap.error}" for gap in self.gaps[:SHOWN_GAPS]]
        notes = "".join(f"<div>{html.escape(line)}</div>" for line in [str(self._stats()), *missing])
        return f'<div>{self._sound()}<div style="font:0.8em sans-serif;opacity:0.75">{notes}</div></div>'

    def _sound(self) -> str:
        frames = self._store.frames
        if self._drawn[0] != frames:
            player, heard = static_player(self)
            address = base64.b64encode(take_picture(heard)).decode("ascii")
            words = "Mel spectrogram to 8 kHz with the line of the pitch (f0)"
            picture = (
                f'<img alt="{words}" style="display:block;width:100%;max-width:36em;height:5em" '
                f'src="data:image/png;base64,{address}">'
            )
            self._drawn = (frames, picture + player._repr_html_())
        return self._drawn[1]


def static_player(take: Take) -> tuple[SoundPlayer, Audio]:
    """A player small enough to stay in a notebook, and the sound it holds."""
    beginning = take.part(0.0, SHOWN_SECONDS)
    player = show_audio(beginning, max_bytes=SOUND_BYTES)
    held = min(beginning.seconds, read_audio(player.data).seconds)
    name = " ".join(take.title.split())
    words = f"{name}: " if name else ""
    words += f"{take.seconds:.2f} s at {take.rate} Hz"
    if held < take.seconds - 0.05:
        words += f"; here the first {held:.0f} s, so that the notebook stays small. The whole: take.save('take.flac')"
    return replace(player, caption=words), take.part(0.0, held)


def take_picture(sound: Audio) -> bytes:
    """A small PNG: mel spectrogram in greys, f0 as a blue line."""
    samples = sound.mono().samples
    top = min(TOP_HZ, sound.rate / 2)
    picture = mel_picture(samples, sound.rate, top_hz=top, columns=COLUMNS, bands=BANDS)
    levels = np.rint((picture.levels - FLOOR_DB) / -FLOOR_DB * (GREYS - 1)).astype(np.uint8)  # [bands, columns]
    f0 = _pitch(sound)
    for column in range(levels.shape[1]):
        frame = round((column + 0.5) * picture.step * SAMPLE_RATE / HOP)
        if frame < len(f0) and 0 < f0[frame] < top:
            band = int(hz_to_mel(f0[frame]) / picture.top_mel * BANDS)
            levels[max(0, band - 1) : band + 1, column] = GREYS
    shades = np.linspace(255, 20, GREYS).astype(np.uint8)
    return palette_png(levels[::-1], np.vstack([np.repeat(shades[:, None], 3, axis=1), F0_COLOUR]))


def _pitch(sound: Audio) -> np.ndarray:
    """Hz per 10 ms, second by second: Praat lets no other thread run, and one of them may be playing."""
    samples = sound.mono().resampled(SAMPLE_RATE).samples.astype(np.float64)
    starts = range(0, len(samples), SAMPLE_RATE)
    return np.concatenate([pm_f0(samples[start : start + SAMPLE_RATE]) for start in starts])
