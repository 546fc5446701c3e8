"""A sixty-minute file may not need more than 300 MB above a five-minute one."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from rvc_spark.audio import EncodeOptions, open_writer

LIMIT_MB = 300
RATE = 8_000  # Hz; the cheapest to decode, while everything behind the door is as long as ever

# Runs in a process of its own, because the peak of a process never falls.
CONVERT = """
import json, resource, sys
import torch
from rvc_spark.infer.pipeline import Rendering, drain
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.conversion import read_source
from rvc_spark.audio import EncodeOptions, open_writer
from tests.small_engines import small_engines

torch.set_num_threads(1)
source, target = sys.argv[1:]
engines = small_engines(version="v1", rate=32_000)
store = drain(Rendering(read_source(source), engines, ConversionSettings(resample_rate=16_000)).steps()).store
with open_writer(target, store.rate, 1, EncodeOptions()) as writer:
    for block in store.blocks():
        writer.write(block[None])
print(json.dumps({"samples": len(store), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def convert(minutes: int, folder) -> dict[str, float]:
    source = folder / f"{minutes}.flac"
    time = np.arange(RATE * 60) / RATE
    minute = (0.3 * np.sin(2 * np.pi * 150 * time) * (np.sin(2 * np.pi * 0.5 * time) > 0)).astype(np.float32)
    with open_writer(source, RATE, 1, EncodeOptions(dither=False)) as writer:
        for _ in range(minutes):
            writer.write(minute[None])
    command = [sys.executable, "-c", CONVERT, str(source), str(folder / f"{minutes}.wav")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_an_hour_needs_no_more_memory_than_five_minutes(tmp_path):
    short, long = convert(5, tmp_path), convert(60, tmp_path)
    print(f"\npeak memory: {short['peak']:.0f} MB for 5 min, {long['peak']:.0f} MB for 60 min")
    assert short["samples"] == 5 * 60 * 16_000
    assert long["samples"] == 60 * 60 * 16_000
    assert long["peak"] - short["peak"] < LIMIT_MB, (short, long)
    assert (tmp_path / "60.wav").stat().st_size > 60 * 60 * 16_000 * 2
