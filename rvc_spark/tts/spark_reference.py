"""What the published Spark-TTS program does around its networks, rule for rule, with its defects.

For conformance: `tools/conformance.py` compares it with recordings of the reference. Ours deliberately does otherwise
where the original loses or doubles sound (`chunk_schedule`), reads what the model says as ids and not as text
(`spark_tokens`), and pads nothing. Users never get at these functions. Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
TOKENS_PER_SECOND = 50

_LEVELS = {"very_low": 0, "low": 1, "moderate": 2, "high": 3, "very_high": 4}
_AGES = ("Child", "Teenager", "Youth-Adult", "Middle-aged", "Elderly")
_EMOTIONS = (
    "UNKNOWN", "NEUTRAL", "ANGRY", "HAPPY", "SAD", "FEARFUL", "DISGUSTED", "SURPRISED", "SARCASTIC", "EXCITED",
    "SLEEPY", "CONFUSED", "EMPHASIS", "LAUGHING", "SINGING", "WORRIED", "WHISPER", "ANXIOUS", "NO-AGREEMENT",
    "APOLOGETIC", "CONCERNED", "ENUNCIATED", "ASSERTIVE", "ENCOURAGING", "CONTEMPT",
)  # fmt: skip
_TASKS = {
    **{name: name for name in ("vc", "tts", "asr", "s2s", "t2s", "understand", "controllable_tts", "prompt_tts")},
    "caption": "cap",
    "speech_edit": "edit",
}
_NAMED: dict[str, tuple[str, Mapping[str, object]]] = {  # kind -> (token family, name -> number or word)
    "age": ("age", {name: number for number, name in enumerate(_AGES)}),
    "gender": ("gender", {"female": 0, "male": 1}),
    "mel_level": ("pitch_label", _LEVELS),
    "pitch_var_level": ("pitch_var_label", _LEVELS),
    "loudness_level": ("loudness_label", _LEVELS),
    "speed_level": ("speed_label", _LEVELS),
    "task": ("task", _TASKS),
    "emotion": ("emotion", {name: number for number, name in enumerate(_EMOTIONS)}),
}
_COUNTED = {  # kind -> (token family, largest number)
    "mel_value": ("pitch_value", 1_000),
    "pitch_var_value": ("pitch_var_value", 10),
    "loudness_value": ("loudness_value", 30),
    "speed_value": ("speed_value", 10),
}
TABLES: dict[str, Mapping[str, object]] = {
    "levels": _LEVELS,
    "gender": _NAMED["gender"][1],
    "age": _NAMED["age"][1],
    "emotion": _NAMED["emotion"][1],
    "task": {name: f"<|task_{word}|>" for name, word in _TASKS.items()},
    "levels_ui": {str(number + 1): name for name, number in _LEVELS.items()},
}
GENERATE = {"max_new_tokens": 3000, "do_sample": True, "top_k": 50, "top_p": 0.95, "temperature": 0.8}


def helper_token(kind: str, value: str) -> str:
    """The token of an attribute: a name, or a number cut towards zero and held within its range."""
    if kind in _NAMED:
        family, names = _NAMED[kind]
        return f"<|{family}_{names[value]}|>"
    family, most = _COUNTED[kind]
    return f"<|{family}_{min(max(int(float(value)), 0), most)}|>"


def parse_text(decoded: str) -> tuple[list[int], list[int]]:
    """Semantic and global numbers in what the model said, in order."""
    found = [re.findall(rf"bicodec_{family}_(\d+)", decoded) for family in ("semantic", "global")]
    return [int(number) for number in found[0]], [int(number) for number in found[1]]


@dataclass(frozen=True)
class ReferenceChunking:
    """How the server's front model cuts a stream; seconds."""

    chunk: float
    max_chunk: float
    scale: float
    overlap: float


def schedule(tokens: int, how: ReferenceChunking) -> tuple[list[tuple[int, int]], list[tuple[bool, int]]]:
    """(first, end) of the tokens decoded per chunk, and what is sent: (has data, final flag).

    What a chunk overlaps with the next stays in the buffer, so the end is sent again even if nothing new came.
    """
    size, most, overlap = (math.ceil(length * TOKENS_PER_SECOND) for length in (how.chunk, how.max_chunk, how.overlap))
    spans, start = [], 0
    for known in range(1, tokens + 1):
        if known - start >= size:
            spans.append((start, start + size))
            start += size - overlap
            size = min(most, int(size * how.scale))
    if start < tokens:
        spans.append((start, tokens))
    return spans, [*((True, 0) for _ in spans), (False, 1)]


def padded_samples(samples: int, reference_text: str, target_text: str, unit: int | None) -> int:
    """Length in samples the benchmark client zero-fills a reference to; `unit` in seconds, None for no padding."""
    if unit is None:
        return samples
    seconds = samples / SAMPLE_RATE
    expected = seconds / len(reference_text) * len(target_text) if reference_text else seconds
    return unit * SAMPLE_RATE * (int(expected + seconds) // unit + 1)


def split_sizes(items: int, tasks: int) -> list[int]:
    """Items each task of the benchmark client gets, in order."""
    tasks = min(tasks, items)
    return [items // tasks + (number < items % tasks) for number in range(tasks)]


def crossfade(chunks: Sequence[np.ndarray], overlap_seconds: float) -> np.ndarray:
    """The benchmark client's join: float64, linear ramps over the overlap.

    The tail of a later chunk shorter than two overlaps is played twice.
    """
    if len(chunks) == 1:
        return chunks[0]
    count = int(overlap_seconds * SAMPLE_RATE)
    rising, falling = np.linspace(0, 1, count), np.linspace(1, 0, count)
    parts = [chunks[0][:-count].astype(np.float64)]
    for before, chunk in zip(chunks, chunks[1:], strict=False):
        parts += [chunk[:count] * rising + before[-count:] * falling, chunk[count:-count]]
    return np.concatenate([*parts, chunks[-1][-count:]])
