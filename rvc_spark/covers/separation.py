"""A song into voice and accompaniment, by Hybrid Transformer Demucs (Rouard, Massa, Defossez, 2023).

    separator = load_separator(folder, "htdemucs", "cpu")        once; it stays warm
    for step in separator.steps(blocks, total, level): ...       (fraction, vocals, accompaniment) as they are made

The network gives the vocals; the accompaniment is the song minus them, so both add up to the song whatever the network
does. Nothing is downloaded and nothing is unpickled: weights come from local safetensors files or not at all. Random
shifts, which demucs averages over by default, are left out: the same song gives the same samples. Of `htdemucs_ft`,
four networks tuned to one source each, only the one for vocals is loaded. The only home of demucs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rvc_spark.covers.overlap_add import Pieces, overlap_add
from rvc_spark.covers.separation_model import VOCALS, load_htdemucs, read_bag
from rvc_spark.errors import SeparatorFileError

VERSION = 1
"""Of what this stage computes; a new number makes everybody's stems anew."""
QUALITIES = {"good": "htdemucs", "best": "htdemucs_ft"}
ASSETS = {
    "htdemucs": ("htdemucs-bag", "htdemucs-955717e8"),
    "htdemucs_ft": ("htdemucs-ft-bag", "htdemucs-ft-04573f0d"),
}
"""What has to be there per model; of htdemucs_ft only the network that gives vocals."""
CHANNELS = 2
SILENT_STD = 1e-8  # added to the deviation a song is divided by, as demucs does


@dataclass(frozen=True)
class Level:
    """Mean and standard deviation of a song mixed down, by which it is brought to the scale the network was taught."""

    mean: float
    std: float

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray]) -> Level:
        """Measured over float32 [2, n] blocks, in one pass."""
        count, total, squares = 0, 0.0, 0.0
        for block in blocks:
            mono = block.mean(axis=0, dtype=np.float64)
            count, total, squares = count + mono.size, total + mono.sum(), squares + float(mono @ mono)
        if count < 2:
            return cls(0.0, SILENT_STD)
        variance = max(0.0, squares - total * total / count) / (count - 1)
        return cls(total / count, variance**0.5 + SILENT_STD)


class Separator:
    """One or more networks over which the voice is averaged, kept in memory between songs.

    Attributes: name, device, files (what was loaded), left_out (networks of other sources), segment (frames at a time).
    """

    def __init__(self, name: str, networks: list[tuple[torch.nn.Module, float]], device: str) -> None:
        self.name, self.device = name, device
        self._networks = networks
        self.files: tuple[Path, ...] = ()
        self.left_out: tuple[str, ...] = ()
        # 7.8 s, what the networks were taught on; as frames, a whole number
        self.segment = min(int(network.segment * network.samplerate) for network, _ in networks)

    def steps(
        self, blocks: Iterable[np.ndarray], total: int, level: Level
    ) -> Generator[tuple[float, np.ndarray | None, np.ndarray | None], None, None]:
        """Separate a song that comes in blocks, in memory that does not grow; closing the generator ends the work.

        Args:
            blocks: float32 [2, n] at 44.1 kHz, together `total` frames.
            level: of the whole song.

        Yields:
            (fraction done, vocals, accompaniment): float32 [2, n] each, in order, `total` frames in all; None while a
            segment is still in work. Their sum is the song to the last bit but one of float32.
        """
        pieces = Pieces(self.segment, silence=level.mean)  # which is 0 on the network's scale
        count = max(1, len(range(0, total, pieces.stride)) * len(self._networks))
        done = 0
        for made in overlap_add(blocks, total, pieces, lambda sound: self._vocals(sound, level)):
            if made is None:
                done += 1
                yield min(1.0, done / count), None, None
                continue
            mixture, vocals = made
            yield min(1.0, done / count), vocals, mixture - vocals

    def _vocals(self, sound: np.ndarray, level: Level) -> Iterator[np.ndarray | None]:
        """Vocals of one segment, float32 [2, n]; None after each network."""
        scaled = torch.from_numpy(((sound - level.mean) / level.std).astype(np.float32))[None].to(self.device)
        vocals = torch.zeros_like(scaled[0])
        for network, share in self._networks:
            with torch.inference_mode():
                vocals += share * network(scaled)[0, network.sources.index(VOCALS)]
            yield None
        yield (vocals.cpu().numpy() * level.std + level.mean).astype(np.float32)


def load_separator(folder: Path, name: str, device: str) -> Separator:
    """Load the networks of a model (`htdemucs`, `htdemucs_ft`) from a folder with its `.yaml` and `.safetensors` files.

    Raises SeparatorFileError (missing, hostile, or networks that do not belong together), MissingPackageError.
    """
    bag = read_bag(folder, name)
    networks = [(load_htdemucs(path, device), share) for path, share in bag.files]
    if len({tuple(network.sources) for network, _ in networks}) > 1:
        raise SeparatorFileError(f"the networks of {name} give different sources", "Fetch the model again.")
    separator = Separator(name, networks, device)
    separator.files, separator.left_out = tuple(path for path, _ in bag.files), bag.left_out
    return separator

