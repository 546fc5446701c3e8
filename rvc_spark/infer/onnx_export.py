"""A voice or a content encoder as an ONNX file, for programs without torch; and the proof that it is the same network.

    phone [1, T, D], pitch [1, T], pitchf [1, T], speaker [1], latent_noise [1, C, T], source_noise [1, T * spf, 1]
        -> audio [1, 1, T * spf]                      T is free; a voice without pitch has no pitch inputs
    samples [1, N] at 16 kHz -> features [1, F, D]    N is free, F = (N - 400) // 320 + 1

All noise is an input, so that both sides can be given the same and must give the same: every export is run in
onnxruntime at lengths it was not traced with, and a file that differs from torch is not kept. Weights are float32.
Refuses to know voices' names, folders and pipelines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvc_spark.errors import EncoderFileError, ExportError, MissingPackageError, OutputError
from rvc_spark.infer.content import ContentEncoder
from rvc_spark.infer.encoder_sizes import WINDOW
from rvc_spark.infer.layers import SLOPE, RelativeAttention
from rvc_spark.infer.source import Excitation, GivenNoise, frame_phase
from rvc_spark.infer.synthesizer import NOISE_SCALE, Synthesizer, VoiceNetwork
from rvc_spark.infer.voice_layout import WINDOW as REACH

OPSET = 18
TRACED_FRAMES, TRACED_SAMPLES = 50, 16_000
CHECKED_FRAMES, CHECKED_SAMPLES = (37, 80), (9_000, 24_320)  # other lengths than the traced one
TOLERANCE = 1e-3  # of the loudest sample or feature; the two runtimes sum in another order
MAX_ONE_FILE = 1_900 << 20  # bytes; protobuf holds 2 GiB


@dataclass(frozen=True)
class Exported:
    """What was written: `difference` is the greatest between both runtimes, as a share of the greatest value."""

    path: Path
    bytes: int
    inputs: dict[str, tuple[str | int, ...]]  # name -> shape
    outputs: dict[str, tuple[str | int, ...]]
    difference: float


def export_voice(synthesizer: Synthesizer, path: str | Path) -> Exported:
    """Write a voice's synthesizer.

    Args:
        synthesizer: on the CPU in float32.

    Raises MissingPackageError without onnx, onnxscript and onnxruntime; ExportError when torch cannot translate the
    network or the file gives other numbers; OutputError.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    if synthesizer.device.type != "cpu" or synthesizer.dtype != torch.float32:
        raise ExportError(f"the voice is on {synthesizer.device} as {synthesizer.dtype}", "Load it on cpu as fp32.")
    graph = VoiceGraph(synthesizer)
    frames = torch.export.Dim("frames", min=2, max=1 << 20)
    spf = synthesizer.net.samples_per_frame
    shapes: dict[str, Any] = {
        "phone": {1: frames}, "pitch": {1: frames}, "pitchf": {1: frames}, "speaker": None,
        "latent_noise": {2: frames}, "source_noise": {1: spf * frames},
    }  # fmt: skip
    names = graph.inputs
    metadata = {
        "sample_rate": synthesizer.net.sample_rate, "samples_per_frame": spf, "version": synthesizer.info.version,
        "speakers": synthesizer.net.speakers, "content_dim": synthesizer.net.content_dim,
        "f0": int(synthesizer.net.has_f0), "latent_channels": synthesizer.net.inter_channels,
    }  # fmt: skip
    checks = [voice_check(synthesizer, frames) for frames in CHECKED_FRAMES]
    traced, _ = voice_check(synthesizer, TRACED_FRAMES)
    given = {name: torch.from_numpy(traced[name]) for name in names}
    return _export(graph, given, {name: shapes[name] for name in names}, "audio", Path(path), metadata, checks)


def export_encoder(encoder: ContentEncoder, version: str, path: str | Path) -> Exported:
    """Write a content encoder's v1 or v2 features. Raises as `export_voice`, EncoderFileError without the version."""
    _need("onnx", "onnxscript", "onnxruntime")
    if encoder.dims.get(version) is None:
        raise EncoderFileError(f"{encoder.path.name} has no {version} features", "Export the other version.")
    samples = torch.export.Dim("samples", min=2 * WINDOW, max=1 << 26)
    checks = []
    for count in CHECKED_SAMPLES:
        sound = np.random.default_rng(count).standard_normal(count).astype(np.float32) * 0.1
        checks.append(({"samples": sound[None]}, encoder.features(sound, version).numpy()))
    given = {"samples": torch.randn(1, TRACED_SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.1}
    metadata = {"sample_rate": 16_000, "version": version, "content_dim": encoder.dims[version]}
    graph = EncoderGraph(encoder, version)
    return _export(graph, given, {"samples": {1: samples}}, "features", Path(path), metadata, checks)


# --- the networks, written so that they can be translated for any length ----------------------------------------------


class VoiceGraph(nn.Module):
    """`Synthesizer.infer` for one sequence without padding."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        super().__init__()
        self.network: VoiceNetwork = synthesizer.network
        self.has_f0 = synthesizer.net.has_f0
        pitch = ("pitch", "pitchf") if self.has_f0 else ()
        source = ("source_noise",) if self.has_f0 else ()
        self.inputs = ("phone", *pitch, "speaker", "latent_noise", *source)

    def forward(self, *given: Tensor) -> Tensor:
        """The inputs in the order of `inputs` -> audio [1, 1, N]."""
        named = dict(zip(self.inputs, given, strict=True))
        phone, network = named["phone"], self.network
        mask = torch.ones_like(phone[:, :, :1]).transpose(1, 2)
        speaker = network.emb_g(named["speaker"])[:, :, None]
        hidden = self._hidden(phone, named.get("pitch"), mask)
        mean, log_scale = network.enc_p.project(hidden, mask)
        z_p = mean + torch.exp(log_scale) * named["latent_noise"] * NOISE_SCALE
        z = network.flow(z_p, mask, speaker, reverse=True)
        return network.dec(z, self._excitation(named) if self.has_f0 else None, speaker)

    def _hidden(self, phone: Tensor, pitch: Tensor | None, mask: Tensor) -> Tensor:
        encoder = self.network.enc_p
        x = encoder.emb_phone(phone)
        if pitch is not None:
            x = x + encoder.emb_pitch(pitch)
        x = F.leaky_relu(x * encoder.scale, SLOPE).transpose(1, 2)
        parts = encoder.encoder
        layers = zip(parts.attn_layers, parts.norm_layers_1, parts.ffn_layers, parts.norm_layers_2, strict=True)
        for attention, norm_1, ffn, norm_2 in layers:
            x = norm_1(x + attend(attention, x))
            x = norm_2(x + ffn(x, mask))
        return x

    def _excitation(self, named: dict[str, Tensor]) -> Tensor:
        source, f0 = self.network.dec.m_source, named["pitchf"]
        start = frame_phase(f0, source.seconds_per_frame)[:, :-1]
        phase = f0.new_zeros(1, source.harmonics)
        return source(Excitation(f0, start, phase, named["source_noise"]))


def attend(layer: RelativeAttention, x: Tensor) -> Tensor:
    """`RelativeAttention` in one block: [1, C, T] -> [1, C, T], without loops and writes in place."""
    split = [
        conv(x).unflatten(1, (layer.heads, -1)).transpose(2, 3) for conv in (layer.conv_q, layer.conv_k, layer.conv_v)
    ]
    query, (key, value) = split[0] * split[0].shape[3] ** -0.5, split[1:]
    places = torch.arange(x.shape[2], device=x.device)
    distance = places[None, :] - places[:, None] + REACH  # [T, T]
    near = (distance >= 0) & (distance <= 2 * REACH)
    heads = (*query.shape[:2], -1, -1)
    by_distance = query @ layer.emb_rel_k[0].T  # [1, heads, T, 21]
    relative = by_distance.gather(3, distance.clamp(0, 2 * REACH).expand(heads))
    weights = (query @ key.transpose(2, 3) + relative * near).softmax(dim=3)
    column = places[:, None] + torch.arange(-REACH, REACH + 1, device=x.device)  # [T, 21]
    inside = (column >= 0) & (column < x.shape[2])
    band = weights.gather(3, column.clamp(min=0).minimum(places[-1:]).expand(heads)) * inside
    return layer.conv_o((weights @ value + band @ layer.emb_rel_v[0]).transpose(2, 3).flatten(1, 2))


class EncoderGraph(nn.Module):
    """`ContentEncoder.features` in one piece."""

    def __init__(self, encoder: ContentEncoder, version: str) -> None:
        super().__init__()
        sizes = encoder.sizes
        self.model, self.normalize = encoder._model, sizes.normalize
        self.layers = sizes.layers if version == "v2" else sizes.v1_layer
        self.projection = None if version == "v2" else encoder._projection

    def forward(self, samples: Tensor) -> Tensor:
        """[1, N] -> [1, F, D]."""
        wave = samples
        if self.normalize:
            centred = samples - samples.mean(dim=1, keepdim=True)
            wave = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-5)
        hidden = self.model(wave, self.layers)
        return hidden if self.projection is None else self.projection(hidden)


# --- writing and proving ---------------------------------------------------------------------------------------------


def voice_check(synthesizer: Synthesizer, frames: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random inputs of so many frames by name, and torch's audio for them."""
    random, net = np.random.default_rng(frames), synthesizer.net
    given: dict[str, np.ndarray] = {
        "phone": random.standard_normal((1, frames, net.content_dim)).astype(np.float32),
        "speaker": np.array([net.speakers - 1]),
        "latent_noise": random.standard_normal((1, net.inter_channels, frames)).astype(np.float32),
    }
    pitch = pitchf = source = None
    if net.has_f0:
        f0 = np.where(np.arange(frames) % 7 == 0, 0, random.uniform(80, 400, frames)).astype(np.float32)[None]
        noise = random.standard_normal((1, frames * net.samples_per_frame, net.harmonics)).astype(np.float32)
        given |= {"pitch": random.integers(1, 256, (1, frames)), "pitchf": f0, "source_noise": noise}
        pitch, pitchf, source = (torch.from_numpy(given[name]) for name in ("pitch", "pitchf", "source_noise"))
    noise_given = GivenNoise(torch.from_numpy(given["latent_noise"]), source)
    result = synthesizer.infer(
        torch.from_numpy(given["phone"]), torch.tensor([frames]), pitch, pitchf, net.speakers - 1, noise=noise_given
    )
    return given, result.audio.numpy()


def _need(*names: str) -> None:
    import importlib.util

    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"export needs {', '.join(missing)}", "pip install 'rvc-spark[export]'")


def _export(
    graph: nn.Module, given: dict[str, Tensor], shapes: dict[str, Any], output: str, path: Path,
    metadata: dict[str, Any], checks: list[tuple[dict[str, np.ndarray], np.ndarray]],
) -> Exported:  # fmt: skip
    if not path.parent.is_dir():
        raise OutputError(f"folder {path.parent} is not there", "Make it, or name another place.")
    dynamic = (tuple(shapes.values()),) if isinstance(graph, VoiceGraph) else tuple(shapes.values())
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.eval(), tuple(given.values()), dynamo=True, opset_version=OPSET, input_names=list(given),
                output_names=[output], dynamic_shapes=dynamic, verbose=False,
            )  # fmt: skip
        except (RuntimeError, torch.onnx.OnnxExporterError, NotImplementedError) as problem:
            raise ExportError(
                f"torch {torch.__version__} cannot translate the network: {str(problem).splitlines()[0][:300]}",
                "Update torch and onnxscript: pip install -U 'rvc-spark[export]'",
            ) from problem
    program.model.metadata_props.update({name: str(value) for name, value in metadata.items()})
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}.part.onnx")
    return kept_if_same(lambda: program.save(str(temporary), external_data=False), temporary, path, checks)


def kept_if_same(
    write: Callable[[], object], temporary: Path, path: Path, checks: list[tuple[dict[str, np.ndarray], np.ndarray]]
) -> Exported:
    """Write `temporary` and call it `path` if it gives what is expected. Raises ExportError, OutputError."""
    try:
        write()
        difference = max(compare(temporary, inputs, expected) for inputs, expected in checks)
        inputs, outputs = _signature(temporary)
        os.replace(temporary, path)
    except OSError as problem:
        raise OutputError(f"cannot write {path}: {problem}", "Check the folder and the free space.") from problem
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size, inputs, outputs, difference)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk about operators it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def open_session(path: str | Path, threads: int = 0) -> Any:
    """onnxruntime's session on the CPU; 0 threads are all cores. Raises MissingPackageError, ExportError."""
    _need("onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    refusals = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (*refusals, RuntimeError, ValueError) as problem:  # it has a class for each error, without a common one
        raise ExportError(
            f"onnxruntime refuses {Path(path).name}: {str(problem)[:300]}", "Export it again."
        ) from problem


def compare(path: str | Path, inputs: dict[str, np.ndarray], expected: np.ndarray) -> float:
    """The greatest difference to `expected`, as a share of its greatest value. Raises ExportError over TOLERANCE."""
    (found,) = open_session(path).run(None, inputs)
    if found.shape != expected.shape:
        raise ExportError(f"the exported network gives {found.shape}, torch {expected.shape}", "Report this, please.")
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-9))
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the exported network differs from torch by {difference:.2g} of the greatest value, over {TOLERANCE:g}",
            "Report this with the versions of torch, onnxscript and onnxruntime, please.",
        )
    return difference


def _signature(path: Path) -> tuple[dict[str, tuple[str | int, ...]], dict[str, tuple[str | int, ...]]]:
    session = open_session(path)
    both = (session.get_inputs(), session.get_outputs())
    return tuple({item.name: tuple(item.shape) for item in items} for items in both)
