"""The published RVC program, run by a process of its own: `rvc_spark.benchmark_against` copies this file and starts it.

It knows the checkout by PYTHONPATH alone, changes nothing in it, and needs nothing of this package, so that it also
runs in an environment that only the reference lives in. Two layouts are known: that of 2023 and 2024 (`infer.modules`)
and that of 2026 (`infer.vc`). What is of no use to inference but imported all the same (fairseq's loader) is replaced
in this process; the content encoder is then transformers' HuBERT with the same weights.

One JSON request per line on standard input, one answer per line after MARK on standard output.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import time
import types

MARK = "@@rvc-spark "
NEEDED = ("torch", "numpy", "scipy", "librosa", "faiss", "parselmouth", "transformers")
LAYOUTS = (
    {"name": "2026", "profile": "r26", "pipeline": "infer.vc.pipeline", "models": "infer.module.models"},
    {
        "name": "2024", "profile": "classic", "pipeline": "infer.modules.vc.pipeline",
        "models": "infer.lib.infer_pack.models",
    },
)  # fmt: skip
CUTTING = {True: (3, 10, 60, 65), False: (1, 6, 38, 41)}  # seconds: pad, query, centre, longest; by half precision


class Unusable(Exception):
    """The checkout or its environment cannot run; says what is missing."""


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def layout() -> dict:
    """Which of the known layouts is on the path. Raises Unusable naming what is missing."""
    missing = [name for name in NEEDED if not _found(name)]
    if missing:
        raise Unusable(f"this Python lacks {', '.join(missing)}, which the reference imports")
    for known in LAYOUTS:
        if _found(known["pipeline"]) and _found(known["models"]):
            return known
    looked = " or ".join(known["pipeline"] for known in LAYOUTS)
    raise Unusable(f"the folder is no checkout of the reference: it has no module {looked}")


def pretend(name: str, **members: object) -> None:
    """Put a module of that name in place, unless the real one is installed."""
    if not _found(name):
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module


class Hubert:
    """transformers' HuBERT with both faces the reference knows: fairseq's `extract_features`, and its own call."""

    def __init__(self, folder: str, device: str, half: bool) -> None:
        torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")

        class WithProjection(transformers.HubertModel):
            def __init__(self, config: object) -> None:
                super().__init__(config)
                self.final_proj = torch.nn.Linear(config.hidden_size, config.classifier_proj_size)

        model = WithProjection.from_pretrained(folder, local_files_only=True)
        self.model = (model.half() if half else model.float()).to(device).eval()
        self.final_proj = self.model.final_proj

    def extract_features(self, source: object, padding_mask: object, output_layer: int) -> tuple:
        """Output of one layer, as fairseq gives it: ([1, F, H], None). The last one is what the model returns."""
        layers = self.model.config.num_hidden_layers
        result = self.model(source, output_hidden_states=output_layer < layers)
        hidden = result.last_hidden_state if output_layer >= layers else result.hidden_states[output_layer]
        return hidden, None


class Reference:
    """The reference with one voice."""

    def __init__(self, job: dict) -> None:
        began = time.perf_counter()
        self.torch = importlib.import_module("torch")
        self.numpy = importlib.import_module("numpy")
        self.torch.set_num_threads(job["threads"])
        self.known = layout()
        for name in ("torchcrepe", "pyworld", "ffmpeg"):
            pretend(name)
        pretend("fairseq", checkpoint_utils=types.SimpleNamespace())
        device, half = job["device"], job["half"]
        models = importlib.import_module(self.known["models"])
        program = importlib.import_module(self.known["pipeline"])
        self.imported = time.perf_counter() - began
        self.index = job["index"]
        self._load_voice(models, job["voice"], device, half)
        pad, query, centre, longest = CUTTING[half]
        config = types.SimpleNamespace(
            x_pad=pad, x_query=query, x_center=centre, x_max=longest, is_half=half, device=device
        )
        self.pipeline = program.Pipeline(self.rate, config)
        hubert = Hubert(job["hubert"], device, half)
        self.hubert = hubert.model if self.known["name"] == "2026" else hubert
        self.half, self.device = half, device
        self.seconds = time.perf_counter() - began

    def _load_voice(self, models: types.ModuleType, path: str, device: str, half: bool) -> None:
        voice = self.torch.load(path, map_location="cpu", weights_only=True)
        self.version, self.has_f0 = voice.get("version", "v1"), int(voice.get("f0", 1))
        config = list(voice["config"])
        config[-3] = voice["weight"]["emb_g.weight"].shape[0]
        name = f"SynthesizerTrnMs{256 if self.version == 'v1' else 768}NSFsid{'' if self.has_f0 else '_nono'}"
        if not hasattr(models, name):
            raise Unusable(f"its {self.known['models']} has no class {name}")
        network = getattr(models, name)(*config, **({"is_half": half} if self.has_f0 else {}))
        del network.enc_q
        network.load_state_dict(voice["weight"], strict=False)
        self.network = (network.half() if half else network.float()).eval().to(device)
        self.rate = config[-1]

    def convert(self, job: dict) -> dict:
        """One call of its pipeline, as `vc_single` makes it, from samples at 16 kHz to int16."""
        sound = self.numpy.load(job["sound"]).astype(self.numpy.float32)
        self.torch.manual_seed(job["seed"])
        began, worked = time.perf_counter(), time.process_time()
        peak = self.numpy.abs(sound).max() / 0.95
        if peak > 1:
            sound = sound / peak
        offered = {
            "model": self.hubert, "net_g": self.network, "sid": 0, "audio": sound, "input_audio_path": job["sound"],
            "times": [0, 0, 0], "f0_up_key": 0, "f0_method": job["f0_method"], "file_index": self.index,
            "index_rate": job["index_rate"], "if_f0": self.has_f0, "filter_radius": 3, "tgt_sr": self.rate,
            "resample_sr": 0, "rms_mix_rate": job["rms_mix_rate"], "version": self.version, "protect": job["protect"],
        }  # fmt: skip
        parameters = inspect.signature(self.pipeline.pipeline).parameters
        unknown = [n for n, item in parameters.items() if n not in offered and item.default is inspect.Parameter.empty]
        if unknown:
            raise Unusable(f"its pipeline wants {', '.join(unknown)}, which is not known here")
        with Silence(self.torch, job.get("silent", False)):
            result = self.pipeline.pipeline(**{name: offered[name] for name in parameters if name in offered})
        if self.device.startswith("cuda"):
            self.torch.cuda.synchronize()
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        if job.get("keep"):
            self.numpy.save(job["keep"], result.astype(self.numpy.float32) / 32768)
        return {"seconds": seconds, "cpu_seconds": worked, "samples": len(result), "rate": self.rate}


class Silence:
    """While it is entered, torch draws zeros wherever a voice would draw noise."""

    NAMES = ("randn", "rand", "randn_like")

    def __init__(self, torch: types.ModuleType, wanted: bool) -> None:
        self.torch, self.wanted = torch, wanted
        self.kept = {name: getattr(torch, name) for name in self.NAMES}

    def __enter__(self) -> None:
        if self.wanted:
            self.torch.randn = self.torch.rand = self.torch.zeros
            self.torch.randn_like = self.torch.zeros_like

    def __exit__(self, *_: object) -> None:
        for name, function in self.kept.items():
            setattr(self.torch, name, function)


def answer(reply: dict) -> None:
    """One line to whoever asked."""
    sys.stdout.write(MARK + json.dumps(reply) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer requests until the input ends."""
    reference = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["do"] == "load":
                reference = Reference(job)
                answer({
                    "load_seconds": reference.seconds, "import_seconds": reference.imported,
                    "layout": reference.known["name"], "profile": reference.known["profile"],
                    "rate": reference.rate,
                    "versions": {"torch": reference.torch.__version__, "python": sys.version.split()[0]},
                })  # fmt: skip
            else:
                answer(reference.convert(job))
        except (Unusable, ImportError, OSError) as problem:
            answer({"error": f"{type(problem).__name__}: {problem}"})


if __name__ == "__main__":
    main()
