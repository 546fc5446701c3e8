"""A conversion as a picture the size of a stamp: mel spectrogram of the source above that of the result, f0 in colour.

Hundreds of them belong to one report, so they are drawn without a figure: levels become greys of a palette. Each takes
8 kB and 30 ms.
"""

from __future__ import annotations

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.widgets.palette_png import palette_png
from rvc_spark.widgets.spectrogram import mel_picture

COLUMNS, BANDS, GAP = 400, 60, 4  # pixels
TOP_HZ = 8_000.0
PITCH_HZ = (50.0, 800.0)  # bottom and top of the panel for the f0, on a logarithmic scale: octaves of equal height
FRAMES_PER_SECOND = 100  # of an f0
COLOURS = 16  # of the palette, so that two pixels go into a byte of the PNG
GREYS = COLOURS - 3
RANGE_DB = 60.0  # below the loudest cell; what is quieter is paper
# Orange and blue of Okabe and Ito's palette (2008), as in the large figures.
SOURCE_COLOUR, RESULT_COLOUR, PAPER = (213, 94, 0), (0, 114, 178), (255, 255, 255)
_SOURCE, _RESULT, _PAPER = GREYS, GREYS + 1, GREYS + 2


def thumbnail(
    source: Audio | None, result: Audio, source_f0: np.ndarray | None = None, result_f0: np.ndarray | None = None
) -> bytes:
    """A PNG of COLUMNS x (2 BANDS + GAP) pixels, or half of it without a source.

    Args:
        source, result: of any length and rate; both fill the width.
        source_f0, result_f0: float [F], Hz per 10 ms, 0 where unvoiced; the part that is beyond the sound is left out.
    """
    parts = [_panel(result, result_f0, _RESULT)]
    if source is not None:
        parts = [_panel(source, source_f0, _SOURCE), np.full((GAP, COLUMNS), _PAPER, np.uint8), *parts]
    return palette_png(np.concatenate(parts), _palette())


def _panel(sound: Audio, f0: np.ndarray | None, colour: int) -> np.ndarray:
    """uint8 [BANDS, COLUMNS] of palette indices, high frequencies on top."""
    top_hz = min(TOP_HZ, sound.rate / 2)
    picture = mel_picture(sound.mono().samples, sound.rate, top_hz=top_hz, columns=COLUMNS, bands=BANDS)
    levels = np.clip(1.0 + picture.levels / RANGE_DB, 0.0, 1.0)
    taken = (np.arange(COLUMNS) * levels.shape[1]) // COLUMNS
    cells = np.rint(levels[::-1, taken] * (GREYS - 1)).astype(np.uint8)
    if f0 is not None and len(f0):
        columns, rows = _line(np.asarray(f0, np.float64), sound.seconds)
        for shift, index in ((-2, _PAPER), (2, _PAPER), (-1, colour), (0, colour), (1, colour)):
            cells[np.clip(rows + shift, 0, BANDS - 1), columns] = index
    return cells


def _line(f0: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of the pixels of an f0, int [n] each."""
    frames = ((np.arange(COLUMNS) + 0.5) / COLUMNS * seconds * FRAMES_PER_SECOND).astype(int)
    hz = np.where(frames < len(f0), f0[np.minimum(frames, len(f0) - 1)], 0.0)
    (columns,) = np.nonzero(hz > 0)
    low, high = np.log2(PITCH_HZ)
    height = np.clip((np.log2(hz[columns]) - low) / (high - low), 0.0, 1.0)
    return columns, BANDS - 1 - np.rint(height * (BANDS - 1)).astype(int)


def _palette() -> np.ndarray:
    """uint8 [COLOURS, 3]: paper to ink, then the colours of the lines."""
    greys = np.repeat(np.linspace(255, 24, GREYS)[:, None], 3, axis=1)
    return np.concatenate([greys, [SOURCE_COLOUR, RESULT_COLOUR, PAPER]]).astype(np.uint8)
