"""MDX-Net (Kim et al., 2021) in the form of the UVR models: parts lead from backing voices, takes rooms out of voices.

    sound [2, n] -> STFT -> real and imaginary parts of both channels [1, 4, bins, frames] -> ONNX -> inverse -> part
    rest = sound - part, so both add up to the sound

A file holds its sizes (bins, frames) but not the length of its Fourier transform nor the factor its output needs; those
are in UVR's own table, here in `MODELS`. The only home of onnxruntime, which is optional.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rvc_spark.covers.overlap_add import Pieces, overlap_add
from rvc_spark.errors import MissingPackageError, SeparatorFileError
from rvc_spark.safe_load import shown

VERSION = 1
HOP = 1024
MAX_FILE_BYTES = 512 << 20  # they have 50 to 67 MB
MAX_FRAMES = 2048
_NEXT = "Fetch the file again: rvc-spark assets get uvr --replace."


@dataclass(frozen=True)
class MdxModel:
    """What UVR's table says of a file. part: what comes out of it; the rest is the sound minus that.

    n_fft: samples per transform. compensate: factor of the output. quiet_bins: lowest bins that it is not given.
    """

    asset: str
    part: str
    n_fft: int
    compensate: float
    quiet_bins: int = 3


MODELS = {
    "lead": MdxModel("uvr-kara-2", "the backing voices", 5120, 1.065),  # taught on karaoke: everything but the lead
    "dry": MdxModel("uvr-reverb-hq", "the room", 6144, 1.035),
}


def require_onnxruntime(part: str) -> None:
    """Raises MissingPackageError where it is not installed. part: what is to be found with it."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingPackageError(
            f"finding {part} needs onnxruntime, which is not installed", "Run: pip install 'rvc-spark[covers]'"
        )


class MdxNet:
    """A loaded network, kept in memory between songs."""

    def __init__(self, path: Path, model: MdxModel, device: str = "cpu") -> None:
        """Raises MissingPackageError without onnxruntime, SeparatorFileError for a file that is no such network."""
        require_onnxruntime(model.part)
        import onnxruntime

        self.path, self.model = path, model
        wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        states = onnxruntime.capi.onnxruntime_pybind11_state
        refused = (states.Fail, states.InvalidProtobuf, states.InvalidGraph, states.InvalidArgument)
        refused += (states.NotImplemented, states.NoSuchFile, states.RuntimeException, RuntimeError, ValueError)
        self._failures = refused
        try:
            # from memory: a file then has no place from which it could name other files
            self._session = onnxruntime.InferenceSession(
                _read(path), providers=[*providers, "CPUExecutionProvider"], sess_options=_quiet(onnxruntime)
            )
        except refused as error:
            raise _refused(path, f"it is no network ({shown(str(error).splitlines()[0], 120)})") from error
        self.bins, self.frames = self._sizes()
        self._window = torch.hann_window(model.n_fft)

    def _sizes(self) -> tuple[int, int]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shapes = [list(item.shape) for item in (*inputs, *outputs)]
        if len(shapes) != 2 or any(len(shape) != 4 or shape[1] != 4 for shape in shapes):
            raise _refused(self.path, f"its inputs and outputs are {shapes} instead of [batch, 4, bins, frames] each")
        bins, frames = shapes[0][2:]
        if shapes[1][2:] not in ([bins, frames], [None, None]) and not isinstance(shapes[1][2], str):
            raise _refused(self.path, f"it turns {shapes[0]} into {shapes[1]}")
        whole = isinstance(bins, int) and isinstance(frames, int)
        if not whole or not 0 < bins <= self.model.n_fft // 2 + 1 or not 1 < frames <= MAX_FRAMES:
            raise _refused(self.path, f"its sizes {bins} x {frames} do not go with a transform of {self.model.n_fft}")
        return bins, frames

    def steps(
        self, blocks: Iterable[np.ndarray], total: int
    ) -> Generator[tuple[float, np.ndarray, np.ndarray], None, None]:
        """Take a sound that comes in blocks apart, in memory that does not grow.

        Args:
            blocks: float32 [2, n] at 44.1 kHz, together `total` frames.

        Yields:
            (fraction done, rest, part): float32 [2, n] each, in order; their sum is the sound.
        """
        done = 0
        for made in overlap_add(blocks, total, Pieces(HOP * (self.frames - 1)), self._part):
            if made is not None:
                sound, part = made
                done += sound.shape[1]
                yield done / total, sound - part, part

    def _part(self, sound: np.ndarray) -> Iterator[np.ndarray]:
        """What the network gives for one piece, float32 [2, n]."""
        size, wave = self.model.n_fft, torch.from_numpy(np.ascontiguousarray(sound))
        spectra = torch.stft(wave, size, HOP, window=self._window, return_complex=True)
        given = torch.view_as_real(spectra).permute(0, 3, 1, 2).reshape(1, 4, size // 2 + 1, -1)
        given = given[:, :, : self.bins].clone()
        given[:, :, : self.model.quiet_bins] = 0
        try:
            (answer,) = self._session.run(None, {self._session.get_inputs()[0].name: given.numpy()})
        except self._failures as error:
            raise _refused(self.path, f"it fails when it runs ({shown(str(error).splitlines()[0], 120)})") from error
        if answer.shape != tuple(given.shape) or not np.isfinite(answer).all():
            raise _refused(self.path, f"it answers {answer.shape}, or numbers that are not finite")
        full = torch.zeros(2, 2, size // 2 + 1, given.shape[-1])
        full[:, :, : self.bins] = torch.from_numpy(answer.astype(np.float32)).reshape(2, 2, self.bins, -1)
        back = torch.view_as_complex(full.permute(0, 2, 3, 1).contiguous())
        wave = torch.istft(back, size, HOP, window=self._window, length=sound.shape[1])
        yield (wave * self.model.compensate).numpy()


def _quiet(onnxruntime: object) -> object:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said by an error, not beside it
    return options


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"it cannot be read ({error.strerror})") from error
    if len(data) > MAX_FILE_BYTES:
        raise _refused(path, f"it has more than {MAX_FILE_BYTES:,} bytes")
    return data


def _refused(path: Path, problem: str) -> SeparatorFileError:
    return SeparatorFileError(f"{shown(path.name)} is refused as a separation model: {problem}", _NEXT)
