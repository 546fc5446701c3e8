"""The work of a cover's stages: each reads finished files and writes the files of its own artefact.

Every function yields Progress (a fraction 0..1 of its own stage and a few words) and adds what it found out to the
draft's facts. Which stage comes when, and whether at all, is `cover_chain`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.audio import AudioWriter, StreamResampler, open_writer
from rvc_spark.covers.artefacts import Draft
from rvc_spark.covers.cover_sources import BLOCK_FRAMES, CHANNELS, FLOAT_WAV, RATE, frames_of, read_blocks
from rvc_spark.covers.effects import EffectSettings, apply_effects
from rvc_spark.covers.gate import GateSettings, gate_silence, measure_activity
from rvc_spark.covers.key_shift import shift_key
from rvc_spark.covers.mdx_net import MdxNet
from rvc_spark.covers.separation import Level, Separator
from rvc_spark.errors import AudioError
from rvc_spark.infer.pipeline import Progress
from rvc_spark.infer.pitch_trackers import SAMPLE_RATE, pm_f0

Work = Generator[Progress, None, None]
SAME_LENGTH_SECONDS = 0.1
NOTHING_DB = -30.0
"""dB. A part so far below the rest is what a network makes of a sound that has no such part."""


def separate(song: Path, cut: tuple[int, int], separator: Separator, draft: Draft) -> Work:
    """`vocals.wav` and `accompaniment.wav` of a song, which add up to it; of both, frames cut[0]..cut[1] are kept."""
    total = frames_of(song)
    level = Level.of(read_blocks(song))
    words = f"separating ({separator.name})"
    steps = separator.steps(read_blocks(song), total, level)
    with _Writers(draft, "vocals", "accompaniment") as (writers, position):
        for fraction, vocals, accompaniment in steps:
            if vocals is not None:
                position = _write_cut(writers, (vocals, accompaniment), position, cut)
            yield Progress(fraction, words)


def subtract(song: Path, vocals: Path, draft: Draft) -> Work:
    """`accompaniment.wav` = song - vocals, and `vocals.wav` as long as the song."""
    frames, given = frames_of(song), frames_of(vocals)
    if abs(frames - given) > SAME_LENGTH_SECONDS * RATE:
        raise AudioError(
            f"The song is {frames / RATE:.2f} s long and its vocals {given / RATE:.2f} s",
            "Give vocals cut from this very song, or its accompaniment too.",
        )
    with _Writers(draft, "vocals", "accompaniment") as (writers, position):
        for mixture, voice in zip(read_blocks(song), _fitted(read_blocks(vocals), frames), strict=True):
            position = _write_cut(writers, (voice, mixture - voice), position, (0, frames))
            yield Progress(position / frames, "accompaniment = song - vocals")


def take_apart(sound: Path, net: MdxNet, names: tuple[str, str], draft: Draft) -> Work:
    """Two files that add up to a sound: the rest and the part. Where the part is hardly there, none is kept.

    names: of rest and part. Facts: part_db, the part's level over the rest's; nothing, whether it counts as none.
    """
    total, energies = frames_of(sound), np.zeros(2)
    with _Writers(draft, *names) as (writers, position):
        for fraction, *pieces in net.steps(read_blocks(sound), total):
            position = _write_cut(writers, pieces, position, (0, total))
            energies += [float(np.sum(np.square(piece, dtype=np.float64))) for piece in pieces]
            yield Progress(fraction, f"looking for {net.model.part}")
    level = 10 * math.log10(energies[1] / energies[0]) if energies.all() else (0.0 if energies[1] else -200.0)
    draft.facts |= {"part_db": round(level, 1), "nothing": level < NOTHING_DB}
    if draft.facts["nothing"]:
        for name in names:
            draft.path(f"{name}.wav").unlink()


def find_melody(lead: Path, spans: list[tuple[int, int]], draft: Draft) -> Work:
    """`melody.npy`: f0 of a voice in Hz per 10 ms, float32, 0 where unvoiced, of `spans` of frames (or all) joined."""
    pieces: list[np.ndarray] = []
    total = frames_of(lead)
    for start, stop in spans or [(0, total)]:
        resampler, waiting = StreamResampler(RATE, SAMPLE_RATE), np.zeros(0, np.float32)
        for block in read_blocks(lead, start, stop):
            waiting = np.concatenate([waiting, resampler.push(block.mean(axis=0))])
            whole = len(waiting) - len(waiting) % SAMPLE_RATE  # second by second, so memory does not grow
            pieces += [pm_f0(waiting[at : at + SAMPLE_RATE].astype(np.float64)) for at in range(0, whole, SAMPLE_RATE)]
            waiting = waiting[whole:]
            yield Progress(min(1.0, 0.01 * sum(map(len, pieces)) * RATE / total), "the singer's range")
        rest = np.concatenate([waiting, resampler.finish()[0]])
        if len(rest) > SAMPLE_RATE // 10:  # Praat needs a few periods
            pieces.append(pm_f0(rest.astype(np.float64)))
    melody = np.concatenate([np.zeros(0), *pieces]).astype(np.float32)
    np.save(draft.path("melody.npy"), melody, allow_pickle=False)
    voiced = melody[melody > 0]
    draft.facts |= {"median_hz": round(float(np.median(voiced)), 1) if len(voiced) else None}


def read_melody(path: Path) -> np.ndarray:
    """What `find_melody` wrote. Raises AudioError for anything else."""
    try:
        melody = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise AudioError(f"{path.name} is no melody ({error})", "Prune the covers: rvc-spark cover --prune.") from error
    return np.asarray(melody, np.float32).reshape(-1)


def polish(voice: Path, source: Path, gate: GateSettings, effects: EffectSettings, draft: Draft) -> Work:
    """`sound.wav`: a converted voice silenced where its source is silent, then through the effects, in stereo."""
    yield Progress(0.0, "silence")
    activity = measure_activity(read_blocks(source), RATE)
    total = frames_of(voice)
    gated = gate_silence(read_blocks(voice), activity, RATE, gate)
    yield from _written(apply_effects(gated, effects, RATE, 1, CHANNELS), total, draft, "effects")


def move_key(sound: Path, semitones: float, draft: Draft) -> Work:
    """`sound.wav`: the same, so many semitones higher, as long as it was."""
    blocks = shift_key(read_blocks(sound), RATE, CHANNELS, semitones)
    yield from _written(blocks, frames_of(sound), draft, f"key {semitones:+g}")


def keep_outside(lead: Path, spans: list[tuple[int, int]], draft: Draft) -> Work:
    """`sound.wav`: what of a voice lies outside the spans that are converted, faded at their edges."""
    total = frames_of(lead)
    blocks = _times(read_blocks(lead), spans, inside=False)
    yield from _written(blocks, total, draft, "the other singer")


def _written(blocks: Iterable[np.ndarray], total: int, draft: Draft, words: str) -> Work:
    with _Writers(draft, "sound") as (writers, _):
        for block in blocks:
            stereo = np.repeat(block, 2, axis=0) if len(block) == 1 else block
            writers[0].write(stereo)
            yield Progress(min(1.0, writers[0].frames / max(total, 1)), words)


class _Writers(ExitStack):
    """Float WAV writers for names of a draft; they keep their files when the block ends well."""

    def __init__(self, draft: Draft, *names: str) -> None:
        super().__init__()
        self._places = [draft.path(f"{name}.wav") for name in names]

    def __enter__(self) -> tuple[list[AudioWriter], int]:
        super().__enter__()
        return [self.enter_context(open_writer(path, RATE, CHANNELS, FLOAT_WAV)) for path in self._places], 0


def _write_cut(
    writers: list[AudioWriter], pieces: Iterable[np.ndarray], position: int, cut: tuple[int, int]
) -> int:
    """Write what of pieces that begin at `position` lies in `cut`; returns the position behind them."""
    for writer, piece in zip(writers, pieces, strict=True):
        writer.write(piece[:, max(0, cut[0] - position) : max(0, cut[1] - position)])
        behind = position + piece.shape[1]
    return behind


def _fitted(blocks: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """Blocks cut as those of a file of `frames`, filled up with silence."""
    for start in range(0, frames, BLOCK_FRAMES):
        size = min(BLOCK_FRAMES, frames - start)
        block = next(blocks, np.zeros((CHANNELS, 0), np.float32))[:, :size]
        yield np.pad(block, ((0, 0), (0, size - block.shape[1])))


def _times(blocks: Iterable[np.ndarray], spans: list[tuple[int, int]], inside: bool) -> Iterator[np.ndarray]:
    """Blocks of a sound that begins at frame 0, times the gain of `span_gain`."""
    position = 0
    for block in blocks:
        gain = span_gain(spans, position, position + block.shape[1])
        yield block * (gain if inside else 1 - gain)
        position += block.shape[1]


FADE_FRAMES = round(0.02 * RATE)
"""Of the crossfade at either edge of a span. It lies inside: around the edge it would reach into the other singer."""


def span_gain(spans: list[tuple[int, int]], start: int, stop: int) -> np.ndarray:
    """1 inside the spans and 0 outside, with raised-cosine fades just inside the edges: float32 [stop - start]."""
    frames = np.arange(start, stop, dtype=np.float64)
    gain = np.zeros(stop - start, np.float32)
    for first, last in spans:
        if first >= stop or last <= start:
            continue
        fade = min(FADE_FRAMES, (last - first) // 2)
        rising = np.clip((frames - first + 0.5) / fade, 0, 1)
        falling = np.clip((last - frames - 0.5) / fade, 0, 1)
        gain += (np.sin(0.5 * np.pi * np.minimum(rising, falling)) ** 2).astype(np.float32)
    return gain


def facts_of(engines: dict[str, Any]) -> dict[str, list[str]]:
    """Choices as they are kept in facts: name -> [value, reason]."""
    return {name: [choice.value, choice.reason] for name, choice in engines.items()}
