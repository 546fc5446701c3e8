"""How soon a text is heard in another voice, and whether it is made as fast as it is played.

    python tools/benchmark.py stream [--engine espeak] [--voice demo] [--repeats 5] [--sessions 1 2 4] [--json]

Times count from `stream_speak` to the first chunk, in a process that has spoken before. A paragraph is pulled as fast
as it comes; a player that starts with its first chunk and 300 ms of lead would have run dry for `dry` seconds. Sessions
are paragraphs at the same time, each pulled by a thread of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from dataclasses import asdict, dataclass

from rvc_spark import load_model, stream_speak

SENTENCES = {
    "short": "Good morning.",
    "one sentence": "The quick brown fox jumps over the lazy dog, and nobody was surprised.",
    "long sentence": (
        "When the lights went out on the pier, the last of the visitors, who had come for the fireworks and stayed for "
        "the quiet, walked back along the water without a word, and only the gulls went on complaining."
    ),
}
PARAGRAPH = (
    "The harbour was empty that morning. A single boat lay at the pier, and nobody was on board. Far out, a ship moved "
    "slowly along the horizon, as if it had all the time in the world. The keeper of the lighthouse wrote the hour "
    "into his book. Then he made coffee, as he had done every day for thirty years. It was cold, and it would rain "
    "soon."
)
LEAD = 0.3  # seconds that a player holds before it begins


@dataclass(frozen=True)
class Heard:
    """One text: seconds to the first chunk and to the last, of sound, and without sound for a player."""

    first: float
    elapsed: float
    sound: float
    dry: float

    @property
    def real_time_factor(self) -> float:
        return self.elapsed / self.sound


def hear(text: str, engine: str) -> Heard:
    """Pull a text to its end."""
    began = time.perf_counter()
    stream = stream_speak(text, engine=engine)
    first = elapsed = sound = dry = 0.0
    for chunk in stream:
        elapsed = time.perf_counter() - began
        first = first or elapsed
        played = elapsed - first - LEAD - dry
        dry += max(0.0, played - sound)
        sound += chunk.seconds
    return Heard(first, elapsed, sound, dry)


def at_once(count: int, engine: str) -> list[Heard]:
    """The paragraph in `count` sessions at the same time."""
    found: list[Heard] = []
    threads = [threading.Thread(target=lambda: found.append(hear(PARAGRAPH, engine))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="espeak")
    parser.add_argument("--voice", default="demo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    load_model(asked.voice)
    hear(SENTENCES["one sentence"], asked.engine)
    rows: list[tuple[str, list[Heard]]] = [
        (name, [hear(text, asked.engine) for _ in range(asked.repeats)]) for name, text in SENTENCES.items()
    ]
    rows += [(f"paragraph, {count} at once", at_once(count, asked.engine)) for count in asked.sessions]
    if asked.json:
        print(json.dumps({name: [asdict(heard) for heard in found] for name, found in rows}, indent=1))
        return 0
    print(f"{'text':<24}{'first sound s':>15}{'worst':>8}{'sound s':>9}{'RTF':>7}{'dry s':>7}")
    for name, found in rows:
        first = [heard.first for heard in found]
        print(
            f"{name:<24}{statistics.median(first):>15.2f}{max(first):>8.2f}{found[0].sound:>9.2f}"
            f"{statistics.median(heard.real_time_factor for heard in found):>7.2f}"
            f"{max(heard.dry for heard in found):>7.2f}"
        )
    return 0
