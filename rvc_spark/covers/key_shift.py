"""Another key for a whole band: every pitch moves by semitones, the length does not change by a frame.

A phase vocoder stretches the sound in time, a resampler of soxr brings it back to its length, and with it every pitch.

    blocks -> windows every `analysis` frames -> spectra -> phases moved on -> windows every HOP frames -> resample
              (HOP / stretch on average)                                        (stretched by 2^(semitones / 12))

Phases are moved on as Laroche and Dolson describe ("Improved phase vocoder time-scale modification of audio", IEEE
Trans. Speech and Audio 7, 1999): each peak of the spectrum advances at its own measured frequency and the bins around
it keep their phase relative to it, so a note stays one note. Two things are added:

- both channels follow the same peaks, of their common power, so that the stereo image stands still;
- at an attack the peaks that jump take their phases from the input as they are, so that a drum stays a drum; what
  sounded before it and goes on, keeps its phase, so that a held chord under it does not stumble.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
from scipy import fft

from rvc_spark.audio_limits import check_channels, check_rate
from rvc_spark.audio_resample import StreamResampler
from rvc_spark.covers.key_proposal import KEY_LIMIT
from rvc_spark.errors import AudioError, ConfigError

WINDOW_SECONDS = 0.093
"""4096 frames at 44.1 kHz: tells semitones apart from 130 Hz up, and a bass line by its harmonics."""
OVERLAP = 4
"""Windows over every frame of the stretched sound. A Hann window squared, at 4, adds up to a constant."""
RATE_STEPS = 20_000
"""soxr takes whole rates; the ratio is a fraction of at most this, wrong by less than a hundredth of a cent."""
ATTACK_RISE = 0.1
"""A window is an attack where the sum of the roots of its magnitudes, which weighs hiss and bass alike, has grown by
this share; a glide or vibrato moves magnitudes about and leaves the sum alone."""
ATTACK_JUMP = 1.4
"""A peak of such a window is new where it has this many times the magnitude that was there before (3 dB)."""
TURN = 2 * np.pi


def stretch_ratio(semitones: float) -> Fraction:
    """2^(semitones / 12) as a fraction that a resampler takes."""
    return Fraction(2 ** (semitones / 12)).limit_denominator(RATE_STEPS)


class KeyShifter:
    """Blocks float32 [C, n] into `push`, then `flush`; joined, as many frames as came in, in step with them."""

    def __init__(self, rate: int, channels: int, semitones: float) -> None:
        """Raises AudioError for rate or channels out of range, ConfigError for more than 24 semitones."""
        check_rate(rate)
        self.channels = check_channels(channels)
        if isinstance(semitones, bool) or not abs(semitones) <= KEY_LIMIT:
            raise ConfigError(
                f"A key shift of {semitones!r} is outside {-KEY_LIMIT:g} to {KEY_LIMIT:g} semitones",
                "Choose a value in that range.",
            )
        self._ratio = stretch_ratio(semitones)
        self._frames_in = self._frames_out = 0
        self._vocoder = None if self._ratio == 1 else TimeStretcher(rate, channels, self._ratio)
        self._resampler = StreamResampler(self._ratio.numerator, self._ratio.denominator, channels)

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, n] (or [n] for one channel) -> float32 [C, m], maybe of no frames.

        Raises AudioError for another channel count.
        """
        block = np.atleast_2d(np.asarray(block, np.float32))
        if len(block) != self.channels:
            raise AudioError(
                f"A block of {len(block)} channels came to a key shift of {self.channels}",
                "Push arrays of shape [C, n].",
            )
        self._frames_in += block.shape[1]
        if self._vocoder is None:
            self._frames_out = self._frames_in
            return block
        return self._counted(self._resampler.push(self._vocoder.push(block)))

    def flush(self) -> np.ndarray:
        """The rest, float32 [C, m]."""
        if self._vocoder is None:
            return np.zeros((self.channels, 0), np.float32)
        rest = [self._resampler.push(self._vocoder.flush()), self._resampler.finish()]
        return self._counted(np.concatenate(rest, axis=1), self._frames_in - self._frames_out)

    def _counted(self, block: np.ndarray, most: int | None = None) -> np.ndarray:
        if most is not None:
            block = np.pad(block[:, :most], ((0, 0), (0, max(0, most - block.shape[1]))))
        self._frames_out += block.shape[1]
        return block


class TimeStretcher:
    """Makes a sound `ratio` times as long at the same pitch: blocks float32 [C, n] into `push`, then `flush`.

    Frame t of the input is at frame t * ratio of the output. Windows lie where their centres meet, so the place of
    window k in the input is k * hop / ratio, rounded; the true distance of two windows is what phases are measured by.
    """

    def __init__(self, rate: int, channels: int, ratio: Fraction) -> None:
        self._size = size = 2 ** round(np.log2(rate * WINDOW_SECONDS))
        self._hop = size // OVERLAP
        self._ratio = ratio
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)).astype(np.float32)
        self._overlapped = self._window / np.float32(0.375 * OVERLAP)  # squared Hann windows add up to that
        self._bins = np.arange(size // 2 + 1)
        self._waiting = np.zeros((channels, size // 2), np.float32)  # input from frame `self._start` on
        self._start = -(size // 2)
        self._windows = 0
        self._place = 0  # of the last window
        self._sums = np.zeros((channels, size), np.float32)  # output from frame `windows * hop - size / 2` on
        self._before: np.ndarray | None = None  # spectra of the last window
        self._turn = np.zeros(size // 2 + 1)  # phase by which each bin was turned there
        self._early = size // 2  # frames that come out before frame 0: half a window nobody asked for
        self._frames_in = self._frames_out = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, n] -> float32 [C, m] that no later input changes."""
        self._frames_in += block.shape[1]
        self._waiting = np.concatenate([self._waiting, block], axis=1)
        ready = self._stretched()
        self._frames_out += ready.shape[1]
        return ready

    def flush(self) -> np.ndarray:
        """The rest; joined, round(frames * ratio) came out."""
        missing = round(self._frames_in * self._ratio) - self._frames_out
        behind = self._size + int(self._size / self._ratio) + 1  # of silence, for two windows' worth of output
        self._waiting = np.pad(self._waiting, ((0, 0), (0, behind)))
        return self._stretched()[:, :missing]

    def _stretched(self) -> np.ndarray:
        """Every window that lies whole in what is there."""
        ready = []
        while True:
            place = round(self._windows * self._hop / self._ratio)
            first = place - self._size // 2 - self._start
            if first + self._size > self._waiting.shape[1]:
                break
            self._add(self._waiting[:, first : first + self._size], place - self._place)
            self._place = place
            self._windows += 1
            ready.append(self._sums[:, : self._hop].copy())
            self._sums = np.pad(self._sums[:, self._hop :], ((0, 0), (0, self._hop)))
        keep = round(self._windows * self._hop / self._ratio) - self._size // 2 - self._start
        if keep > 0:
            self._waiting, self._start = self._waiting[:, keep:], self._start + keep
        joined = np.concatenate([*ready, np.zeros((len(self._waiting), 0), np.float32)], axis=1)
        early = min(self._early, joined.shape[1])
        self._early -= early
        return joined[:, early:]

    def _add(self, frames: np.ndarray, distance: int) -> None:
        spectra = fft.rfft(frames * self._window)
        if self._before is not None:
            self._move_on(spectra, self._before, distance)
        self._before = spectra
        self._sums += fft.irfft(spectra * np.exp(1j * self._turn).astype(np.complex64), self._size) * self._overlapped

    def _move_on(self, spectra: np.ndarray, before: np.ndarray, distance: int) -> None:
        """Find by what each bin is to be turned, from two spectra [C, bins] that lie `distance` frames apart."""
        magnitude, past = np.linalg.norm(spectra, axis=0), np.linalg.norm(before, axis=0)
        peaks = np.flatnonzero(_is_peak(magnitude))
        if not len(peaks):
            return
        expected = TURN * peaks * distance / self._size
        moved = np.angle((spectra[:, peaks] * np.conj(before[:, peaks])).sum(axis=0)) - expected
        advance = expected + moved - TURN * np.rint(moved / TURN)  # radians from one window to the other
        turn = self._turn[peaks] + advance * (self._hop / max(distance, 1) - 1)
        turn[_is_new(magnitude, past, peaks)] = 0.0
        borders = (peaks[:-1] + peaks[1:] + 1) // 2
        self._turn = (turn % TURN)[np.searchsorted(borders, self._bins, side="right")]


def _is_peak(magnitude: np.ndarray) -> np.ndarray:
    """Bins above their two neighbours on either side."""
    padded = np.pad(magnitude, 2)
    centre = padded[2:-2]
    return (centre > padded[1:-3]) & (centre >= padded[3:-1]) & (centre > padded[:-4]) & (centre >= padded[4:])


def _is_new(magnitude: np.ndarray, before: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Which peaks of a window begin in it, bool [peaks]; none unless the window is an attack."""
    now, then = np.sqrt(magnitude).sum(), np.sqrt(before).sum()
    if now - then <= ATTACK_RISE * now:
        return np.zeros(len(peaks), bool)
    around = np.maximum(np.maximum(before[peaks - 1], before[peaks]), before[np.minimum(peaks + 1, len(before) - 1)])
    return magnitude[peaks] > ATTACK_JUMP * around


def shift_key(blocks: Iterable[np.ndarray], rate: int, channels: int, semitones: float) -> Iterator[np.ndarray]:
    """A sound in another key, as long as it was and in step with it; 0 semitones pass bit for bit.

    Args:
        blocks: float32 [C, n] of any n.
        semitones: -24..24; fractions are fine.

    Yields:
        float32 [C, m].

    Raises:
        AudioError, ConfigError: as `KeyShifter`.
    """
    shifter = KeyShifter(rate, channels, semitones)
    for block in blocks:
        moved = shifter.push(block)
        if moved.shape[1]:
            yield moved
    rest = shifter.flush()
    if rest.shape[1]:
        yield rest
