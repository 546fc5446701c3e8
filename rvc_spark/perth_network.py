"""Perth (Resemble AI 2023), an inaudible watermark below 2 kHz, and its detector: networks and spectrogram, at 32 kHz.

    samples → STFT → level 0..1 (dB) of bins below 2 kHz → seven convolutions → change of level → × gain, same phase
                                                         → three such stacks at three speeds → one number, 0 or 1

The networks are ours; their numbers come from a file of the package resemble-perth, of which nothing is imported.
Formulas: that package's, restated and checked against it. Two things differ. Only the *change* is computed: what the
mark adds to a sound. And it is computed block by block, on a fixed grid of frames with the neighbours each convolution
reaches, so that any cutting of any length gives the very numbers of one pass. Knows no other rate and no file of sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 32_000
N_FFT = 2048  # 64 ms
HOP = 320  # 10 ms
CENTRE = N_FFT // 2  # samples a frame reaches to each side
TOP_HZ = 2_000.0
BANDS = round((N_FFT // 2 + 1) * TOP_HZ / (SAMPLE_RATE / 2))  # 128 bins, the ones that are marked
FLOOR = 1e-9  # of a magnitude: -180 dB, which is level 0
FLOOR_DB, HEADROOM_DB = -180.0, 15.0  # level 1 is +15 dB
LEVEL_DB = HEADROOM_DB - FLOOR_DB  # dB per unit of level
SILENT_SHARE = 0.05  # a frame below this share of the loudest one's summed level is left alone: digital silence
SPEEDS = (("slow", 1.25), ("normal", 1.0), ("fast", 0.75))  # of the detector's stacks: frames for each frame
LAYERS = 7
MIN_SAMPLES = N_FFT  # 64 ms; less than one frame is neither marked nor judged, and half of one cannot be mirrored
BLOCK = 50  # frames marked at a time; the neighbours cost 30 more, so fewer would be slower and more later


class Stack(nn.Module):
    """Convolutions over time with leaky rectifiers between: [B, C_in, T] → [B, C_out, T]. Sizes come from the file."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__()
        shapes = [weights[f"{prefix}.{number}.conv.weight"].shape for number in range(LAYERS)]
        self.layers = nn.ModuleList(nn.Conv1d(i, o, taps, padding=taps // 2) for o, i, taps in shapes)
        self.reach = sum(taps // 2 for _, _, taps in shapes)  # frames that have a say, to each side: 15

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x))
        return self.layers[-1](x)


class PerthNetwork(nn.Module):
    """Both networks. `encoder`: level [1, 128, T] → change of level; the detector's stacks → (weight, vote) [1, 2, T].

    Raises KeyError, ValueError, RuntimeError when the tensors are not those of Perth.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.encoder = Stack(weights, "encoder.layers")
        self.detectors = nn.ModuleDict({name: Stack(weights, f"decoder.{name}_layers") for name, _ in SPEEDS})
        self.load_state_dict(_renamed(weights))
        self.requires_grad_(False).eval()
        if self.encoder(torch.zeros(1, BANDS, 1)).shape != (1, BANDS, 1):
            raise ValueError(f"the encoder does not mark {BANDS} bands")
        if any(stack(torch.zeros(1, BANDS, 1)).shape != (1, 2, 1) for stack in self.detectors.values()):
            raise ValueError("the detector does not answer with a weight and a vote")


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names: `decoder.slow_layers.3.conv.weight` is `detectors.slow.layers.3.weight`.

    What is neither encoder nor decoder are windows of the spectrogram, which are made, not loaded.
    """
    ours = {}
    for name, value in weights.items():
        part, _, rest = name.replace(".conv.", ".").partition(".")
        if part == "encoder":
            ours[name.replace(".conv.", ".")] = value
        elif part == "decoder":
            ours[f"detectors.{rest.replace('_layers.', '.layers.')}"] = value
    return ours


# ---- spectrogram -----------------------------------------------------------------------------------------------------


def level_of(spectrum: Tensor) -> Tensor:
    """Complex [F, T] → float32 [F, T]: magnitude in dB, -180 dB as 0 and +15 dB as 1."""
    return (20 * torch.log10(spectrum.abs().clamp(min=FLOOR)) - FLOOR_DB) / LEVEL_DB


def spectrum_of(samples: Tensor) -> Tensor:
    """float32 [N] → complex [1025, 1 + (N - 2048) // 320]; frame t begins at 320·t."""
    window = torch.hann_window(N_FFT)
    return torch.stft(samples, N_FFT, HOP, window=window, center=False, return_complex=True)


def mirrored(samples: np.ndarray) -> np.ndarray:
    """float32 [N] → [N + 2048]: both ends continued by their mirror image, so that frame t is centred on 320·t."""
    return np.pad(samples, CENTRE, mode="reflect")


# ---- detector --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the detector says of a stretch: score 0..1 (1: marked), and how many frames of 10 ms it had to go by."""

    score: float
    frames: int


class Perth:
    """The loaded watermark: `stream` marks, `judge` detects. Float32 samples, mono, at 32 kHz."""

    def __init__(self, network: PerthNetwork) -> None:
        self.network = network

    def stream(self) -> MarkStream:
        """A new sound to be marked, in blocks."""
        return MarkStream(self.network.encoder)

    def delta(self, samples: np.ndarray) -> np.ndarray:
        """float32 [N] → [N]: what the mark adds to a whole sound."""
        stream = self.stream()
        return np.concatenate([stream.push(samples), stream.finish()])

    @torch.inference_mode()
    def judge(self, samples: np.ndarray) -> Verdict:
        """Whether a stretch of sound is marked. Silence, or fewer than MIN_SAMPLES samples, is Verdict(0, 0)."""
        if len(samples) < MIN_SAMPLES:
            return Verdict(0.0, 0)
        level = level_of(spectrum_of(torch.from_numpy(mirrored(samples))))
        sums = level.sum(0)
        sounding = (sums > SILENT_SHARE * sums.max()).float()  # [T]
        frames = int(sounding.sum())
        if frames == 0:
            return Verdict(0.0, 0)
        answers = [
            self._answer(stack, level[None, :BANDS], sounding[None, None], speed)
            for stack, (_, speed) in zip(self.network.detectors.values(), SPEEDS, strict=True)
        ]
        weights, votes = torch.stack(answers).T  # [3] each
        score = float((weights.softmax(0) * votes).sum().clamp(0, 1))
        return Verdict(score, frames)

    def _answer(self, stack: Stack, level: Tensor, sounding: Tensor, speed: float) -> Tensor:
        """(weight, vote) [2] of one stack: the mean over the sounding frames, at its speed."""
        frames = max(1, int(level.shape[2] * speed))
        if frames != level.shape[2]:
            level = F.interpolate(level, size=frames, mode="linear", align_corners=True)
            sounding = F.interpolate(sounding, size=frames, mode="nearest")
        heard = stack(level) * sounding
        return heard[0].sum(1) / sounding.sum().clamp(min=1)


# ---- marking ---------------------------------------------------------------------------------------------------------


class MarkStream:
    """What the mark adds to a sound that arrives in blocks; the joined answers are as long as the sound.

        samples   |---- context ----|======== block ========|---- context ----|
                       15 frames            50 frames              15 frames
        change                       ^ sent on as soon as no later frame reaches into it

    The blocks lie on a grid of their own, so how the sound was cut changes nothing, not even in the last bit.
    """

    def __init__(self, encoder: Stack) -> None:
        self._encoder = encoder
        self._window = torch.hann_window(N_FFT)
        self._total = 0  # samples that came
        self._sent = 0
        self._held = np.zeros(0, np.float32)  # of the mirrored sound, from `_held_from` on
        self._held_from = 0
        self._next = 0  # frame
        self._loudest = 0.0  # summed level of a frame so far
        self._change = torch.zeros(2, 0)  # change and envelope, overlapping sums from the mirrored sample `_next` · HOP
        self._mirror = CENTRE  # samples of the mirror image at the front that are still to be dropped

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take float32 [n]; returns the change that is settled, of any length."""
        self._held = np.concatenate([self._held, samples])
        begun = self._total >= MIN_SAMPLES
        self._total += len(samples)
        if not begun and self._total >= MIN_SAMPLES:
            self._held = np.concatenate([self._held[CENTRE:0:-1], self._held])
        ready = []
        while self._total >= MIN_SAMPLES and self._frames_held() >= self._next + BLOCK + self._encoder.reach:
            ready.append(self._marked(self._next + BLOCK, None))
        return self._settled(ready)

    def finish(self) -> np.ndarray:
        """The rest. A sound of fewer than MIN_SAMPLES samples stays as it is: all zeros."""
        if self._total < MIN_SAMPLES:
            return np.zeros(self._total - self._sent, np.float32)
        self._held = np.concatenate([self._held, self._held[-2 : -2 - CENTRE : -1]])
        last = self._total // HOP + 1
        ready = []
        while self._next < last:
            ready.append(self._marked(min(self._next + BLOCK, last), last))
        change, envelope = self._change
        ready.append((change / envelope.clamp(min=FLOOR)).numpy())
        return self._settled(ready)

    def _settled(self, ready: list[np.ndarray]) -> np.ndarray:
        """Without the mirror images before the first sample and behind the last."""
        joined = np.concatenate([np.zeros(0, np.float32), *ready])
        dropped = min(self._mirror, len(joined))
        self._mirror -= dropped
        own = joined[dropped:][: self._total - self._sent]
        self._sent += len(own)
        return own

    def _frames_held(self) -> int:
        """How many frames, counted from the first of the sound, are complete."""
        return (self._held_from + len(self._held) - N_FFT) // HOP + 1

    @torch.inference_mode()
    def _marked(self, stop: int, last: int | None) -> np.ndarray:
        """Mark the frames from `_next` to `stop`; returns the change up to where frame `stop` begins."""
        reach = self._encoder.reach
        low, high = max(0, self._next - reach), stop + reach if last is None else min(last, stop + reach)
        piece = self._held[low * HOP - self._held_from : (high - 1) * HOP + N_FFT - self._held_from]
        spectrum = spectrum_of(torch.from_numpy(piece))
        level = level_of(spectrum)
        sums = level.sum(0)
        self._loudest = max(self._loudest, float(sums.max()))
        risen = self._encoder(level[None, :BANDS])[0] * (sums > SILENT_SHARE * self._loudest)
        inner = slice(self._next - low, stop - low)
        added = torch.zeros(N_FFT // 2 + 1, stop - self._next, dtype=spectrum.dtype)
        added[:BANDS] = spectrum[:BANDS, inner] * (10 ** (risen[:, inner] * LEVEL_DB / 20) - 1)
        whole = self._overlapped(torch.fft.irfft(added, N_FFT, dim=0) * self._window[:, None])
        count = (stop - self._next) * HOP
        self._change, done = whole[:, count:], whole[:, :count]
        self._next = stop
        keep = max(0, stop - reach) * HOP - self._held_from
        self._held, self._held_from = self._held[keep:], self._held_from + keep
        return (done[0] / done[1].clamp(min=FLOOR)).numpy()

    def _overlapped(self, frames: Tensor) -> Tensor:
        """[2, n]: frames [2048, k] added up where they lie, and the envelope of their windows; with what was begun."""
        length = (frames.shape[1] - 1) * HOP + N_FFT
        both = torch.stack([frames, self._window.square()[:, None].expand_as(frames)])
        summed = F.fold(both, (1, length), (1, N_FFT), stride=(1, HOP))[:, 0, 0]
        summed[:, : self._change.shape[1]] += self._change
        return summed
