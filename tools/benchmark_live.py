"""Streamed conversion against the whole one: delay, speed, distance, clicks, f0; and whether a SOLA search would help.

    python tools/benchmark.py live [--voice demo] [--blocks 0.1 0.25 0.5] [--context 2] [--lookahead 0.12] [SOUND ...]

Without sounds the shipped sentences are used. The distance is the mean absolute difference of 80-band log-mel
spectrograms in dB, cut off 70 dB below the peak; as marks, that of the whole conversion with another seed of its noise,
and of the whole one content frame (20 ms) late.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, crossfade, read_audio
from rvc_spark.infer.live_blocks import LiveBlocks
from rvc_spark.infer.live_settings import LiveSettings
from rvc_spark.infer.live_source import LiveSource
from rvc_spark.infer.mel_distance import log_mel_distance
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_modules import VC, Conversion

MEASURES = Path(__file__).resolve().parent.parent / "tests" / "live_measures.py"
SEARCH_SECONDS = 0.01  # of SOLA in the published program
PIECE_SECONDS = 0.02


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", nargs="*", type=Path, help="default: the sentences that come with the demo voice")
    parser.add_argument("--voice", default="demo")
    parser.add_argument("--blocks", nargs="+", type=float, default=[0.1, 0.25, 0.5], help="seconds")
    parser.add_argument("--context", nargs="+", type=float, default=[LiveSettings().context], help="seconds")
    parser.add_argument("--lookahead", nargs="+", type=float, default=[LiveSettings().lookahead], help="seconds")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each sound (default: 8)")
    parser.add_argument("--key", type=float, default=5.0, help="semitones (default: 5)")
    parser.add_argument("--f0-method", default="pm")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    vc = VC()
    vc.load(options.voice)
    settings = ConversionSettings(f0_method=options.f0_method, key=options.key)
    sounds = [clip(path, options.seconds) for path in options.sounds or shipped(vc)]
    whole = [vc.convert(sound, settings) for sound in sounds]
    marks = {"other_seed_db": 0.0, "one_frame_late_db": 0.0}
    for sound, result in zip(sounds, whole, strict=True):
        samples, late = result.audio.samples, round(0.02 * result.rate)
        other = vc.convert(sound, settings, seed=1).audio.samples
        for name, changed in (("other_seed_db", other), ("one_frame_late_db", np.roll(samples, late))):
            marks[name] += log_mel_distance(samples, changed, result.rate) / len(sounds)
    rows = []
    for context in options.context:
        for lookahead in options.lookahead:
            for block in options.blocks:
                live = LiveSettings(block=block, context=context, lookahead=lookahead)
                rows.append(row(vc, sounds, whole, settings, live))
    if options.json:
        sys.stdout.write(json.dumps({"marks": marks, "rows": rows}, indent=1) + "\n")
    else:
        show(marks, rows)
    return 0


def tools() -> ModuleType:
    """The measures that the tests use as well."""
    if "live_measures" not in sys.modules:
        spec = importlib.util.spec_from_file_location("live_measures", MEASURES)
        sys.modules["live_measures"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["live_measures"])
    return sys.modules["live_measures"]


def shipped(vc: VC) -> list[Path]:
    """Three sentences by three speech synthesisers."""
    return sorted((Path(vc.config.demo_dir) / "examples").glob("source_*.wav"))


def clip(path: Path, seconds: float) -> Audio:
    """The beginning of a sound, mono."""
    sound = read_audio(path, mono=True)
    return Audio(sound.samples[: round(seconds * sound.rate)], sound.rate)


def pieces(sound: Audio) -> Iterator[Audio]:
    """As a microphone would give them."""
    size = round(PIECE_SECONDS * sound.rate)
    for at in range(0, sound.frames, size):
        yield Audio(sound.samples[at : at + size], sound.rate)


def row(
    vc: VC, sounds: list[Audio], whole: list[Conversion], settings: ConversionSettings, live: LiveSettings
) -> dict[str, Any]:
    """The figures of one setting, over all sounds."""
    found: list[dict[str, float]] = []
    seconds, sola = 0.0, []
    delay = 0.0
    for sound, exact in zip(sounds, whole, strict=True):
        stream = vc.stream(pieces(sound), settings, live)
        began = time.perf_counter()
        blocks, f0 = [], []
        for block in stream:
            blocks.append(block.samples)
            f0.append(stream.result_f0)
        seconds += time.perf_counter() - began
        delay = max(delay, stream.delay)
        found.append(compared(np.concatenate(blocks), f0, exact, live))
        sola += joins(vc, sound, settings, live)
    return {
        **{"block_ms": live.block * 1000, "context_s": live.context, "lookahead_ms": live.lookahead * 1000},
        "delay_ms": delay * 1000,
        "rtf": seconds / sum(sound.seconds for sound in sounds),
        "log_mel_db": float(np.mean([item["log_mel_db"] for item in found])),
        "join_worst_db": max(item["join_worst_db"] for item in found),
        "join_whole_db": max(item["join_whole_db"] for item in found),
        "f0_median_cents": float(np.median([item["f0_median_cents"] for item in found])),
        "voicing_agrees": float(np.mean([item["voicing_agrees"] for item in found])),
        **sola_figures(sola),
    }


def compared(samples: np.ndarray, blocks_f0: list[np.ndarray], exact: Conversion, live: LiveSettings) -> dict:
    """One streamed result beside the whole one."""
    reference, rate = exact.audio.samples, exact.rate
    grid = live.grid(live.block)
    places = tools().join_places(len(reference), grid.block * rate // 100, grid.crossfade * rate // 100)
    worst, natural = tools().join_scores(samples, reference, places, rate)
    figures = {
        "log_mel_db": log_mel_distance(reference, samples, rate),
        "join_worst_db": worst, "join_whole_db": natural, "f0_median_cents": 0.0, "voicing_agrees": 1.0,
    }  # fmt: skip
    if exact.result_f0 is not None and len(blocks_f0) and blocks_f0[0] is not None:
        f0 = np.concatenate(blocks_f0)
        count = min(len(f0), len(exact.result_f0))
        f0, known = f0[:count], exact.result_f0[:count]
        both = (f0 > 0) & (known > 0)
        figures["voicing_agrees"] = float(((f0 > 0) == (known > 0)).mean())
        if both.any():
            figures["f0_median_cents"] = float(np.median(np.abs(1200 * np.log2(f0[both] / known[both]))))
    return figures


class WatchedBlocks(LiveBlocks):
    """Keeps both renderings of every join."""

    def _voice(self, *arguments: Any) -> np.ndarray:
        voice = super()._voice(*arguments)
        if len(self._tail):
            search = round(SEARCH_SECONDS * self._info.sample_rate)
            self.seen = [*getattr(self, "seen", []), (self._tail.copy(), voice[: len(self._tail) + search].copy())]
        return voice


Join = tuple[np.ndarray, np.ndarray]


def joins(vc: VC, sound: Audio, settings: ConversionSettings, live: LiveSettings) -> list[Join]:
    """(leaving, entering) of every join; the entering one reaches on as far as SOLA would search."""
    _, engines, _ = vc._engines(settings)
    source, blocks = LiveSource(), WatchedBlocks(engines, settings, live.grid(live.block))
    for _ in source.push(sound):
        pass
    while source.ready(blocks.limit):
        blocks.render(source.window)
    return getattr(blocks, "seen", [])


def sola_figures(seen: list[Join]) -> dict[str, float]:
    """How like both sides of the joins are, where SOLA would place them, and what that did to the second difference."""
    likeness, shifts, gains = [], [], []
    for leaving, entering in seen:
        size = len(leaving)
        if leaving.std() < 1e-3:  # in silence there is nothing to align
            continue
        windows = np.lib.stride_tricks.sliding_window_view(entering, size)
        scores = windows @ leaving / np.sqrt((windows**2).sum(axis=1) * (leaving**2).sum() + 1e-12)
        best = int(np.argmax(scores))
        plain, moved = (
            np.square(np.diff(crossfade(leaving, np.ascontiguousarray(windows[at])), 2)).sum() for at in (0, best)
        )
        likeness.append(float(scores[0]))
        shifts.append(best)
        gains.append(10 * np.log10((moved + 1e-12) / (plain + 1e-12)))
    if not shifts:
        return {"alike": 1.0, "sola_stays": 1.0, "sola_db": 0.0}
    return {
        "alike": float(np.median(likeness)), "sola_stays": float(np.mean(np.array(shifts) <= 1)),
        "sola_db": float(np.mean(gains)),
    }  # fmt: skip


def show(marks: dict[str, float], rows: list[dict[str, Any]]) -> None:
    """A table for people."""
    sys.stdout.write(
        f"marks: another seed {marks['other_seed_db']:.2f} dB, "
        f"one content frame late {marks['one_frame_late_db']:.2f} dB\n"
        "| block | context | lookahead | delay | RTF | log-mel | worst join | f0 | voicing "
        "| sides alike | SOLA stays | SOLA changes 2nd difference |\n" + "|---" * 12 + "|\n"
    )
    for item in rows:
        sys.stdout.write(
            f"| {item['block_ms']:.0f} ms | {item['context_s']:g} s | {item['lookahead_ms']:.0f} ms "
            f"| {item['delay_ms']:.0f} ms | {item['rtf']:.2f} | {item['log_mel_db']:.2f} dB "
            f"| {item['join_worst_db']:.1f} dB (whole: {item['join_whole_db']:.1f}) "
            f"| {item['f0_median_cents']:.1f} cents "
            f"| {item['voicing_agrees']:.1%} | {item['alike']:.3f} | {item['sola_stays']:.0%} "
            f"| {item['sola_db']:+.1f} dB |\n"
        )


if __name__ == "__main__":
    sys.exit(main())
