"""What works on this machine and why not, one finding per part. Changes nothing; the only socket it opens is to the
configured Triton server, to see whether one answers.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rvc_spark.errors import MissingPackageError, RvcSparkError, TritonBootError
from rvc_spark.rvc_config import RVCConfig

MIN_FREE_BYTES = 1 << 30  # room for a download or an hour of scratch
MIN_TORCH = (2, 6)  # before, weights_only could be bypassed (CVE-2025-32434)
FORMATS = ("wav", "flac", "ogg", "mp3", "m4a")


@dataclass(frozen=True)
class Finding:
    """One part of the machine: working, missing without harm, or broken."""

    what: str
    state: Literal["ok", "optional", "broken"]
    detail: str

    def report(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")


def _torch() -> Finding:
    import torch

    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if numbers < MIN_TORCH:
        return Finding("torch", "broken", f"{torch.__version__} is older than 2.6: weights could run code; update it")
    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _device() -> Finding:
    config = RVCConfig()
    return Finding("device", "ok", f"{config.device_choice()}, {config.precision_choice()}")


def _torchaudio() -> Finding:
    if importlib.util.find_spec("torchaudio") is None:
        return Finding("torchaudio", "optional", "not installed; only crepe and fcpe need it")
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(
            "torchaudio", "broken", f"cannot be imported: {error}; run python3 tools/setup_environment.py --repair"
        )
    return Finding("torchaudio", "ok", torchaudio.__version__)


def _folders() -> Finding:
    config = RVCConfig()
    root = config.root
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    state: Literal["ok", "broken"] = "ok" if free >= MIN_FREE_BYTES and os.access(root, os.W_OK) else "broken"
    return Finding("root folder", state, f"{config.root}: {free / 1e9:.1f} GB free")


def _codecs() -> Finding:
    from io import BytesIO

    from rvc_spark.audio import Audio, EncodeOptions, encode_audio, read_audio

    tone = Audio(np.sin(np.arange(16_000) * 0.1).astype(np.float32) * 0.1, 16_000)
    for name in FORMATS:
        read_audio(BytesIO(encode_audio(tone, EncodeOptions(format=name, watermark="none"))))
    return Finding("sound files", "ok", f"{', '.join(FORMATS)} written and read back")


def _watermark() -> Finding:
    from rvc_spark.perth_weights import load_perth

    try:
        load_perth()
    except MissingPackageError as error:
        return Finding("watermark: perth", "optional", str(error))
    words = f"resemble-perth {_installed('resemble-perth')} marks noise, and finds the mark"
    return Finding("watermark: perth", "ok", f"{words}; written now: {RVCConfig().watermark}")


def _speech() -> Finding:
    from rvc_spark.tts.espeak import EspeakEngine

    blocks = list(EspeakEngine().stream(None, "one"))
    seconds = sum(block.seconds for block in blocks)
    return Finding("embedded speech", "ok", f"espeak-ng said one word in {seconds:.2f} s of sound")


def _engines() -> Iterator[Finding]:
    from rvc_spark.tts.choose import Speakers

    speakers = Speakers(RVCConfig())
    try:
        for name, state in speakers.survey().items():
            yield Finding(f"speech: {name}", "ok" if state.value == "ready" else "optional", state.reason)
        chosen = speakers.choose("auto")
        yield Finding("speech: auto", "ok", f"{chosen.value} would speak: {chosen.reason}")
    finally:
        speakers.close()


def _triton_client() -> Finding:
    if importlib.util.find_spec("tritonclient") is None:
        return Finding("Triton client", "optional", "tritonclient is not installed; pip install 'rvc-spark[triton]'")
    return Finding("Triton client", "ok", f"tritonclient {_installed('tritonclient')}, grpcio {_installed('grpcio')}")


def _triton_server() -> Iterator[Finding]:
    from rvc_spark.tts.triton_containers import find_engine
    from rvc_spark.tts.triton_platform import check_platform, choose_interpreter

    try:
        check_platform()
        found = f"can be started here with {choose_interpreter().executable}: rvc-spark triton up"
    except TritonBootError as error:
        yield Finding("Triton server, embedded", "optional", str(error))
    else:
        yield Finding("Triton server, embedded", "ok", found)
    try:
        engine = find_engine()
    except TritonBootError as error:
        yield Finding("Triton server, Docker", "optional", str(error))
    else:
        yield Finding("Triton server, Docker", "ok", f"{engine.name}: rvc-spark triton up --kind docker")


def _demo_voice() -> Finding:
    from rvc_spark.rvc_modules import VC

    voice = VC().load("demo")
    index = Path(voice.index_choice.value).name or "none"
    return Finding("demo voice", "ok", f"{voice.info.version}, {voice.info.sample_rate} Hz, index {index}")


def _encoder() -> Finding:
    path = RVCConfig().hubert_path
    if not path.exists():
        return Finding(
            "content encoder", "optional", f"not at {path}; community voices need it: rvc-spark assets get infer"
        )
    return Finding("content encoder", "ok", str(path))


def _pitch() -> Iterator[Finding]:
    from rvc_spark.infer.pitch import PITCH_METHODS, load_tracker

    time = np.arange(8_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 220 * n * time) / n for n in range(1, 6)) / 5  # harvest needs overtones
    for method in PITCH_METHODS:
        try:
            tracker = load_tracker(method, rmvpe_path=RVCConfig().rmvpe_path)
            median = float(np.median(tracker.track(tone)))
        except RvcSparkError as error:
            yield Finding(f"pitch: {method}", "optional", str(error))
        else:
            state: Literal["ok", "broken"] = "ok" if abs(median - 220) < 5 else "broken"
            yield Finding(f"pitch: {method}", state, f"hears a 220 Hz tone as {median:.1f} Hz; {tracker.reason}")


def _covers() -> Iterator[Finding]:
    from rvc_spark.covers.cover_engines import CoverEngines

    engines = CoverEngines(RVCConfig(), "cpu")
    if importlib.util.find_spec("demucs") is None:
        yield Finding("song separation", "optional", "demucs is not installed; pip install 'rvc-spark[covers]'")
    else:
        try:
            folder, name, _ = engines.separator_files("good")
            yield Finding("song separation", "ok", f"{name} in {folder}, demucs {_installed('demucs')}")
        except RvcSparkError as error:
            yield Finding("song separation", "optional", str(error))
    for what, use in (("lead and backing", "lead"), ("de-reverb", "dry")):
        path, why = engines.mdx_file(use)
        yield Finding(what, "optional" if path is None else "ok", why.reason if path is None else str(path))


def _notebooks() -> Finding:
    missing = [name for name in ("ipykernel", "papermill", "ipywidgets") if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("notebooks", "optional", f"{', '.join(missing)} not installed; pip install 'rvc-spark[lab]'")
    return Finding("notebooks", "ok", f"ipywidgets {_installed('ipywidgets')}, papermill {_installed('papermill')}")


CHECKS: tuple[tuple[str, Callable[[], Finding | Iterator[Finding]]], ...] = (
    ("python", _python),
    ("torch", _torch),
    ("device", _device),
    ("torchaudio", _torchaudio),
    ("root folder", _folders),
    ("sound files", _codecs),
    ("watermark: perth", _watermark),
    ("embedded speech", _speech),
    ("speech engines", _engines),
    ("Triton client", _triton_client),
    ("Triton server", _triton_server),
    ("demo voice", _demo_voice),
    ("content encoder", _encoder),
    ("pitch", _pitch),
    ("covers", _covers),
    ("notebooks", _notebooks),
)


def examine() -> list[Finding]:
    """Look at everything; a check that fails is itself a finding."""
    findings: list[Finding] = []
    for what, check in CHECKS:
        try:
            found = check()
            findings.extend([found] if isinstance(found, Finding) else found)
        except (RvcSparkError, ImportError, OSError) as error:
            findings.append(Finding(what, "broken", str(error)))
    findings.append(Finding("rvc-spark", "ok", f"{_installed('rvc-spark') or 'not installed'}, {sys.prefix}"))
    return findings
