"""What a sound is in memory: float samples with their rate, checked once at the door and trusted inside.

Also the two ways of joining sounds (equal gain, equal power). Knows nothing of files, codecs or meters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rvc_spark.audio_limits import (
    MAX_AMPLITUDE,
    MAX_VALUES_IN_MEMORY,
    check_channels,
    check_rate,
    check_seconds,
)
from rvc_spark.audio_resample import resample
from rvc_spark.errors import AudioError

CROSSFADE_SHAPES = ("equal_gain", "equal_power")

# Integer PCM as other libraries hand it over -> (offset, divisor) that bring it to [-1, 1).
_INTEGER_SCALES = {"u1": (128.0, 2.0**7), "i2": (0.0, 2.0**15), "i4": (0.0, 2.0**31)}


def check_block(block: np.ndarray, rate: int, start: int = 0, what: str = "audio") -> None:
    """Refuse float samples [..., n] that are not finite or far beyond any scale.

    Args:
        start: frame number of the block's first frame, for the message.

    Raises:
        AudioError: names the first bad value and its time in seconds.
    """
    if block.size == 0:
        return
    low, high = float(block.min()), float(block.max())  # both are NaN as soon as one sample is
    if -MAX_AMPLITUDE <= low and high <= MAX_AMPLITUDE:
        return
    bad = ~(np.abs(block) <= MAX_AMPLITUDE)
    frame = int(np.argmax(bad.reshape(-1, block.shape[-1]).any(axis=0)))
    value = float(block[..., frame][bad[..., frame]].reshape(-1)[0])
    if np.isfinite(value):
        problem = f"{what} holds the value {value:g}, full scale is 1 and the limit {MAX_AMPLITUDE:g},"
    else:
        problem = f"{what} holds {value} (not a finite number)"
    raise AudioError(
        f"{problem} at {(start + frame) / rate:.3f} s",
        "Export it again from the program that made it, as 16- or 24-bit PCM.",
    )


def check_audio(samples: np.ndarray, rate: float, what: str = "audio") -> np.ndarray:
    """The one check of samples in memory.

    Args:
        samples: [T] or [C, T]; floats of any width with full scale 1, or PCM as int16, int32 or uint8.
        rate: Hz.
        what: how a message names the sound.

    Returns:
        float32 array of the same shape, contiguous; the input itself when it already is one.

    Raises:
        AudioError: not numbers, empty, not one- or two-dimensional, not finite, more than 8 channels, or a rate or
            a length outside the limits of `rvc_spark.audio_limits`.
    """
    rate = check_rate(rate, what)
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        raise AudioError(f"{what} cannot be read as an array ({error})", "Give a numpy array of samples.") from error
    if array.ndim not in (1, 2):
        raise AudioError(f"{what} has the shape {array.shape}", "Give samples as [T] or channels first as [C, T].")
    if array.ndim == 2:
        check_channels(array.shape[0], f"{what} of shape {array.shape}")
    if array.size == 0:
        raise AudioError(f"{what} is empty (shape {array.shape})", "Give at least one sample.")
    if array.size > MAX_VALUES_IN_MEMORY:
        raise AudioError(
            f"{what} has {array.size} samples; the limit for a sound in memory is {MAX_VALUES_IN_MEMORY}",
            "Work through it in blocks with open_audio and open_writer.",
        )
    check_seconds(array.shape[-1], rate, what)
    return _as_float32(array, rate, what)


def _as_float32(array: np.ndarray, rate: int, what: str) -> np.ndarray:
    kind = array.dtype.str[1:]
    if array.dtype.kind == "f":
        check_block(array, rate, what=what)  # before narrowing: 1e300 is finite as float64 and infinite as float32
        return np.ascontiguousarray(array, np.float32)
    if kind not in _INTEGER_SCALES:
        raise AudioError(
            f"{what} holds values of type {array.dtype}",
            "Give float samples with full scale 1, or int16, int32 or uint8 PCM.",
        )
    offset, divisor = _INTEGER_SCALES[kind]
    return ((array - offset) / divisor).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound: float32 samples, [T] (mono) or channels first [C, T], full scale 1, with their rate in Hz.

    Making one checks it (`check_audio`); whoever receives one need not check again.
    """

    samples: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", check_audio(self.samples, self.rate))
        object.__setattr__(self, "rate", int(self.rate))

    def __repr__(self) -> str:
        return f"Audio({self.seconds:.3f} s, {self.channels} x {self.frames} samples at {self.rate} Hz)"

    @property
    def frames(self) -> int:
        """Samples per channel."""
        return self.samples.shape[-1]

    @property
    def channels(self) -> int:
        """1 for [T]."""
        return 1 if self.samples.ndim == 1 else self.samples.shape[0]

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.rate

    def mono(self) -> Audio:
        """The plain mean of the channels, [T]. (Not the 3 dB louder sum that some command-line tools make.)"""
        return self if self.samples.ndim == 1 else Audio(mix_down(self.samples), self.rate)

    def resampled(self, rate: int) -> Audio:
        """The same sound at another rate, `round(frames * rate / self.rate)` frames long.

        Raises:
            AudioError: the rate is out of range, or nothing is left of a sound of a few samples.
        """
        rate = check_rate(rate, "the wanted audio")
        if rate == self.rate:
            return self
        samples = resample(self.samples, self.rate, rate)
        if samples.size == 0:
            raise AudioError(
                f"{self.frames} frames at {self.rate} Hz are less than one frame at {rate} Hz", "Use a longer sound."
            )
        return Audio(samples, rate)


def mix_down(samples: np.ndarray) -> np.ndarray:
    """Plain mean over channels: float32 [C, n] -> [n]."""
    return samples[0].copy() if samples.shape[0] == 1 else samples.mean(axis=0, dtype=np.float32)


def fade_in_curve(frames: int, shape: str = "equal_gain") -> np.ndarray:
    """Gain of the sound that comes in over a crossfade, float32 [frames]; reversed, it is that of the one that leaves.

    "equal_gain" is a raised cosine: both gains add up to 1, right for two renderings of the same sound. "equal_power"
    is a sine: their squares add up to 1, right for two unrelated sounds. Gains are taken at the middle of each sample,
    so the curve is symmetric and a fade of one frame is an even mix.

    Raises:
        AudioError: unknown shape or a negative length.
    """
    if shape not in CROSSFADE_SHAPES:
        raise AudioError(f"There is no crossfade shape {shape!r}", f"Choose one of {', '.join(CROSSFADE_SHAPES)}.")
    if frames < 0:
        raise AudioError(f"A crossfade cannot last {frames} frames", "Give zero or more.")
    position = (np.arange(frames) + 0.5) / max(frames, 1)
    curve = np.sin(0.5 * np.pi * position)
    return (curve**2 if shape == "equal_gain" else curve).astype(np.float32)


def crossfade(leaving: np.ndarray, entering: np.ndarray, shape: str = "equal_gain") -> np.ndarray:
    """Fade from one sound into another over their whole common length.

        leaving   ####%%**++==--..
        entering  ..--==++**%%####

    Args:
        leaving, entering: float32 [..., n] of equal shape.
        shape: "equal_gain" or "equal_power", see `fade_in_curve`.

    Returns:
        float32 [..., n].

    Raises:
        AudioError: the shapes differ, or an unknown `shape`.
    """
    if np.shape(leaving) != np.shape(entering):
        raise AudioError(
            f"A crossfade needs two pieces of one shape, got {np.shape(leaving)} and {np.shape(entering)}",
            "Cut both to the overlap first.",
        )
    curve = fade_in_curve(np.shape(leaving)[-1], shape)
    return np.asarray(leaving * curve[::-1] + entering * curve, np.float32)
