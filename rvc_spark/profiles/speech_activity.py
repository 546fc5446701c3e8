"""Where somebody speaks: Silero VAD 6 (Silero Team, MIT), run by a network of ours on the weights inside its wheel.

    samples -> pieces of 32 ms, each with the 4 ms before it -> spectrum -> four convolutions -> LSTM -> probability

The package itself is never imported (it would set torch to one thread) and nothing is ever fetched. Pieces depend on
one another only through the LSTM, so the convolutions see many at once; sound may arrive in blocks of any size. The
weights are those of its safetensors file, which are not quite those of its TorchScript file: probabilities differ by
0.03 in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.errors import ModelFileError
from rvc_spark.profiles.bundled_weights import bundled_file, fill_network, read_weights

SAMPLE_RATE = 16_000
PIECE = 512  # samples the network judges at a time: 32 ms
PIECE_SECONDS = PIECE / SAMPLE_RATE
PIECES_AT_ONCE = 1_024  # 33 s; bounds the memory of one call
INSTALL = "pip install silero-vad"
WEIGHTS_FILE = "data/silero_vad_16k.safetensors"

ENTER, LEAVE = 0.5, 0.35
"""Probability above which speech begins, and below which it may end: Silero's own hysteresis."""
MIN_SPEECH_SECONDS = 0.25
"""Shorter bursts are clicks and breaths."""
MIN_PAUSE_SECONDS = 0.1
"""Shorter gaps are stops (p, t, k) inside a word."""
MARGIN_SECONDS = 0.03
"""Added on both sides: soft beginnings and ends stay below the threshold."""

_CONTEXT = 64  # samples of the piece before
_REFLECTED = 64  # samples mirrored at the end
_WINDOW, _STEP = 256, 128
_BINS = _WINDOW // 2 + 1

Stretches = tuple[tuple[float, float], ...]


class SileroNetwork(nn.Module):
    """Pieces float32 [N, 576] in order, and the LSTM's state -> probabilities float32 [N], and the state after them."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _BINS, _WINDOW, _STEP, bias=False)
        self.conv1 = nn.Conv1d(_BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, pieces: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        spectrum = self.stft_conv(F.pad(pieces[:, None], (0, _REFLECTED), mode="reflect"))
        x = (spectrum[:, :_BINS].square() + spectrum[:, _BINS:].square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(layer(x))  # 4 -> 4 -> 2 -> 1 -> 1 frames
        x, state = self.lstm(x[:, None, :, 0], state)
        return torch.sigmoid(self.final_conv(torch.relu(x).transpose(1, 2)))[:, 0, 0], state


class SpeechDetector:
    """Speech probability of sound that arrives in blocks; one detector hears one sound, `fresh` begins another."""

    def __init__(self, network: SileroNetwork) -> None:
        self._network = network
        self._state: tuple[Tensor, Tensor] | None = None
        self._waiting = np.zeros(_CONTEXT, np.float32)  # context, then samples that fill no piece yet
        self._found: list[np.ndarray] = []

    def fresh(self) -> SpeechDetector:
        """A detector for another sound, on the same network."""
        return SpeechDetector(self._network)

    def push(self, block: np.ndarray) -> None:
        """Hear float32 [n] at 16 kHz."""
        samples = np.concatenate([self._waiting, block])
        count = (len(samples) - _CONTEXT) // PIECE
        for first in range(0, count, PIECES_AT_ONCE):
            last = min(first + PIECES_AT_ONCE, count)
            windows = np.lib.stride_tricks.sliding_window_view(samples, _CONTEXT + PIECE)
            pieces = torch.from_numpy(windows[first * PIECE : last * PIECE : PIECE].copy())
            with torch.inference_mode():
                found, self._state = self._network(pieces, self._state)
            self._found.append(found.numpy())
        self._waiting = samples[count * PIECE :]

    def finish(self) -> np.ndarray:
        """Probabilities float32 [pieces], one per 32 ms; the last piece is filled with silence."""
        rest = (len(self._waiting) - _CONTEXT) % PIECE
        if rest:
            self.push(np.zeros(PIECE - rest, np.float32))
        return np.concatenate(self._found) if self._found else np.zeros(0, np.float32)


def load_speech_detector(path: Path | None = None) -> SpeechDetector:
    """Silero VAD from its installed package, or from a safetensors file of the same form.

    Raises:
        MissingPackageError: the package is not installed.
        ModelFileError: the file is damaged or of another network.
    """
    path = path or bundled_file("silero_vad", WEIGHTS_FILE, INSTALL, "speech cannot be told from pauses")
    weights = read_weights(path, "Silero VAD")
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise ModelFileError(
            f"{path.name} does not hold the weights of Silero VAD", f"Run: {INSTALL} --force-reinstall"
        )
    named = {name.replace("lstm_cell.", "lstm.") + ("_l0" if "lstm_cell" in name else ""): value
             for name, value in weights.items()}  # fmt: skip
    return SpeechDetector(fill_network(SileroNetwork(), named, "Silero VAD", INSTALL))


def speech_stretches(probabilities: np.ndarray, duration: float) -> Stretches:
    """(start, end) in seconds of every stretch of speech, in order, not touching.

    Args:
        probabilities: one per 32 ms, see `SpeechDetector.finish`.
        duration: seconds of the sound, which no stretch goes beyond.
    """
    stretches: list[tuple[float, float]] = []
    for start, end in _runs(probabilities):
        if stretches and start - stretches[-1][1] < MIN_PAUSE_SECONDS:
            stretches[-1] = stretches[-1][0], end
        else:
            stretches.append((start, end))
    spoken = [(start, end) for start, end in stretches if end - start >= MIN_SPEECH_SECONDS]
    return _joined((max(0.0, start - MARGIN_SECONDS), min(duration, end + MARGIN_SECONDS)) for start, end in spoken)


def _runs(probabilities: np.ndarray) -> list[tuple[float, float]]:
    """Runs that rise above ENTER and last until they fall below LEAVE."""
    runs, start = [], None
    for index, value in enumerate([*probabilities.tolist(), 0.0]):
        if start is None and value >= ENTER:
            start = index
        elif start is not None and value < LEAVE:
            runs.append((start * PIECE_SECONDS, index * PIECE_SECONDS))
            start = None
    return runs


def _joined(stretches: Sequence[tuple[float, float]]) -> Stretches:
    joined: list[tuple[float, float]] = []
    for start, end in stretches:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        elif end > start:
            joined.append((start, end))
    return tuple(joined)


def seconds_of(stretches: Sequence[tuple[float, float]], start: float = 0.0, end: float = float("inf")) -> float:
    """Seconds of speech between two moments."""
    return sum(max(0.0, min(last, end) - max(first, start)) for first, last in stretches)
