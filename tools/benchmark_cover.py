"""A cover from given stems beside the conversion alone, its memory above the loaded models, and what a gain redoes.

    python tools/benchmark.py cover [--minutes 4] [--voice demo] [VOCALS ACCOMPANIMENT]

Without stems those that come with the project are taken; they are repeated until they are long enough. The networks are
warm; the stages are kept in a folder of their own that goes away in the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvc_spark.audio import Audio, EncodeOptions, open_writer, read_audio
from rvc_spark.covers.artefacts import ArtefactStore
from rvc_spark.covers.cover_run import rows_as_words
from rvc_spark.covers.cover_settings import CoverSettings
from rvc_spark.covers.song_cover import CoverInput, CoverMaker
from rvc_spark.infer.pipeline import drain
from rvc_spark.rvc_modules import VC

MIB = 1 << 20
SAMPLE_SECONDS = 0.02  # between two looks at the memory
WARM_SECONDS = 3.0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stems", nargs="*", type=Path, metavar="VOCALS ACCOMPANIMENT")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--voice", default="demo")
    parser.add_argument("--f0-method", default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args(arguments)


def resident() -> int:
    """Bytes of memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and of processor time (all threads), and the most memory held meanwhile, in bytes."""

    seconds: float
    processor: float
    most: int


def watched(work: Callable[[], Any]) -> tuple[Any, Cost]:
    """What `work` returns and what it cost. On a machine with other work only the processor time means anything."""
    most, over = [resident()], threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    began, used = time.perf_counter(), time.process_time()
    try:
        result = work()
    finally:
        seconds, processor = time.perf_counter() - began, time.process_time() - used
        over.set()
        watcher.join()
    return result, Cost(seconds, processor, most[0])


def repeated(sound: Audio, seconds: float, path: Path) -> Path:
    """A file of a sound again and again, `seconds` long."""
    samples = np.atleast_2d(sound.samples)
    left = round(seconds * sound.rate)
    with open_writer(path, sound.rate, len(samples), EncodeOptions(sample_format="pcm16")) as writer:
        while left:
            block = samples[:, : min(left, sound.frames)]
            writer.write(block)
            left -= block.shape[1]
    return path


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    vc = VC()
    vc.load(options.voice)
    shipped = vc.config.demo_dir / "song"
    stems = options.stems or [shipped / "vocals.ogg", shipped / "accompaniment.ogg"]
    settings = CoverSettings().changed(f0_method=options.f0_method)
    with tempfile.TemporaryDirectory(prefix="cover_") as folder:
        place = Path(folder)
        given = CoverInput(None, *(repeated(read_audio(path), 60 * options.minutes, place / f"{number}.flac")
                                   for number, path in enumerate(stems)))  # fmt: skip
        maker = CoverMaker(vc, ArtefactStore(place / "stages"))
        short = CoverSettings().changed(f0_method=options.f0_method, preview=0.0, preview_seconds=WARM_SECONDS)
        drain(maker.steps(given, short))
        loaded = resident()
        plain = settings.conversion.changed(key=0.0)
        alone, base = watched(lambda: vc.convert(given.vocals, plain))
        target = place / "cover.flac"
        cover, whole = watched(lambda: drain(maker.steps(given, settings, output=target)))
        again, redo = watched(lambda: drain(maker.steps(given, settings.changed(voice_gain=-3.0), output=target)))
    made = [row.name for row in again.stages if row.state == "made"]
    figures = {
        "minutes": options.minutes, "conversion_alone": vars(base), "cover": vars(whole), "gain_only": vars(redo),
        "times_the_conversion": round(whole.seconds / base.seconds, 2), "gain_only_made": made,
        "times_by_processor": round(whole.processor / base.processor, 2), "loaded": loaded,
        "stages": {row.name: round(row.seconds, 2) for row in cover.stages if row.state == "made"},
        "lufs": round(cover.mix["lufs"], 2), "true_peak_dbtp": round(cover.mix["true_peak_dbtp"], 2),
    }  # fmt: skip
    if options.json:
        print(json.dumps(figures))
        return 0
    print(f"{options.minutes:g} min, seconds by the clock (of processor time)")
    for name, cost in (("conversion alone", base), ("cover", whole), ("only a gain changed", redo)):
        above = (cost.most - loaded) // MIB
        print(f"{name:<20} {cost.seconds:7.1f} ({cost.processor:.1f}), at most {above} MiB above the loaded models")
    print(f"cover / conversion   {whole.seconds / base.seconds:7.2f} ({whole.processor / base.processor:.2f})")
    print("\n".join(rows_as_words(cover.stages)))
    print(f"made again for the gain: {', '.join(made)}; {loaded // MIB} MiB with the models loaded")
    print(f"{cover.mix['lufs']:.2f} LUFS, true peak {cover.mix['true_peak_dbtp']:.2f} dBTP; {alone.seconds:.1f} s sung")
    return 0


if __name__ == "__main__":
    sys.exit(main())
