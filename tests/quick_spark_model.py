"""A stand-in for the model `spark_tts`: its exact wire, no network, a waveform that text and seed determine.

This very file is the `model.py` of the repository `write_repository` writes, and the tests import it to know what must
come. The text steers it, by words such as `chunks=5`:

    chunks, samples   how many, and of how many samples each
    first, delay      milliseconds before the first chunk, and before each later one
    fail=N            an error after N chunks; `words` says which: text, speech, parameter, internal, raise
    tail=N            with overlap: N samples of the end once more, as a last chunk
    answer            dtype, rank, nan, name, two, half: one thing wrong with the answer
    die=N             the whole model process ends after N chunks
    stamp             each chunk begins with the clock (`stamp_of`) at which it was sent
    report            the answer is the counters, in the order of COUNTERS
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
import zlib
from pathlib import Path

import numpy as np

COUNTERS = ("started", "finished", "cancelled", "failed", "active", "sounds", "named", "unknown", "most_active")
STAMP_SAMPLES = 4
OVERLAP = 1600
_INPUTS = (("reference_wav", "FP32", -1), ("reference_wav_len", "INT32", 1), ("reference_text", "STRING", 1),
           ("target_text", "STRING", 1))  # fmt: skip


def told(text: str, name: str, default: float = 0.0) -> float:
    """The number behind `name=` in a text; 1 for the bare word."""
    found = re.search(rf"\b{name}(?:=([\d.]*\d))?", text)
    return default if found is None else float(found[1] or 1)


def chunk_sizes(text: str) -> list[int]:
    """Samples of each chunk a text makes, before any overlap."""
    return [int(told(text, "samples", 40.0 * len(text)))] * int(told(text, "chunks", 3))


def waveform(text: str, seed: int = 0) -> np.ndarray:
    """The whole sound of one request, float32 [T]: noise that differs everywhere, so that any shift shows."""
    key = zlib.crc32(text.encode()) ^ (seed & 0xFFFFFFFF)
    noise = np.random.Generator(np.random.PCG64(key)).standard_normal(sum(chunk_sizes(text)), dtype=np.float32)
    return (0.1 * noise).astype(np.float32)


def stamped(samples: np.ndarray) -> np.ndarray:
    """The samples with the clock in the first four, 16 bits each, which float32 holds exactly."""
    now = time.monotonic_ns()
    samples = samples.copy()
    samples[:STAMP_SAMPLES] = [(now >> shift) & 0xFFFF for shift in (48, 32, 16, 0)]
    return samples


def stamp_of(samples: np.ndarray) -> int:
    """The nanoseconds `stamped` wrote; the clock is one for all processes of a machine."""
    return sum(int(value) << shift for value, shift in zip(samples[:STAMP_SAMPLES], (48, 32, 16, 0), strict=True))


def write_repository(folder: Path) -> Path:
    """Models: spark_tts (ours), spark_public, spark_offline, and two that only look like it."""
    kinds = {
        "spark_tts": (True, True, "FP32", "target_text"), "spark_public": (False, True, "FP32", "target_text"),
        "spark_offline": (True, False, "FP32", "target_text"), "wrong_type": (True, True, "FP64", "target_text"),
        "wrong_inputs": (True, True, "FP32", "text"),
    }  # fmt: skip
    for name, kind in kinds.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(_config(name, *kind), encoding="utf-8")
        (folder / name / "1" / "model.py").write_bytes(Path(__file__).read_bytes())
    return folder


def _config(name: str, ours: bool, decoupled: bool, output: str, text: str) -> str:
    own = {"rvc_spark": "0.1.0"} if ours else {"audio_chunk_overlap_duration": "0.1"}
    if ours and decoupled:
        own["rvc_spark_cancel"] = "1"  # ends a request when another one names it
    rows = [f'name: "{name}"\nbackend: "python"\nmax_batch_size: 16\ndynamic_batching {{ }}']
    rows.append(f"model_transaction_policy {{ decoupled: {str(decoupled).lower()} }}")
    rows += [f'parameters [ {{ key: "{key}" value: {{ string_value: "{value}" }} }} ]' for key, value in own.items()]
    names = [(text if key == "target_text" else key, kind, size) for key, kind, size in _INPUTS]
    rows += [f'input [ {{ name: "{key}" data_type: TYPE_{kind} dims: [ {size} ] }} ]' for key, kind, size in names]
    rows.append(f'output [ {{ name: "waveform" data_type: TYPE_{output} dims: [ -1 ] }} ]')
    rows.append("instance_group [ { count: 1 kind: KIND_CPU } ]")
    return "\n".join(rows) + "\n"


class TritonPythonModel:
    """What the Python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the kind of model from its configuration."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError("numpy 2 corrupts data in the Python backend")
        config = json.loads(args["model_config"])
        self.decoupled = config["model_transaction_policy"]["decoupled"]
        self.ours = "rvc_spark" in config["parameters"]
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.voices: dict[str, None] = {}
        self.ended: dict[str, threading.Event] = {}  # by request id
        self.lock = threading.Lock()

    def execute(self, requests: list) -> list | None:
        """Decoupled: a thread for each request. Otherwise the answers."""
        if not self.decoupled:
            return [self.whole(request) for request in requests]
        for request in requests:
            sent = json.loads(request.parameters() or "{}")
            if "cancel" in sent:
                self.ended.setdefault(sent["cancel"], threading.Event()).set()
                send_final(request.get_response_sender())
                continue
            self.ended.setdefault(request.request_id(), threading.Event())
            threading.Thread(target=self.speak, args=(request, request.get_response_sender()), daemon=True).start()
        return None

    def count(self, name: str, change: int = 1) -> None:
        """Change a counter."""
        with self.lock:
            self.counters[name] += change
            self.counters["most_active"] = max(self.counters["most_active"], self.counters["active"])

    def whole(self, request):
        """The one answer of a model that does not stream."""
        import triton_python_backend_utils as pb_utils

        text, seed, problem = self.read(request)
        if problem:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(problem))
        time.sleep(told(text, "first") / 1000)
        return answer(waveform(text, seed), text)

    def read(self, request) -> tuple[str, int, str | None]:
        """Text, seed, and why not."""
        import triton_python_backend_utils as pb_utils

        def get(name):
            return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

        text = bytes(get("target_text").reshape(-1)[0]).decode()
        sent = json.loads(request.parameters() or "{}")
        seed, voice = int(sent.get("seed", 0)), sent.get("voice")
        wave = get("reference_wav")[0, : int(get("reference_wav_len")[0, 0])]
        if not self.ours:
            foreign = sorted(name for name in sent if not name.startswith("triton_"))
            return text, seed, f"INVALID_PARAMETER: {foreign}" if foreign else None
        if voice is None:
            return text, seed, None
        if len(wave) > 1:
            self.count("sounds")
            if hashlib.sha256(wave.astype("<f4").tobytes()).hexdigest() != voice:
                return text, seed, "INVALID_REFERENCE: it is not what its name says"
            self.voices[voice] = None
        elif voice in self.voices and not told(text, "forget"):
            self.count("named")
        else:
            self.count("unknown")
            return text, seed, "UNKNOWN_VOICE: send the recording"
        return text, seed, None

    def speak(self, request, sender) -> None:
        """All chunks of one request, in a thread of its own."""
        import triton_python_backend_utils as pb_utils

        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        text, seed, problem = self.read(request)
        if told(text, "report"):
            with self.lock:
                values = np.array([self.counters[name] for name in COUNTERS], np.float32)
            sender.send(answer(values, ""))
            sender.send(flags=final)
            return
        self.count("started")
        self.count("active")
        outcome = "failed"
        try:
            if problem:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(problem)))
            else:
                outcome = self.chunks(text, seed, sender, self.ended[request.request_id()])
        finally:
            self.count("active", -1)  # before the client can know, so that counters never lag behind it
            self.count(outcome)
            self.ended.pop(request.request_id(), None)
            sender.send(flags=final)

    def chunks(self, text: str, seed: int, sender, ended: threading.Event) -> str:
        """Send them; what became of the request, as a counter's name."""
        import triton_python_backend_utils as pb_utils

        whole, at = waveform(text, seed), 0
        overlap = 0 if self.ours else OVERLAP
        fail, die = (int(told(text, name, -1)) for name in ("fail", "die"))
        for number, size in enumerate([*chunk_sizes(text), 0]):
            if number == die:
                os._exit(1)
            if number == fail:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(words_of(text))))
                return "failed"
            if not size:
                break
            if not wait(told(text, "delay" if number else "first") / 1000, sender, ended):
                return "cancelled"
            start = max(0, at - overlap)
            at += size
            piece = whole[start:at]
            sender.send(answer(stamped(piece) if told(text, "stamp") else piece, text))
        if overlap and told(text, "tail"):
            sender.send(answer(whole[-int(told(text, "tail")) :], text))
        return "finished"

    def finalize(self) -> None:
        """Nothing to let go of."""


def wait(seconds: float, sender, ended: threading.Event) -> bool:
    """Sleep, unless the client leaves or asks for the end; whether it is still there."""
    end = time.monotonic() + seconds
    while not (ended.is_set() or sender.is_cancelled()):
        rest = end - time.monotonic()
        if rest <= 0:
            return True
        ended.wait(min(rest, 0.005))
    return False


def send_final(sender) -> None:
    """The end of a request without any sound."""
    import triton_python_backend_utils as pb_utils

    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def words_of(text: str) -> str:
    """The error a text asks for."""
    kinds = {
        "text": "INVALID_TEXT: no words", "speech": "NO_SPEECH: nothing came", "parameter": "INVALID_PARAMETER: x",
        "internal": "INTERNAL: a fault", "raise": "boom at /home/someone/secret/model.py\n\nAt:\n  /a/b.py(1): f",
    }  # fmt: skip
    found = re.search(r"words=(\w+)", text)
    return kinds[found[1] if found else "internal"]


def answer(samples: np.ndarray, text: str):
    """A response, with the one fault the text asks for."""
    import triton_python_backend_utils as pb_utils

    found = re.search(r"answer=(\w+)", text)
    kind = found[1] if found else ""
    values = samples[np.newaxis]
    if kind == "dtype":
        values = values.astype(np.float64)
    elif kind == "rank":
        values = values[np.newaxis]
    elif kind == "nan":
        values = np.where(np.arange(values.shape[1]) == 7, np.nan, values).astype(np.float32)
    elif kind == "two":
        values = np.concatenate([values, values])
    elif kind == "empty":
        values = values[:, :0]
    name = "sound" if kind == "name" else "waveform"
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, np.ascontiguousarray(values))])
