"""One recording, heard once from its beginning to its end in bounded memory: everything about it that can be measured.

    blocks -> levels, bandwidth, hash            at the file's own rate
           -> mono 16 kHz -> speech probability, loudness per 32 ms, the first minute of samples

What needs a network of voices or many windows is measured on that first minute; longer files are offered in cut form,
and each cut is heard in full when it is given. Judges nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rvc_spark.audio import Audio, StreamResampler, open_audio
from rvc_spark.errors import AudioError
from rvc_spark.profiles.bandwidth import BandwidthMeter
from rvc_spark.profiles.levels import LevelMeter, Levels
from rvc_spark.profiles.speech_activity import (
    ENTER,
    PIECE,
    PIECE_SECONDS,
    SAMPLE_RATE,
    SpeechDetector,
    Stretches,
    speech_stretches,
)

BLOCK_SECONDS = 2.0
EXCERPT_SECONDS = 60.0
RUMBLE_HZ = 70.0
"""Below it is no voice: traffic and steps do not count as noise between the words."""
NEAR_SPEECH_SECONDS = 0.1
"""Of what follows speech, its echo; not counted as noise."""
FEW_PIECES = 10
QUIET_SHARE = 0.05
"""Where a recording has no pauses, the quietest twentieth of it stands for them."""
DIGITAL_SILENCE = 1e-10
"""Mean square below which a piece was muted, not recorded."""


@dataclass(frozen=True)
class Clip:
    """A stretch of a longer sound, in seconds: an offered cut as a sample of its own."""

    source: str | Path | bytes | Audio
    start: float
    end: float
    name: str | None = None

    def read(self) -> Audio:
        """The stretch, in its own rate and channels. Raises AudioError: unreadable, or nothing there."""
        with ExitStack() as stack:
            sound = _opened(self.source, stack)
            first, last = round(self.start * sound.rate), round(self.end * sound.rate)
            kept, place = [], 0
            for block in sound.blocks:
                part = block[:, max(0, first - place) : max(0, last - place)]
                if part.shape[1]:
                    kept.append(part)
                place += block.shape[1]
                if place >= last:
                    break
        if not kept or not 0 <= first < last:
            raise AudioError(
                f"{sound.name} has nothing between {self.start:g} and {self.end:g} s; it ends at "
                f"{place / sound.rate:.2f} s",
                "Choose a stretch inside it.",
            )
        samples = np.concatenate(kept, axis=1)
        return Audio(samples[0] if len(samples) == 1 else samples, sound.rate)


@dataclass
class _Opened:
    """A sound ready to be read, whatever it came from."""

    name: str
    kind: str
    coding: str
    bit_depth: int | None
    bytes: int | None
    rate: int
    channels: int
    expected: int | None
    blocks: Iterator[np.ndarray]


def _opened(source: str | Path | bytes | BinaryIO | Audio | Clip, stack: ExitStack) -> _Opened:
    if isinstance(source, Clip):
        with ExitStack() as peek:
            whole = _opened(source.source, peek)
        audio = source.read()
        name = source.name or f"{whole.name} {source.start:.1f}-{source.end:.1f} s"
        return _Opened(name, whole.kind, whole.coding, whole.bit_depth, whole.bytes, audio.rate, audio.channels,
                       audio.frames, _array_blocks(audio))  # fmt: skip
    if isinstance(source, Audio):
        return _Opened("array", "array", "FLOAT", 32, None, source.rate, source.channels, source.frames,
                       _array_blocks(source))  # fmt: skip
    reader = stack.enter_context(open_audio(source))
    name = Path(source).name if isinstance(source, str | Path) else "bytes" if isinstance(source, bytes) else "stream"
    blocks = reader.blocks(round(BLOCK_SECONDS * reader.rate))
    return _Opened(name, reader.kind, reader.coding, reader.bit_depth, reader.bytes, reader.rate, reader.channels,
                   reader.expected_frames, blocks)  # fmt: skip


def _array_blocks(audio: Audio) -> Iterator[np.ndarray]:
    samples, size = np.atleast_2d(audio.samples), round(BLOCK_SECONDS * audio.rate)
    for start in range(0, audio.frames, size):
        yield samples[:, start : start + size]


class TooLargeError(AudioError):
    """A sound beyond the limits of a quality report; it was not read, or not to its end."""


@dataclass(frozen=True)
class Limits:
    """Beyond which nothing is read."""

    seconds: float
    bytes: int


@dataclass
class Heard:
    """What was measured of one sound.

    loudness: dB of each 32 ms, mono, without rumble: float64 [pieces]. spoken: bool [pieces]. excerpt: float32 [T], the
    first minute at 16 kHz, and excerpt_speech where somebody speaks in it.
    """

    name: str
    kind: str
    coding: str
    bit_depth: int | None
    bytes: int | None
    rate: int
    channels: int
    duration: float
    pcm_sha256: str
    levels: Levels
    bandwidth_hz: float | None
    speech: Stretches
    loudness: np.ndarray
    speech_power: float
    noise_power: float | None
    excerpt: np.ndarray
    excerpt_speech: Stretches


def hear(
    source: str | Path | bytes | BinaryIO | Audio | Clip, detector: SpeechDetector, limits: Limits, excerpt: float
) -> Generator[float, None, Heard]:
    """Read a sound to its end; yields how much of it is done, 0..1.

    Args:
        detector: of speech; a fresh one is taken from it.
        limits: refused beyond them.
        excerpt: seconds kept at 16 kHz.

    Raises:
        TooLargeError: beyond the limits. AudioError: unreadable.
    """
    _check_bytes(source, limits)
    with ExitStack() as stack:
        sound = _opened(source, stack)
        _check_limits(sound, limits)
        ears = _Ears(sound, detector, excerpt)
        done = 0
        for block in sound.blocks:
            ears.push(block)
            done += block.shape[1]
            if done > limits.seconds * sound.rate:
                raise _too_long(sound.name, limits)
            yield min(1.0, done / sound.expected) if sound.expected else 0.5
        return ears.heard(done)


def _check_bytes(source: object, limits: Limits) -> None:
    """Before anything is opened: the size of a path or of bytes."""
    size = 0
    if isinstance(source, Clip):
        source = source.source
    if isinstance(source, str | Path) and Path(source).is_file():
        size = Path(source).stat().st_size
    elif isinstance(source, bytes):
        size = len(source)
    if size > limits.bytes:
        raise TooLargeError(
            f"the file has {size:,} bytes; the limit is {limits.bytes:,}", "Cut out some minutes of speech."
        )


def _check_limits(sound: _Opened, limits: Limits) -> None:
    if sound.bytes is not None and sound.bytes > limits.bytes:
        raise TooLargeError(
            f"the file has {sound.bytes:,} bytes; the limit is {limits.bytes:,}", "Cut out some minutes of speech."
        )
    if sound.expected is not None and sound.expected > limits.seconds * sound.rate:
        raise _too_long(sound.name, limits)


def _too_long(name: str, limits: Limits) -> TooLargeError:
    return TooLargeError(
        f"{name} is longer than {limits.seconds / 60:g} minutes, the limit for one file",
        "Cut out some minutes of speech.",
    )


class _Ears:
    """Everything that listens while blocks come."""

    def __init__(self, sound: _Opened, detector: SpeechDetector, excerpt: float) -> None:
        from scipy.signal import butter  # a third of a second to import

        self._sound = sound
        self._hash = hashlib.sha256(f"{sound.rate} {sound.channels} float32\n".encode())
        self._levels = LevelMeter(sound.rate, sound.channels)
        self._bandwidth = BandwidthMeter(sound.rate)
        self._resampler = StreamResampler(sound.rate, SAMPLE_RATE)
        self._detector = detector.fresh()
        self._filter = butter(2, RUMBLE_HZ, "high", fs=SAMPLE_RATE, output="sos")
        self._filter_state = np.zeros((len(self._filter), 2))
        self._open = np.zeros(0)
        self._powers: list[np.ndarray] = []
        self._room = round(excerpt * SAMPLE_RATE)
        self._excerpt: list[np.ndarray] = []

    def push(self, block: np.ndarray) -> None:
        """float32 [C, n] at the file's rate."""
        self._hash.update(np.ascontiguousarray(block.T, "<f4").data)
        self._levels.push(block)
        mono = block.mean(axis=0, dtype=np.float32)
        self._bandwidth.push(mono)
        self._listen(self._resampler.push(mono))

    def _listen(self, samples: np.ndarray) -> None:
        """float32 [n] mono at 16 kHz."""
        from scipy.signal import sosfilt

        if not len(samples):
            return
        self._detector.push(samples)
        if self._room:
            kept = samples[: self._room].copy()
            self._excerpt.append(kept)
            self._room -= len(kept)
        filtered, self._filter_state = sosfilt(self._filter, samples.astype(np.float64), zi=self._filter_state)
        joined = np.concatenate([self._open, filtered])
        count = len(joined) // PIECE
        self._powers.append(np.square(joined[: count * PIECE]).reshape(count, PIECE).mean(axis=1))
        self._open = joined[count * PIECE :]

    def heard(self, frames: int) -> Heard:
        """All of it, after the last block."""
        sound = self._sound
        self._listen(self._resampler.finish()[0])
        probabilities = self._detector.finish()
        duration = frames / sound.rate
        speech = speech_stretches(probabilities, duration)
        powers = np.concatenate(self._powers) if self._powers else np.zeros(0)
        excerpt = np.concatenate(self._excerpt) if self._excerpt else np.zeros(0, np.float32)
        kept = len(excerpt) / SAMPLE_RATE
        speech_power, noise_power = speech_and_noise(powers, probabilities, speech)
        return Heard(
            sound.name, sound.kind, sound.coding, sound.bit_depth, sound.bytes, sound.rate, sound.channels, duration,
            self._hash.hexdigest(), self._levels.levels(), self._bandwidth.bandwidth(), speech,
            10 * np.log10(powers + 1e-12), speech_power, noise_power, excerpt,
            tuple((start, min(end, kept)) for start, end in speech if start < kept),
        )  # fmt: skip


def speech_and_noise(powers: np.ndarray, probabilities: np.ndarray, speech: Stretches) -> tuple[float, float | None]:
    """Mean square while somebody speaks, noise included, and between it; None where nothing but muted pieces is left.

    Args:
        powers: mean square per 32 ms, float64 [pieces].
        probabilities: of speech, one per 32 ms.
        speech: the stretches they make.
    """
    middle = (np.arange(len(powers)) + 0.5) * PIECE_SECONDS
    inside, near = np.zeros(len(powers), bool), np.zeros(len(powers), bool)
    for start, end in speech:
        inside |= (middle > start) & (middle < end)
        near |= (middle > start - NEAR_SPEECH_SECONDS) & (middle < end + NEAR_SPEECH_SECONDS)
    recorded = powers > DIGITAL_SILENCE
    sure = inside & (probabilities[: len(powers)] >= ENTER) & recorded
    between = powers[~near & recorded]
    if len(between) < FEW_PIECES and recorded.any():
        between = np.sort(powers[recorded])[: max(FEW_PIECES // 2, round(QUIET_SHARE * recorded.sum()))]
    return (
        float(powers[sure].mean()) if sure.any() else 0.0,
        float(between.mean()) if len(between) else None,
    )
