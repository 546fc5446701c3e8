"""Covers without waiting: a voice whose networks are tiny, songs of a second, a run in a process that may be killed.

    python -m tests.quick_cover STORE SEED KILLS        kills that many runs at random moments; prints JSON
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from rvc_spark.audio import Audio
from rvc_spark.conversion import Conversion, read_source
from rvc_spark.covers.artefacts import ArtefactStore
from rvc_spark.covers.cover_settings import CoverSettings
from rvc_spark.covers.song_cover import Cover, CoverInput, CoverMaker
from rvc_spark.infer.pipeline import Rendering, drain
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.rvc_modules import VC
from tests.small_engines import small_engines

RATE = 44_100


def sung(seconds: float = 1.5, seed: int = 0) -> Audio:
    """Something like a voice, stereo."""
    time_axis = np.arange(round(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * 150 * k * time_axis) / k for k in range(1, 8))
    noise = np.random.default_rng(seed).standard_normal(len(time_axis))
    samples = (0.1 * tone + 0.003 * noise) * (np.sin(2 * np.pi * 1.1 * time_axis) > -0.7)
    return Audio(np.stack([samples, 0.8 * samples]).astype(np.float32), RATE)


def band(seconds: float = 1.5, seed: int = 1) -> Audio:
    """Something like an accompaniment, stereo."""
    noise = np.random.default_rng(seed).standard_normal((2, round(seconds * RATE)))
    return Audio((0.05 * noise).astype(np.float32), RATE)


def summed(*sounds: Audio) -> Audio:
    return Audio(np.sum([sound.samples for sound in sounds], axis=0, dtype=np.float32), RATE)


class QuickVoice:
    """Stands for a CoverVoice and its VC; counts what it sings."""

    def __init__(self, name: str = "quick", pause: float = 0.0) -> None:
        self.name, self.licence, self.range, self.path = name, "", None, Path(name)
        self.index = Choice("", "for tests")
        self.sung: list[ConversionSettings] = []
        self._engines, self._pause = small_engines(version="v1", rate=32_000), pause

    def identity(self, settings: ConversionSettings) -> dict[str, str]:
        return {"voice": self.name, "pitch": "steady"}

    def vc(self) -> QuickVoice:
        return self

    def convert_steps(self, source, settings):
        self.sung.append(settings)
        recording = read_source(source)
        rendered = yield from self._slowly(Rendering(recording, self._engines, settings).steps())
        frames, length = len(rendered.store), recording.frames / recording.rate
        engines = {"device": Choice("cpu", "for tests"), "key": Choice("0", "as set")}
        return Conversion(
            self.name, settings, engines, None, None, rendered.store.rate, frames, length, 0.1, None, rendered.store
        )

    def _slowly(self, steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            time.sleep(self._pause)
            yield step


def maker_in(folder: Path, **config) -> CoverMaker:
    """A maker whose stages and assets lie below a folder."""
    return CoverMaker(VC(RVCConfig(root=folder, device="cpu", **config)), ArtefactStore(folder / "covers"))


def made(maker: CoverMaker, given: CoverInput, voice: QuickVoice, output: Path | None = None, **settings) -> Cover:
    steps = maker.steps(given, CoverSettings().changed(**settings), output=output, voice=voice)
    return drain(steps)


def _one_run(folder: Path, seed: int) -> bytes:
    given = CoverInput(vocals=sung(1.0, seed), accompaniment=band(1.0))
    made(maker_in(folder), given, QuickVoice(pause=0.01), folder / "cover.wav", accompaniment_key=2.0, key=2.0)
    return (folder / "cover.wav").read_bytes()


def main(folder: Path, seed: int, kills: int) -> None:
    """Fork runs and kill each after a random part of the time a whole one takes. A fork costs no imports.

    A song whose run came through although it was to be killed is compared with one made undisturbed; the next begins.
    """
    import torch

    torch.set_num_threads(1)
    beside = folder / "whole"
    beside.mkdir()
    _one_run(beside, seed + 1000)  # everything is imported now
    began = time.monotonic()
    wanted = _one_run(beside, seed)
    whole = time.monotonic() - began
    chance, killed, songs = random.Random(seed), 0, []
    while killed < kills:
        child = os.fork()
        if child == 0:
            _one_run(folder, seed)
            os._exit(0)
        time.sleep(chance.uniform(0.0, whole))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if (folder / "cover.wav").exists() or killed == kills:
            songs.append(_one_run(folder, seed) == wanted)
            seed += 1
            wanted = _one_run(beside, seed)
            (folder / "cover.wav").unlink()
    left = [path.name for path in (folder / "covers").iterdir() if path.name.endswith(".draft")]
    print(json.dumps({"killed": killed, "same": songs, "left": left, "seconds": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
