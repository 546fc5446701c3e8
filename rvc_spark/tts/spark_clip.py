"""A reference recording on its way to the codec: read, resampled, brought to one loudness, cut to the voice's clip.

Every step is fixed by how the networks were trained: the first channel and not the mean, soxr's best quality in
float64, loudness by the mean of the loudest tenth without its last hundredth, six seconds. Refuses to know tokens and
networks.
"""

from __future__ import annotations

import numpy as np

from rvc_spark.audio import Audio, AudioSource, open_audio, resample
from rvc_spark.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
MIN_SAMPLES = 400  # 25 ms: one frame of the feature network
MAX_SECONDS = 600.0  # only the first six seconds make the voice; memory for more would be wasted
MAX_AMPLITUDE = 65_536.0  # full scale is 1.0; sound at 16-bit scale is brought down, larger numbers are no sound
TARGET_VOLUME = 0.2
QUIET_PEAK = 0.1  # peaks below this are raised to it first
SILENT_PEAK = 0.001  # and below this only as far as this one would be
FLOOR = 0.01  # samples below it are pauses, and tell nothing about loudness
FEW_SAMPLES = 10  # that many above the floor are clicks
MIN_GAIN, MAX_GAIN = 0.1, 10.0


def load_reference(source: AudioSource | Audio, *, normalise: bool) -> np.ndarray:
    """Read a reference recording.

    Args:
        source: a path, the bytes of a file, a binary stream, or a sound already read.
        normalise: bring it to the loudness the networks know (`normalise_volume`).

    Returns:
        float64 [T] at 16 kHz, the first channel.

    Raises:
        AudioError: unreadable, shorter than 25 ms, or longer than `MAX_SECONDS`.
    """
    samples, rate = _first_channel(source)
    samples = checked_reference(resample(samples.astype(np.float64), rate, SAMPLE_RATE))
    return normalise_volume(samples) if normalise else samples


def _first_channel(source: AudioSource | Audio) -> tuple[np.ndarray, int]:
    """float32 [T] and its rate; reading stops where the sound is too long."""
    if isinstance(source, Audio):
        _check_seconds(source.frames, source.rate)
        return np.atleast_2d(source.samples)[0], source.rate
    blocks, frames = [], 0
    with open_audio(source) as reader:
        for block in reader.blocks():
            frames += block.shape[1]
            _check_seconds(frames, reader.rate)
            blocks.append(block[0].copy())  # not a view, which would keep every channel
        return np.concatenate(blocks), reader.rate


def _check_seconds(frames: int, rate: int) -> None:
    if frames > MAX_SECONDS * rate:
        raise AudioError(
            f"the reference recording is longer than {MAX_SECONDS:g} seconds", "Cut out 6 to 30 seconds of speech."
        )


def checked_reference(samples: np.ndarray) -> np.ndarray:
    """The samples themselves, if they can be a reference recording: float [T] at 16 kHz.

    Raises:
        AudioError: another shape or type, too short, too long, not finite, or beyond any sound's amplitude.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(
            f"the reference recording is {samples.dtype} {list(samples.shape)}, must be one row of floats",
            "Give mono samples in -1..1.",
        )
    if len(samples) < MIN_SAMPLES:
        raise AudioError(
            f"the reference recording has {len(samples)} samples at 16 kHz, at least {MIN_SAMPLES} are needed",
            "Use 6 to 30 seconds of clear speech.",
        )
    _check_seconds(len(samples), SAMPLE_RATE)
    if not np.abs(samples).max() <= MAX_AMPLITUDE:  # also where it is not a number
        raise AudioError(
            f"the reference recording has samples that are not finite or beyond {MAX_AMPLITUDE:g}",
            "Give samples in -1..1.",
        )
    return samples


def normalise_volume(
    samples: np.ndarray, target: float = TARGET_VOLUME, *, exact_reference: bool = False
) -> np.ndarray:
    """Scale a recording to the loudness the networks were trained at.

    The loudness is the mean of the 90th to 99th percentile of all samples above `FLOOR`. A clip whose peak is below
    0.1 is first raised to that peak. The reference implementation then measures the loudness of the clip as it was
    before, and so raises it twice; here it is measured afterwards.

    Args:
        samples: float32 or float64 [T].
        target: loudness wanted.
        exact_reference: measure as the reference implementation does, for comparisons with it.

    Returns:
        The same type, [T], within -1..1 where anything was raised.
    """
    ordered = np.sort(np.abs(samples))
    if ordered.size == 0:
        return samples
    peak = ordered[-1]
    if peak < QUIET_PEAK:
        samples = samples / max(peak, SILENT_PEAK) * QUIET_PEAK
        if not exact_reference:
            ordered = np.sort(np.abs(samples))
    spoken = ordered[ordered > FLOOR]
    if spoken.size <= FEW_SAMPLES:
        return samples
    loudness = spoken[int(0.9 * spoken.size) : int(0.99 * spoken.size)].mean()
    samples = samples * np.clip(target / loudness, MIN_GAIN, MAX_GAIN)
    peak = np.abs(samples).max()
    return samples / peak if peak > 1 else samples


def reference_clip(
    samples: np.ndarray, rate: int = SAMPLE_RATE, seconds: float = 6.0, hop: int = 320
) -> np.ndarray:
    """The clip a voice is recognised by: the first `seconds`, a shorter recording repeated end to end.

    Returns:
        float32 [int(rate * seconds) // hop * hop], 96000 samples for the published settings.

    Raises:
        AudioError: the recording is empty, or the settings leave no sample.
    """
    length = int(rate * seconds) // hop * hop
    if len(samples) == 0 or length < 1:
        raise AudioError(
            f"a reference clip of {length} samples cannot be made of a recording of {len(samples)}",
            "Give a longer recording.",
        )
    if len(samples) < length:
        samples = np.tile(samples, length // len(samples) + 1)
    return np.asarray(samples[:length], dtype=np.float32)
