"""Who and what else is in a recording: a second speaker, music; and whether two recordings are the same one.

Hints, each a number with a known distribution (given with the thresholds in `quality_settings`), no proofs: two people
who talk at the same moment make one embedding and are not told apart here.
"""

from __future__ import annotations

import numpy as np

from rvc_spark.profiles.speaker_embedding import SpeakerEncoder, cosine, mean_voice

SPREAD_FRAMES, SPREAD_STEP = 100, 20
"""Windows of 1 s every 0.2 s: short enough for turns of two seconds."""
NEIGHBOURS = 2
"""Windows averaged before they are grouped; single ones are unsteady."""
SMALLEST_GROUP = 6
"""Windows, 2 s of speech. Fewer are a laugh, or one word said in another way."""
ROUNDS = 10

TONE_RATE = 16_000
TONE_SIZE, TONE_STEP = 2_048, 1_024  # samples: 128 ms every 64 ms
TONE_FRAMES = 8
"""A tone that stays in its bin for 0.58 s; a voice glides out of it."""
TONE_PROMINENCE = 7.0  # dB above the mean of 41 bins, 320 Hz
TONE_LEVEL = -30.0  # dB against the mean level of the recording in 320 Hz; fainter tones are room and machines
TONE_LOW, TONE_HIGH = 100.0, 4_000.0  # Hz
_TONE_BINS = 41
_LOBE = 3  # bins a tone fills behind a Hann window; their mean is steadier in noise, and no lower in a tone


def speaker_spread(encoder: SpeakerEncoder, speech: np.ndarray, windows: np.ndarray) -> float | None:
    """Similarity 0..1 of the two voices a recording falls into best; None for less than 3 s of speech.

    The worse of two: the groups of its windows of one second wherever they are, which finds dialogue, and what is
    before and after its best border, in windows of 1.6 s, which finds alike voices one after the other.

    Args:
        speech: float32 [T] at 16 kHz without its pauses.
        windows: its embeddings every SPREAD_STEP frames, 1.6 s each, see `SpeakerEncoder.windows`.
    """
    if len(speech) < 3 * 16_000:
        return None
    return min(_two_groups(encoder.windows(speech, SPREAD_FRAMES, SPREAD_STEP)), _two_sides(windows))


def _two_groups(single: np.ndarray) -> float:
    """Two-means on the sphere over float32 [N, 256], begun with the two most unlike; 1 for too small a group."""
    windows = np.stack([mean_voice(single[at : at + NEIGHBOURS]) for at in range(len(single) - NEIGHBOURS + 1)])
    one, other = np.unravel_index(np.argmin(windows @ windows.T), (len(windows), len(windows)))
    first, second = windows[one], windows[other]
    groups = np.zeros(len(windows), bool)
    for _ in range(ROUNDS):
        found = windows @ first < windows @ second
        if found.all() or not found.any() or np.array_equal(found, groups):
            break
        groups = found
        first, second = mean_voice(windows[~groups]), mean_voice(windows[groups])
    return cosine(first, second) if min(groups.sum(), (~groups).sum()) >= SMALLEST_GROUP else 1.0


def _two_sides(windows: np.ndarray) -> float:
    """The least similarity of what is before and after a border in float32 [N, 256]; 1 where it is too short."""
    before = np.cumsum(windows, axis=0, dtype=np.float64)
    borders = slice(SMALLEST_GROUP - 1, len(windows) - SMALLEST_GROUP)
    left, right = before[borders], (before[-1] - before)[borders]
    if not len(left):
        return 1.0
    return float(((left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min())


def steady_tones(samples: np.ndarray, hum_hz: float | None = None) -> float | None:
    """Share of moments, 0..1, in which a tone holds still for half a second; None for less than 3 s.

    Notes hold still and voices glide. Per bin, the minimum over eight windows keeps what was there all the time; a tone
    is a peak of that among its neighbours. Lines of known hum are not counted.

    Args:
        samples: float32 [T] at 16 kHz.
        hum_hz: base of the mains hum, if any.
    """
    from scipy.ndimage import uniform_filter1d  # a third of a second to import

    if len(samples) < 3 * TONE_RATE:
        return None
    bins = slice(int(TONE_LOW * TONE_SIZE / TONE_RATE), int(TONE_HIGH * TONE_SIZE / TONE_RATE))
    window = np.hanning(TONE_SIZE).astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(samples, TONE_SIZE)[::TONE_STEP]
    power = np.stack([np.square(np.abs(np.fft.rfft(view * window)[bins])) for view in views])
    level = 10 * np.log10(uniform_filter1d(power, _LOBE, axis=1, mode="nearest") + 1e-9)
    mean_level = 10 * np.log10(power.sum(axis=1).mean() + 1e-9) - 10
    rows = len(level) - TONE_FRAMES + 1
    held = np.min([level[first : first + rows] for first in range(TONE_FRAMES)], axis=0)
    prominence = held - uniform_filter1d(held, _TONE_BINS, axis=1, mode="nearest")
    tones = (prominence > TONE_PROMINENCE) & (held > mean_level + TONE_LEVEL)
    peaks = tones[:, 1:-1] & (held[:, 1:-1] >= held[:, :-2]) & (held[:, 1:-1] >= held[:, 2:])
    if hum_hz is not None:
        hertz = (np.arange(bins.start + 1, bins.start + 1 + peaks.shape[1])) * TONE_RATE / TONE_SIZE
        off = np.abs(hertz / hum_hz - np.round(hertz / hum_hz)) * hum_hz
        peaks = peaks & ((off > 1.5 * TONE_RATE / TONE_SIZE) | (hertz > 12 * hum_hz))
    return float(peaks.any(axis=1).mean())


def same_recording(one: np.ndarray, other: np.ndarray) -> float:
    """How well two curves of loudness over time agree where they fit best: correlation -1..1.

    Gain, codec and a cut at the ends change nothing in it; another reading of the same sentence does.

    Args:
        one, other: dB per 32 ms, float [n]; the shorter is slid along the longer.
    """
    short, long = sorted((_floored(one), _floored(other)), key=len)
    size = len(short)
    if size < 60 or short.std() < 1e-3:
        return 0.0
    short = (short - short.mean()) / short.std()
    padded = 1 << int(np.ceil(np.log2(len(long) + size)))
    dots = np.fft.irfft(np.fft.rfft(long, padded) * np.conj(np.fft.rfft(short, padded)), padded)
    sums = np.cumsum(np.r_[0.0, long])
    squares = np.cumsum(np.r_[0.0, long * long])
    mean = (sums[size:] - sums[:-size]) / size
    spread = np.sqrt(np.maximum((squares[size:] - squares[:-size]) / size - mean * mean, 1e-9))
    return float((dots[: len(mean)] / (size * spread)).max())


def _floored(curve: np.ndarray) -> np.ndarray:
    """Without what lies 40 dB below the loudest: codecs and noise change it."""
    return np.maximum(curve.astype(np.float64), curve.max() - 40) if len(curve) else np.zeros(0)
