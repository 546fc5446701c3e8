"""What a live conversion hears: pieces of any size in, the 16 kHz signal out that a whole file would give.

    pieces -> mean of channels -> recent past -> 16 kHz by place -> recent past -> high-pass of the window -> peak guard

Every value depends on the positions asked for and never on how the sound was cut into pieces. Two things differ from a
whole file. The zero-phase high-pass of a window lacks the future behind its end, so its backward run starts there: what
is wrong by that lies around 48 Hz and is 20 dB below speech 20 ms before the end, 40 dB at 40 ms, 80 dB at 100 ms. And
the peak guard knows the loudest sample so far, not the one to come. Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rvc_spark.audio import Audio, resampled_length
from rvc_spark.errors import AudioError
from rvc_spark.infer.live_recent import Recent
from rvc_spark.infer.live_resample import first_input, needed_input, resampled_span
from rvc_spark.infer.segments import FILTER_CONTEXT, SAMPLE_RATE, highpass_range, mirrored_range

INPUT_PEAK = 0.95
MIN_SECONDS = 0.01  # one frame, as for a whole file
SLICE_SECONDS = 1  # of a long piece taken at a time, which bounds memory


class LiveSource:
    """The sound so far. `push` and `finish` fill it, `ready` and `window` serve blocks, `forget` keeps it small."""

    def __init__(self) -> None:
        self.rate: int | None = None  # of the pieces, once the first has come
        self.frames = 0  # samples per channel that came
        self.finished = False
        self._channels = 0
        self._raw = Recent()
        self._sound = Recent()
        self._peak = 0.0

    @property
    def held(self) -> int:
        """Samples in memory."""
        return self._raw.held + self._sound.held

    @property
    def delay(self) -> float:
        """Seconds by which the 16 kHz signal lags behind the pieces."""
        if self.rate is None or self.rate == SAMPLE_RATE:
            return 0.0
        return needed_input(self.rate, SAMPLE_RATE, SAMPLE_RATE) / self.rate - 1

    def push(self, piece: Audio) -> Iterator[None]:
        """Take a piece, a second at a time; after each step more may be ready.

        Raises:
            AudioError: no Audio, or another rate or channel count than the piece before.
        """
        self._check(piece)
        step = SLICE_SECONDS * piece.rate
        for at in range(0, piece.frames, step):
            part = Audio(piece.samples[..., at : at + step], piece.rate).mono().samples
            self.frames += len(part)
            self._raw.append(part.copy())  # the caller may fill the same buffer again
            yield

    def _check(self, piece: Audio) -> None:
        if not isinstance(piece, Audio):
            kind = type(piece).__name__
            raise AudioError(f"a piece of the stream is a {kind}", "Give pieces as Audio(samples, rate).")
        if self.rate is None:
            self.rate, self._channels = piece.rate, piece.channels
        if (piece.rate, piece.channels) != (self.rate, self._channels):
            raise AudioError(
                f"the stream began with {self._channels} x {self.rate} Hz and goes on with {piece.channels} x "
                f"{piece.rate} Hz",
                "Convert all pieces to one format first.",
            )

    def finish(self) -> None:
        """No piece follows. Raises AudioError when less than 10 ms came."""
        self.finished = True
        if self.rate is None:
            raise AudioError("the stream ended without sound", "Give at least 10 ms.")
        if self.frames < MIN_SECONDS * self.rate:
            raise AudioError(
                f"the sound has {self.frames} samples at {self.rate} Hz, less than {MIN_SECONDS * 1000:g} ms",
                "Give a longer recording.",
            )

    def length_at(self, rate: int) -> int:
        """Samples of all that came at another rate."""
        return 0 if self.rate is None else round(self.frames * rate / self.rate)

    def ready(self, limit: int) -> bool:
        """Whether everything before sample `limit` at 16 kHz can be read."""
        return self.rate is not None and (
            self.finished or self.frames >= needed_input(self.rate, SAMPLE_RATE, limit)
        )

    def window(self, start: int, stop: int) -> np.ndarray:
        """Samples start..stop at 16 kHz, high-passed, mirrored before the first and after the last: float32 [n].

        Windows must come in the order of their `stop`, which must be `ready`.
        """
        total = self._settle(stop)
        read = self._sound.read
        sound = mirrored_range(lambda a, b: highpass_range(read, total, a, b), total, start, stop)
        return (sound * min(1.0, INPUT_PEAK / max(self._peak, INPUT_PEAK))).astype(np.float32)

    def _settle(self, limit: int) -> int:
        """Resample up to `limit` or the end; returns how many samples there are to see."""
        rate = self.rate or SAMPLE_RATE
        if self.finished:
            limit = min(limit, resampled_length(self.frames, rate, SAMPLE_RATE))
        done = len(self._sound)
        if limit > done:
            fresh = resampled_span(self._raw.read, len(self._raw), (rate, SAMPLE_RATE), done, limit)
            self._peak = max(self._peak, float(np.max(np.abs(fresh))))
            self._sound.append(fresh)
            self._raw.forget(first_input(rate, SAMPLE_RATE, limit))
        return limit

    def forget(self, before: int) -> None:
        """No window will start, or be mirrored, before this sample."""
        self._sound.forget(before - FILTER_CONTEXT)

    def clear(self) -> None:
        """Free all sound; what was counted stays."""
        self._raw, self._sound = Recent(), Recent()
