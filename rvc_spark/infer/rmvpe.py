"""f0 by RMVPE: log mel -> network -> salience of 360 pitches per frame -> Hz, a frame every 10 ms.

Exactly the reference's arithmetic for a whole clip, including its padding on the right with zeros (loud, in the log
domain). Clips beyond WHOLE_FRAMES go through in windows with context on both sides, in memory that does not grow with
the clip. The module refuses to know other trackers, keys and voices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvc_spark.errors import AudioError, PitchError, PitchModelError
from rvc_spark.infer.mel import mel_filters
from rvc_spark.infer.rmvpe_net import (
    BINS,
    MELS,
    TIME_MULTIPLE,
    RMVPENetwork,
    SizesError,
    fold_batch_norms,
    pack_convolutions,
    sizes_of,
)
from rvc_spark.infer.row_conv import rows_work
from rvc_spark.safe_load import all_finite, read_tensors, shown

SAMPLE_RATE = 16_000
HOP = 160  # samples per frame
N_FFT = 1024
MEL_LOW, MEL_HIGH = 30.0, 8000.0  # Hz
MEL_FLOOR = 1e-5
THRESHOLD = 0.03  # peaks up to this are unvoiced

FIRST_CENT = 1997.3794084376191  # of bin 0, in cents above 10 Hz: 31.7 Hz
CENTS_PER_BIN = 20.0
REACH = 4  # bins on either side of the peak that decide the pitch

WHOLE_FRAMES = 9600  # 96 s: up to here one pass, in 0.4 GB
# The convolutions see 1,600 frames to either side at most, and of random weights nothing beyond 600 is left in float32.
# The GRU has no such limit, but trained gates forget within a word.
CONTEXT = 1024
MAX_BYTES = 2 * 1024**3  # rmvpe.pt has 181 MB

_NEXT = "Run: rvc-spark assets get rmvpe, or choose another pitch method."


class RMVPE:
    """A loaded RMVPE; made by `load_rmvpe`. `f0` is what conversion needs; `mel` and `salience` are the steps to it."""

    def __init__(self, network: RMVPENetwork, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        # channels last is a quarter faster on a CPU and needs less scratch memory; the numbers stay the same
        self._network = network.to(self.device, memory_format=torch.channels_last)
        self._filters = torch.from_numpy(mel_filters(SAMPLE_RATE, N_FFT, MELS, MEL_LOW, MEL_HIGH)).to(self.device)
        self._window = torch.hann_window(N_FFT, periodic=True, device=self.device)

    def f0(self, samples: np.ndarray | torch.Tensor, threshold: float = THRESHOLD) -> np.ndarray:
        """Pitch of a sound.

        Args:
            samples: [N] at 16 kHz, N >= 1, finite.
            threshold: 0..1; frames whose strongest salience does not exceed it are unvoiced.

        Returns:
            float64 [N // 160 + 1] in Hz; 0 is unvoiced. Frame t is centred at sample 160 t.

        Raises:
            AudioError: empty, not finite, not one-dimensional.
            PitchError: threshold outside 0..1.
        """
        wave = _checked_samples(samples)
        parts = self._in_windows(len(wave) // HOP + 1, lambda start, stop: self._mel(wave, start, stop))
        return np.concatenate([decode_salience(part, threshold) for part in parts])

    def f0_of_many(self, sounds: Sequence[np.ndarray | torch.Tensor], threshold: float = THRESHOLD) -> list[np.ndarray]:
        """`f0` of several sounds, at once where they have one length and fit one pass. Raises as it does."""
        waves = [_checked_samples(samples) for samples in sounds]
        frames = len(waves[0]) // HOP + 1
        if frames > WHOLE_FRAMES or len({len(wave) for wave in waves}) > 1:
            return [self.f0(wave, threshold) for wave in waves]
        with torch.no_grad():
            mels = torch.stack([self._mel(wave, 0, frames) for wave in waves])
            mels = torch.nn.functional.pad(mels, (0, -frames % TIME_MULTIPLE))
            salience = self._network(mels.transpose(1, 2))[:, :frames]
        contours = decode_salience(salience.flatten(0, 1), threshold)
        return list(contours.reshape(len(waves), frames))

    def mel(self, samples: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Natural log of the mel spectrogram: float32 [128, N // 160 + 1] of samples [N] at 16 kHz."""
        wave = _checked_samples(samples)
        return self._mel(wave, 0, len(wave) // HOP + 1)

    def salience(self, mel: torch.Tensor) -> torch.Tensor:
        """How present each of 360 pitches is, 0..1: float32 [T, 360] of a log mel [128, T].

        Raises:
            PitchError: the mel has another shape.
        """
        if mel.dim() != 2 or mel.shape[0] != MELS or mel.shape[1] == 0:
            raise PitchError(f"a log mel of shape {list(mel.shape)} was given", "RMVPE needs [128, T] with T >= 1.")
        mel = mel.to(self.device, torch.float32)
        return torch.cat(list(self._in_windows(mel.shape[1], lambda start, stop: mel[:, start:stop])))

    def _mel(self, wave: np.ndarray | torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Frames start..stop of the centred spectrogram of `wave`, mirrored at its ends: [128, stop - start]."""
        positions = np.arange(start * HOP - N_FFT // 2, (stop - 1) * HOP + N_FFT // 2)
        period = max(2 * (len(wave) - 1), 1)  # mirrored again and again, so that any length works
        positions = np.abs((positions + len(wave) - 1) % period - (len(wave) - 1))
        first, last = positions.min(), positions.max() + 1
        piece = _tensor(wave[first:last]).to(self.device)
        if len(piece) != len(positions) or start == 0:  # mirrored somewhere
            piece = piece[torch.from_numpy(positions - first).to(self.device)]
        spectrum = torch.stft(piece, N_FFT, HOP, window=self._window, center=False, return_complex=True)
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square())
        return torch.log(torch.clamp(self._filters @ magnitude, min=MEL_FLOOR))

    @torch.no_grad()
    def _in_windows(self, frames: int, mel_of: Callable[[int, int], torch.Tensor]) -> Iterator[torch.Tensor]:
        """Salience float32 [n, 360] of all frames, part by part; `mel_of(start, stop)` gives [128, stop - start]."""
        padded = -(-frames // TIME_MULTIPLE) * TIME_MULTIPLE
        kept = padded if padded <= WHOLE_FRAMES else WHOLE_FRAMES - 2 * CONTEXT
        for start in range(0, padded, kept):
            stop = min(start + kept, padded)
            left, right = max(0, start - CONTEXT), min(padded, stop + CONTEXT)
            mel = mel_of(left, min(right, frames))
            mel = torch.nn.functional.pad(mel, (0, right - left - mel.shape[1]))
            salience = self._network(mel.T[None])[0]
            yield salience[start - left : min(stop, frames) - left]


def decode_salience(salience: np.ndarray | torch.Tensor, threshold: float = THRESHOLD) -> np.ndarray:
    """Pitch from salience: the weighted mean of the 9 bins around each frame's strongest one.

        cents = sum(s_i * (1997.38 + 20 i)) / sum(s_i),  |i - peak| <= 4,  bins beyond the ends count as nothing
        f0 = 10 Hz * 2^(cents / 1200)

    Args:
        salience: [T, 360], 0..1.
        threshold: 0..1; a frame is voiced when its peak is greater.

    Returns:
        float64 [T] in Hz; 0 is unvoiced.

    Raises:
        PitchError: threshold outside 0..1, or salience of another shape.
    """
    if not 0.0 <= threshold <= 1.0:
        raise PitchError(f"rmvpe threshold={threshold} is outside 0 to 1", "The usual value is 0.03.")
    values = salience.detach().cpu().numpy() if isinstance(salience, torch.Tensor) else np.asarray(salience)
    if values.ndim != 2 or values.shape[1] != BINS:
        raise PitchError(f"salience of shape {list(values.shape)} was given", "It must be [T, 360].")
    rows = np.arange(len(values))
    peak = values.argmax(axis=1)  # the first of equals, as in the reference
    # the comparison is made in salience's own precision: 0.05 as float32 is above 0.05 as float64
    voiced = values[rows, peak] > values.dtype.type(threshold)
    padded = np.pad(values.astype(np.float64), ((0, 0), (REACH, REACH)))
    window = padded[rows[:, None], peak[:, None] + np.arange(2 * REACH + 1)]
    cents = FIRST_CENT + CENTS_PER_BIN * (peak[:, None] + np.arange(-REACH, REACH + 1))
    total = window.sum(axis=1)
    mean = (window * cents).sum(axis=1) / np.where(total > 0, total, 1.0)
    return np.where(voiced, 10.0 * 2.0 ** (mean / 1200.0), 0.0)


def load_rmvpe(path: str | Path, device: str | torch.device = "cpu") -> RMVPE:
    """Load `rmvpe.pt`, a flat state dict; its sizes are read off its tensors.

    Raises:
        PitchModelError: not such a file, damaged, hostile, of another program's layout, or with tensors missing,
            unknown, of wrong shape or not finite; names what is wrong.
    """
    name = shown(Path(path).name)
    weights = _state_dict(read_tensors(path, max_bytes=MAX_BYTES, what="pitch model", error=PitchModelError), name)
    try:
        sizes = sizes_of({key: tuple(tensor.shape) for key, tensor in weights.items()})
    except SizesError as problem:
        raise PitchModelError(f"{name} is not an RMVPE network: {problem}", _NEXT) from None
    with torch.device("meta"):  # no memory before the shapes are known to be the file's
        network = RMVPENetwork(sizes)
    weights = {key: tensor for key, tensor in weights.items() if not key.endswith(".num_batches_tracked")}
    _check_weights(weights, network, name)
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith(".num_batches_tracked")}
    network.load_state_dict({key: tensor.to(torch.float32) for key, tensor in weights.items()} | counters, assign=True)
    network = fold_batch_norms(network.requires_grad_(False).eval())
    if torch.device(device).type == "cpu" and rows_work(torch.float32):
        network = pack_convolutions(network)
    return RMVPE(network, device)


def _state_dict(read: Any, name: str) -> dict[str, torch.Tensor]:
    """The flat state dict in what was read; other programs' files are refused by name."""
    if not isinstance(read, Mapping):
        raise PitchModelError(f"{name} holds no dictionary of tensors", _NEXT)
    inner = read.get("model")
    names = [key for key in (inner if isinstance(inner, Mapping) else read) if isinstance(key, str)]
    if any(key.startswith("unet.tf.") for key in names) or (
        isinstance(inner, Mapping) and any(key.startswith("unet.") for key in names)
    ):
        raise PitchModelError(f"{name} is the RMVPE of so-vits-svc, which has another network than RVC's", _NEXT)
    if "weight" in read and "config" in read:
        raise PitchModelError(f"{name} is a voice, not a pitch model", "Put it into the voices folder.")
    if not any(key.startswith("unet.") for key in names):
        raise PitchModelError(f"{name} has no tensors of an RMVPE network (names that begin with unet.)", _NEXT)
    for key, tensor in read.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise PitchModelError(f"{name} holds something else than named tensors", _NEXT)
    return dict(read)


def _check_weights(weights: Mapping[str, torch.Tensor], network: RMVPENetwork, name: str) -> None:
    expected = {
        key: tuple(tensor.shape)
        for key, tensor in network.state_dict().items()
        if not key.endswith(".num_batches_tracked")
    }
    for key in sorted(expected):
        if key not in weights:
            raise PitchModelError(f"{name} is refused: the tensor {key} is missing", _NEXT)
        tensor = weights[key]
        if tuple(tensor.shape) != expected[key]:
            raise PitchModelError(
                f"{name} is refused: {key} has shape {list(tensor.shape)}, needs {list(expected[key])}", _NEXT
            )
        if not tensor.is_floating_point() or not all_finite(tensor):
            raise PitchModelError(f"{name} is refused: {key} has numbers that are not finite, or whole numbers", _NEXT)
        if key.endswith("running_var") and bool((tensor < 0).any()):
            raise PitchModelError(f"{name} is refused: {key} has negative variances", _NEXT)
    for key in weights:
        if key not in expected:
            raise PitchModelError(f"{name} is refused: it has an unknown tensor {shown(key)}", _NEXT)


def _tensor(samples: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A float32 tensor of samples that may be a reversed, read-only or double-precision array."""
    if isinstance(samples, torch.Tensor):
        return samples.to(torch.float32)
    return torch.from_numpy(np.array(samples, dtype=np.float32))


def _checked_samples(samples: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    wave = samples.detach() if isinstance(samples, torch.Tensor) else np.asarray(samples)
    if wave.ndim != 1 or len(wave) == 0:
        raise AudioError(f"pitch tracking needs samples [N], got shape {list(wave.shape)}", "Give a mono sound.")
    if not (wave.is_floating_point() if isinstance(wave, torch.Tensor) else wave.dtype.kind == "f"):
        raise AudioError(f"pitch tracking needs samples as floats, got {wave.dtype}", "Scale them to -1..1.")
    for start in range(0, len(wave), 2**20):  # piece by piece, so that an hour needs no second hour of memory
        if not torch.isfinite(_tensor(wave[start : start + 2**20])).all():
            raise AudioError("the sound has samples that are not finite", "Decode it again.")
    return wave
