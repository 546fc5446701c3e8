"""This package, run by a process of its own for a measurement: `python -m rvc_spark.benchmark_worker`.

One JSON request per line on standard input, one answer per line after MARK on standard output; see
`benchmark_process`. Only what a request needs is imported, so that importing can be measured too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rvc_spark.benchmark_process import MARK
from rvc_spark.errors import RvcSparkError

PIECE_SECONDS = 0.02  # as a microphone would give sound
SETTINGS = ("f0_method", "index_rate", "protect", "rms_mix_rate", "seed", "profile")


class Worker:
    """One VC with one voice. Each method answers the request of its name."""

    def __init__(self) -> None:
        self._vc: Any = None
        self._index: Path | None = None

    def load(self, job: dict[str, Any]) -> dict[str, Any]:
        """Import, configure and load: seconds of each, and what was chosen.

        job: `threads`, `config` for RVCConfig, `voice` and `index` paths.
        """
        began = time.perf_counter()
        import torch

        from rvc_spark.rvc_config import RVCConfig
        from rvc_spark.rvc_modules import VC

        imported = time.perf_counter() - began
        torch.set_num_threads(job["threads"])
        began = time.perf_counter()
        self._vc = VC(RVCConfig(**job["config"]))
        self._index = Path(job["index"]) if job.get("index") else None
        self._vc.load(Path(job["voice"]), index=self._index)
        loaded = time.perf_counter() - began
        return {
            "import_seconds": imported, "load_seconds": loaded, "device": str(self._vc.device),
            "precision": self._vc.precision.value, "precision_reason": self._vc.precision.reason,
            "parameters": self._vc.voice.info.parameters,
        }  # fmt: skip

    def convert(self, job: dict[str, Any]) -> dict[str, Any]:
        """The whole of a sound, as anybody would convert it; `keep` and `keep_f0` are files for samples and f0."""
        from rvc_spark.benchmark_machine import peak_bytes

        sound, settings = self._sound(job), self._settings(job)
        self._forget_peak()
        began, worked = time.perf_counter(), time.process_time()
        conversion = self._vc.convert(sound, settings)
        self._wait()
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        self._save(job, conversion.audio.samples)
        self._save({"keep": job.get("keep_f0")}, conversion.result_f0)
        return {
            "seconds": seconds, "cpu_seconds": worked, "samples": conversion.frames, "rate": conversion.rate,
            "peak_bytes": peak_bytes(), "device_peak_bytes": self._device_peak(),
            "engines": {name: str(choice) for name, choice in conversion.engines.items()},
        }  # fmt: skip

    def silent(self, job: dict[str, Any]) -> dict[str, Any]:
        """The same with zeros wherever noise is drawn, for comparing programs whose noise differs."""
        from rvc_spark.infer.noise_field import NoNoise

        rendered = self._rendered(self._vc.engines(self._settings(job)), job, NoNoise())
        self._save(job, rendered.array())
        return {"samples": len(rendered), "rate": rendered.rate}

    def stages(self, job: dict[str, Any]) -> dict[str, Any]:
        """Seconds of each stage of one conversion."""
        from rvc_spark.benchmark_stages import StageClock, watched

        clock = StageClock(self._vc.device.value)
        began = clock.now()
        with watched(self._vc.engines(self._settings(job)), clock) as engines:
            self._rendered(engines, job, None)
        total = clock.now() - began
        return {"seconds": total, "stages": clock.split(total)}

    def roofline(self, job: dict[str, Any]) -> dict[str, Any]:
        """Operations of the vocoder for a second of sound, and how many a second a matrix product does here."""
        from rvc_spark.benchmark_roofline import decoder_flops, peak_flops
        from rvc_spark.rvc_modules import DTYPES

        engines = self._vc.engines(self._settings(job))
        peak = peak_flops(self._vc.device.value, DTYPES[self._vc.precision.value])
        return {"decoder_flops": decoder_flops(engines.synthesizer.net), "peak_flops": peak}

    def many(self, job: dict[str, Any]) -> dict[str, Any]:
        """Seconds for `count` clips one after the other, and for all of them at once, the second round of each; and the
        stages of another round at once."""
        import numpy as np

        from rvc_spark.benchmark_stages import StageClock, watched
        from rvc_spark.conversion import ConversionJob
        from rvc_spark.conversion_many import converted_many

        sound, settings = self._sound(job), self._settings(job)
        clips = [type(sound)(np.roll(sound.samples, 1_000 * number), sound.rate) for number in range(job["count"])]
        engines, about = self._vc.engines(settings), ConversionJob("", settings, {}, None)
        taken = {}
        for name, together in (("one_by_one_seconds", False), ("together_seconds", True)):
            for _ in range(2):
                began = time.perf_counter()
                done = list(converted_many(clips, engines, about, together=together))
                self._wait()
                taken[name] = time.perf_counter() - began
        clock = StageClock(self._vc.device.value)
        began = clock.now()
        with watched(engines, clock) as timed:
            done = list(converted_many(clips, timed, about, together=True))
        stages = clock.split(clock.now() - began)
        return {**taken, "clips": len(done), "stages": stages, "device_peak_bytes": self._device_peak()}

    def live(self, job: dict[str, Any]) -> dict[str, Any]:
        """Seconds from the arrival of a block's last sample until it leaves, for every block of a stream."""
        from rvc_spark.infer.live_settings import LiveSettings

        sound = self._sound(job)
        arrived = [0.0]

        def pieces() -> Iterator[Any]:
            step = round(PIECE_SECONDS * sound.rate)
            for at in range(0, sound.frames, step):
                arrived[0] = time.perf_counter()
                yield type(sound)(sound.samples[at : at + step], sound.rate)

        took: list[float] = []
        with self._vc.stream(pieces(), self._settings(job), LiveSettings(block=job["block"])) as stream:
            for _ in stream:
                self._wait()
                took.append(time.perf_counter() - arrived[0])
                arrived[0] = time.perf_counter()  # a block that leaves with another one waits for that one only
            delay = stream.delay
        return {"seconds": took, "delay_seconds": delay}

    def switch(self, job: dict[str, Any]) -> dict[str, Any]:
        """Seconds of loading two voices by turns: the first time from disk, then again and again."""
        voices = [Path(path) for path in job["voices"]]
        taken: list[float] = []
        for turn in range(2 * job["rounds"]):
            began = time.perf_counter()
            self._vc.load(voices[(turn + 1) % 2], index=self._index)
            self._wait()
            taken.append(time.perf_counter() - began)
        return {"first_seconds": taken[0], "warm_seconds": taken[1:]}

    def _rendered(self, engines: Any, job: dict[str, Any], noise: Any) -> Any:
        from rvc_spark.conversion import read_source
        from rvc_spark.infer.pipeline import Rendering, drain

        source = read_source(self._sound(job))
        try:
            return drain(Rendering(source, engines, self._settings(job), None, noise).steps()).store
        finally:
            source.store.close()

    def _sound(self, job: dict[str, Any]) -> Any:
        import numpy as np

        from rvc_spark.audio import Audio

        return Audio(np.load(job["sound"]), 16_000)

    def _settings(self, job: dict[str, Any]) -> Any:
        from rvc_spark.infer.settings import ConversionSettings

        return ConversionSettings(**{name: job[name] for name in SETTINGS if name in job})

    def _save(self, job: dict[str, Any], samples: Any) -> None:
        import numpy as np

        if job.get("keep"):
            np.save(job["keep"], samples)

    def _wait(self) -> None:
        if self._vc.device.value.startswith("cuda"):
            import torch

            torch.cuda.synchronize()

    def _forget_peak(self) -> None:
        if self._vc.device.value.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats()

    def _device_peak(self) -> int | None:
        if not self._vc.device.value.startswith("cuda"):
            return None
        import torch

        return torch.cuda.max_memory_allocated()


REQUESTS = ("load", "convert", "silent", "stages", "roofline", "many", "live", "switch")


def main() -> None:
    """Answer requests until the input ends."""
    worker = Worker()
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] not in REQUESTS:
            raise ValueError(f"unknown request {job['do']!r}")
        try:
            reply = getattr(worker, job["do"])(job)
        except RvcSparkError as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(MARK + json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
