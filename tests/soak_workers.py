"""The long form of the proof in test_workers: hours of sentences through real threads, run by hand.

    python tests/soak_workers.py --minutes 30             # quick engines: millions of samples, deaths, cancellations
    python tests/soak_workers.py --minutes 30 --real      # the demo voice and the embedded engine

Ends with an error if a sample is misplaced, or if memory, threads or file handles grow. Prints a line per round.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import random
import threading
import time

import test_workers

from rvc_spark import rvc_init
from rvc_spark.processing.speak_options import WorkerOptions
from rvc_spark.processing.worker_manager import WorkerManager

GROWTH = 0.05  # of the resident memory after the first rounds
WARM_ROUNDS = 3


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def quick_round(number: int) -> int:
    """Two proofs; returns sentences."""
    for sessions in (1, 4):
        test_workers.run_proof(seed=1_000 + 2 * number + sessions, sentences=2_000, sessions=sessions, delay=0.002)
    return 4_000


class RealRounds:
    """A paragraph in two sessions, one of them cancelled at times; the same text must sound the same for ever."""

    def __init__(self) -> None:
        vc = rvc_init.init_rvc()
        vc.load("demo")
        self.manager = WorkerManager(vc, rvc_init.get_speakers(), WorkerOptions(rvc_workers=2, unload_after=20)).start()
        self.marks: dict[str, str] = {}
        self.rng = random.Random(1)

    def __call__(self, number: int) -> int:
        texts = [test_workers.TEXT, "Round and round it goes. Nobody knows where it stops, but it does."]
        streams = [self.manager.submit(text, engine="espeak", f0_method="pm") for text in texts]
        extra = self.manager.submit(test_workers.TEXT, engine="espeak", f0_method="pm")
        for _ in range(self.rng.randint(0, 3)):
            extra.get(60)
        extra.cancel()
        for text, stream in zip(texts, streams, strict=True):
            sound = test_workers.sound_of(test_workers.heard(stream))
            mark = hashlib.sha256(sound.tobytes()).hexdigest()
            assert self.marks.setdefault(text, mark) == mark, "the same text sounds different"
        if number % 10 == 9:
            time.sleep(25)  # long enough for the networks to be freed
            assert self.manager.status().models.value == "freed"
        return sum(len(stream.sentences) for stream in streams)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--real", action="store_true")
    arguments = parser.parse_args()
    threading.excepthook = lambda told: None  # workers die on purpose
    play = RealRounds() if arguments.real else quick_round
    end = time.monotonic() + 60 * arguments.minutes
    first: tuple[int, int, int] | None = None
    number = sentences = 0
    while time.monotonic() < end:
        sentences += play(number)
        number += 1
        gc.collect()
        now = (resident(), threading.active_count(), handles())
        told = f"{now[0] / 2**20:8.1f} MiB  {now[1]} threads  {now[2]} handles"
        print(f"{number:4d} {sentences:8,d} sentences  {told}", flush=True)
        if number == WARM_ROUNDS:
            first = now
        if first is not None:
            assert now[0] < first[0] * (1 + GROWTH), "memory grows"
            assert now[1:] <= first[1:], "threads or handles grow"
    if arguments.real:
        assert play.manager.stop(5)
    print("done")


if __name__ == "__main__":
    main()
