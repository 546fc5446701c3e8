"""A content encoder that is read when the first sound comes: a voice can be chosen, refused or left before that.

What a voice must agree with (widths, name) stands in the file's outline, so nothing is accepted that would be refused
later for that reason. An encoder in fairseq's format tells its sizes by its tensors only and is read at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from rvc_spark.errors import EncoderFileError
from rvc_spark.infer.content import ContentEncoder
from rvc_spark.infer.encoder_sizes import read_config
from rvc_spark.infer.encoder_weights import MAX_WEIGHT_BYTES, weight_file
from rvc_spark.infer.hubert import Hubert
from rvc_spark.safe_load import open_tensors


class LazyEncoder:
    """A content encoder to be. Safe in threads: it is read once.

    Attributes:
        path: where it is.
        dims: as of ContentEncoder.
    """

    def __init__(self, path: Path, load: Callable[[], ContentEncoder]) -> None:
        """Look at the outline. Raises EncoderFileError for what cannot be an encoder."""
        self.path = path
        self._load = load
        self._lock = threading.Lock()
        self._encoder = None if path.is_dir() else load()
        self._outline = self._encoder or outline_encoder(path)
        self.dims = self._outline.dims

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._encoder is not None

    def conflict_with(self, embedder: str) -> str | None:
        """As of ContentEncoder."""
        return self._outline.conflict_with(embedder)

    def get(self) -> ContentEncoder:
        """The encoder, read now if need be. Raises EncoderFileError."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self._load()
            return self._encoder


def outline_encoder(folder: Path) -> ContentEncoder:
    """An encoder that knows its sizes and name and can run nothing: none of its weights are read.

    Raises EncoderFileError: not an encoder's folder, damaged at a glance, or of sizes beyond bounds.
    """
    sizes = read_config(folder)
    path = weight_file(folder)
    with open_tensors(path, max_bytes=MAX_WEIGHT_BYTES, what="content encoder", error=EncoderFileError) as file:
        outline = file.outline if isinstance(file.outline, dict) else {}
        note = outline.get("final_proj.weight") or outline.get("hubert.final_proj.weight")
    projection = None
    with torch.device("meta"):
        stand_in = Hubert(sizes)
        shape = getattr(note, "shape", ())
        if len(shape) == 2 and 1 <= shape[0] <= 4096:
            projection = nn.Linear(sizes.hidden, shape[0])
    return ContentEncoder(folder, stand_in, projection, sizes, torch.float32)
