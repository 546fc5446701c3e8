"""Which form of the vocoder runs on a device, and in blocks of which length.

The form is chosen once per voice and says why. A stretch is decoded in blocks, so that memory stays bounded and sound
leaves early; each block computes only what its samples depend on. Refuses to know what a voice is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rvc_spark.infer.decoder import Decoder, receptive_field
from rvc_spark.infer.row_conv import rows_work
from rvc_spark.infer.row_decoder import RowDecoder
from rvc_spark.infer.voice_layout import NetConfig
from rvc_spark.rvc_config import Choice

DECODER_FRAMES = 512  # of a block at most; context costs 2 % of it, and it takes 100 MB
DECODER_FRAMES_GPU = 1024  # of all sequences together, at least
SHORTEST_BLOCK = 64  # frames of each of many sequences
BYTES_PER_SAMPLE = 1024  # of sound that is being made: eight signals of 32 channels, the widest stage's
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


class BlockDecoder:
    """The vocoder of one voice on one device.

    Args:
        decoder: the network, whose weights are used.
        dtype: of the vocoder's work; on a CPU the network itself may be wider.

    Attributes:
        form: how it runs and why.
    """

    def __init__(self, decoder: Decoder, net: NetConfig, dtype: torch.dtype) -> None:
        self._decoder, self._per_frame = decoder, net.samples_per_frame
        self._margin = receptive_field(net)
        self._on_cpu = decoder.conv_pre.weight.device.type == "cpu"
        self._rows = RowDecoder(decoder, net, dtype) if self._on_cpu and rows_work(dtype) else None
        self.form = _form(self._on_cpu, self._rows, decoder.conv_pre.weight.dtype)

    @property
    def nbytes(self) -> int:
        """What it keeps besides the network's weights."""
        return 0 if self._rows is None else self._rows.nbytes

    def whole(self, latent: Tensor, excitation: Tensor | None, speaker: Tensor) -> Tensor:
        """Latent [B, C, T], excitation [B, 1, T * samples_per_frame] or None, speaker [B, gin, 1] -> [B, 1, N]."""
        if self._rows is None or latent.shape[0] > 1:
            return self._decoder(latent, excitation, speaker)
        return self._rows(latent, excitation, speaker, (0, latent.shape[2]))[None, None]

    def blocks(
        self, z: Tensor, excitation: Tensor | None, speaker: Tensor, keep: tuple[int, int], first_frames: int | None
    ) -> Iterator[Tensor]:
        """Frames keep[0]..keep[1] of `whole`, block by block: float32 [B, n].

        first_frames: of the first block; each following one has half as many again. None: as long as is fastest.
        """
        largest = DECODER_FRAMES if self._on_cpu else self._on_device(len(z), keep[1] - keep[0])
        for span in _spans(keep, first_frames, largest):
            yield self._frames(z, excitation, speaker, span)

    def _on_device(self, batch: int, wanted: int) -> int:
        """Frames of each of `batch` sequences to decode at once: more where there is memory, and more are wanted."""
        device, frames = self._decoder.conv_pre.weight.device, DECODER_FRAMES_GPU
        if device.type == "cuda" and batch * wanted > frames:
            free = torch.cuda.mem_get_info(device)[0]
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            frames = max(frames, free // 2 // (self._per_frame * BYTES_PER_SAMPLE))
        return max(frames // batch, SHORTEST_BLOCK)

    def _frames(self, z: Tensor, excitation: Tensor | None, speaker: Tensor, span: tuple[int, int]) -> Tensor:
        if self._rows is not None and len(z) == 1:
            return self._rows(z, excitation, speaker, span)[None]
        step = self._per_frame
        first, last = max(span[0] - self._margin.before, 0), min(span[1] + self._margin.after, z.shape[2])
        heard = None if excitation is None else excitation[:, :, first * step : last * step]
        sound = self._decoder(z[:, :, first:last], heard, speaker)
        return sound[:, 0, (span[0] - first) * step : (span[1] - first) * step].float()


def _form(on_cpu: bool, rows: RowDecoder | None, dtype: torch.dtype) -> Choice:
    if rows is not None:
        return Choice(f"rows in {NAMES[rows.dtype]}", "oneDNN is here")
    name = NAMES[dtype]
    return Choice(f"network in {name}", f"oneDNN or its {name} is missing" if on_cpu else "a GPU has its own kernels")


def _spans(keep: tuple[int, int], first_frames: int | None, largest: int) -> Iterator[tuple[int, int]]:
    """Of each block the first frame and the one after the last."""
    total, at = keep[1] - keep[0], keep[0]
    size = min(total if first_frames is None else first_frames, largest)
    while at < keep[1]:
        stop = min(at + size, keep[1])
        yield at, stop
        at, size = stop, size if first_frames is None else min(3 * size // 2, largest)
