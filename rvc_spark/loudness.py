"""How loud a sound is: integrated loudness (LUFS), true peak (dBTP), RMS and sample peak (dBFS).

Loudness follows ITU-R BS.1770-4 and is measured block by block, so an hour needs no more memory than a second. Silence
is -inf in every unit. Measures only: changing a level is the caller's decision.
"""

from __future__ import annotations

import math

import numpy as np

from rvc_spark.audio_limits import check_channels, check_rate
from rvc_spark.audio_resample import StreamResampler
from rvc_spark.audio_samples import Audio

BLOCK_SECONDS = 0.4
"""Gating block of BS.1770-4; blocks overlap by three quarters, so everything is summed in hops of a quarter block."""
HOPS_PER_BLOCK = 4
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
DEAD_STATE = 1e-30
"""Filter states below this become 0: decaying into denormal numbers, they would slow silence down a hundredfold."""
OFFSET_LUFS = -0.691
"""Makes a 997 Hz sine at full scale in one channel read -3.01 LUFS."""
BLOCK_FRAMES = 65_536

# Channel weights by channel count, in WAV order (L R C LFE then surrounds): 1.41 for channels at 60 to 120 degrees
# (BS.1770-4 table 4), nothing for the low-frequency channel.
_WEIGHTS = {
    5: (1.0, 1.0, 1.0, 1.41, 1.41),
    6: (1.0, 1.0, 1.0, 0.0, 1.41, 1.41),
    7: (1.0, 1.0, 1.0, 0.0, 1.0, 1.41, 1.41),
    8: (1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.41, 1.41),
}


def k_weighting(rate: int) -> np.ndarray:
    """The two filters of BS.1770-4 as second-order sections, float64 [2, 6], for any rate in Hz.

    The standard tabulates them at 48 kHz only. These are the analogue prototypes behind that table (a shelf of +4 dB
    above 1.7 kHz for the head, a high-pass at 38 Hz), transformed bilinearly; at 48 kHz they give its numbers.
    """
    shelf_hz, shelf_db, shelf_q = 1681.974450955533, 3.999843853973347, 0.7071752369554196
    k = math.tan(math.pi * shelf_hz / rate)
    high = 10 ** (shelf_db / 20)
    band = high**0.4996667741545416
    scale = 1 + k / shelf_q + k * k
    shelf = [
        (high + band * k / shelf_q + k * k) / scale,
        2 * (k * k - high) / scale,
        (high - band * k / shelf_q + k * k) / scale,
        1.0,
        2 * (k * k - 1) / scale,
        (1 - k / shelf_q + k * k) / scale,
    ]
    pass_hz, pass_q = 38.13547087602444, 0.5003270373238773
    k = math.tan(math.pi * pass_hz / rate)
    scale = 1 + k / pass_q + k * k
    return np.array([shelf, [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / scale, (1 - k / pass_q + k * k) / scale]])


class KWeighting:
    """The weighted energy of a sound in blocks, frame by frame: K-weighting, squares, channel weights."""

    def __init__(self, rate: int, channels: int) -> None:
        """Raises AudioError for a rate or a channel count out of range."""
        self.rate = check_rate(rate)
        self.channels = check_channels(channels)
        self._weights = np.array(_WEIGHTS.get(channels, (1.0,) * channels))
        self._filters = k_weighting(rate)
        self._state = np.zeros((2, channels, 2))

    def push(self, block: np.ndarray) -> np.ndarray:
        """float32 [C, n] -> float64 [n], whose mean is the power that loudness is the logarithm of."""
        from scipy.signal import sosfilt  # a third of a second to import, and only meters need it

        filtered, self._state = sosfilt(self._filters, block.astype(np.float64), axis=-1, zi=self._state)
        self._state[np.abs(self._state) < DEAD_STATE] = 0.0
        return self._weights @ (filtered * filtered)


class LoudnessMeter:
    """Integrated loudness of a sound that arrives in blocks.

    `push` float32 [C, n] as often as needed, then read `lufs()`; both may be repeated.
    """

    def __init__(self, rate: int, channels: int) -> None:
        """Raises AudioError for a rate or a channel count out of range."""
        self.rate = check_rate(rate)
        self.channels = check_channels(channels)
        self.frames = 0
        self._weighting = KWeighting(rate, channels)
        self._hops: list[float] = []  # weighted energy of each complete hop
        self._open_energy = 0.0  # of the hop that has begun

    def push(self, block: np.ndarray) -> None:
        """Add float32 [C, n] (or [n] for one channel)."""
        block = np.atleast_2d(block)
        for start in range(0, block.shape[1], BLOCK_FRAMES):
            self.push_energy(self._weighting.push(block[:, start : start + BLOCK_FRAMES]))

    def push_energy(self, energy: np.ndarray) -> None:
        """Add frames whose weighted energy, float64 [n], is known already (from `KWeighting`)."""
        done = 0
        while True:
            stop = self._hop_end(len(self._hops)) - self.frames
            self._open_energy += float(energy[done:stop].sum())
            if stop > len(energy):
                break
            self._hops.append(self._open_energy)
            self._open_energy = 0.0
            done = stop
        self.frames += len(energy)

    def _hop_end(self, index: int) -> int:
        """Frame at which hop `index` ends, by absolute position: a hop is no whole number of frames at 11025 Hz."""
        return round((index + 1) * self.rate * BLOCK_SECONDS / HOPS_PER_BLOCK)

    def lufs(self) -> float:
        """Loudness in LUFS; -inf for silence and for what stays under the gate of -70 LUFS.

        A sound shorter than one gating block (400 ms) is taken as a single ungated block of its own length, which is
        what the formula means for it; the standard leaves this case open.
        """
        blocks = self._block_powers()
        if blocks.size == 0:
            power = (sum(self._hops) + self._open_energy) / max(self.frames, 1)
            return _lufs(power)
        return gated_lufs(blocks)

    def _block_powers(self) -> np.ndarray:
        """Mean weighted power of every complete block, float64 [blocks]."""
        count = len(self._hops) - HOPS_PER_BLOCK + 1
        if count < 1:
            return np.zeros(0)
        sums = np.convolve(self._hops, np.ones(HOPS_PER_BLOCK), "valid")
        ends = [0, *(self._hop_end(index) for index in range(len(self._hops)))]
        lengths = np.array(ends[HOPS_PER_BLOCK:]) - np.array(ends[:count])
        return sums / lengths


def gated_lufs(powers: np.ndarray) -> float:
    """Loudness from the mean weighted power of every gating block, float64 [blocks]; -inf where none passes."""
    loud = powers[powers > _power(ABSOLUTE_GATE_LUFS)]
    if loud.size == 0:
        return -math.inf
    gate = loud.mean() * 10 ** (RELATIVE_GATE_LU / 10)
    return _lufs(float(loud[loud > gate].mean()))


def _lufs(power: float) -> float:
    return OFFSET_LUFS + 10 * math.log10(power) if power > 0 else -math.inf


def _power(lufs: float) -> float:
    return 10 ** ((lufs - OFFSET_LUFS) / 10)


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf


def loudness_lufs(audio: Audio) -> float:
    """Integrated loudness of a whole sound in LUFS, see `LoudnessMeter.lufs`."""
    meter = LoudnessMeter(audio.rate, audio.channels)
    meter.push(audio.samples)
    return meter.lufs()


def oversampling(rate: int) -> int:
    """Points of the waveform that a true-peak meter looks at per sample (BS.1770-4 annex 2)."""
    return 4 if rate < 96_000 else 2 if rate < 192_000 else 1


class TruePeakMeter:
    """Highest peak of the continuous waveform of a sound that arrives in blocks float32 [C, n], over all channels."""

    def __init__(self, rate: int, channels: int) -> None:
        self._resampler = StreamResampler(rate, rate * oversampling(rate), channels)
        self._peak = 0.0

    def push(self, block: np.ndarray) -> None:
        """Add float32 [C, n] (or [n] for one channel)."""
        block = np.atleast_2d(block)
        for start in range(0, block.shape[1], BLOCK_FRAMES):
            piece = block[:, start : start + BLOCK_FRAMES]
            self._peak = max(self._peak, _peak(piece), _peak(self._resampler.push(piece)))

    def finish(self) -> float:
        """No more comes; the peak in dBTP, -inf for silence."""
        self._peak = max(self._peak, _peak(self._resampler.finish()))
        return _decibels(self._peak)


def true_peak_dbtp(audio: Audio) -> float:
    """Peak of the continuous waveform in dB relative to full scale (BS.1770-4 annex 2), over all channels.

    Oversampled 4 times below 96 kHz, twice below 192 kHz. Never below the sample peak. A sound that starts or stops
    abruptly overshoots there, as it will in a converter.
    """
    meter = TruePeakMeter(audio.rate, audio.channels)
    meter.push(audio.samples)
    return meter.finish()


def peak_dbfs(audio: Audio) -> float:
    """Largest sample in dB relative to full scale."""
    return _decibels(_peak(audio.samples))


def rms_dbfs(audio: Audio) -> float:
    """Root mean square over all channels in dB relative to full scale: a full-scale sine is at -3.01 dBFS."""
    flat = audio.samples.reshape(-1)
    energy = sum(
        float(np.sum(np.square(flat[start : start + BLOCK_FRAMES], dtype=np.float64)))
        for start in range(0, flat.size, BLOCK_FRAMES)
    )
    return _decibels(math.sqrt(energy / flat.size))


def _peak(samples: np.ndarray) -> float:
    return float(max(samples.max(), -samples.min())) if samples.size else 0.0
