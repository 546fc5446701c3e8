"""Community voices (`.pth`): read strictly, described truthfully, written back as they were.

A file's tensors decide what it is, never its labels: the content width makes it v1 or v2, two tensors make it a voice
with pitch, the rows of the speaker table are its speakers. Names and shapes are compared with what its config needs
before a number is read. Refuses to know how the network computes.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from rvc_spark.errors import OutputError, VoiceFileError
from rvc_spark.infer.foreign_models import foreign_kind
from rvc_spark.infer.voice_layout import (
    CONTENT_VERSIONS,
    HIFIGAN,
    MAX_SPEAKERS,
    MRF,
    LayoutProblem,
    NetConfig,
    Traits,
    parse_config,
    sample_rate_of,
)
from rvc_spark.infer.voice_weights import POSTERIOR, Shaped, WeightProblem, check_finite, resolve
from rvc_spark.safe_load import GIB, TensorFile, note_bytes, open_tensors, shown

MAX_VOICE_BYTES = 1 * GIB
MAX_TENSORS = 4_000
MAX_TEXT = 500  # characters of a label that are shown
_KNOWN_ITEMS = frozenset({"weight", "config", "info", "sr", "f0", "version"})
_USUAL_EMBEDDERS = frozenset({"", "contentvec", "contentvec_base", "hubert_base", "hubert_base768"})
_FILE = "Download the voice again, or ask its maker for a whole file."
Refuse = Callable[[str, str], NoReturn]


@dataclass(frozen=True)
class VoiceInfo:
    """What a voice is.

    Attributes:
        version: "v1" (256-wide content features) or "v2" (768).
        sample_rate: Hz of its output.
        has_f0: whether it takes a pitch.
        speakers: valid speaker ids are 0 to speakers - 1.
        content_dim: width of the content features.
        vocoder: "HiFi-GAN" or "MRF HiFi-GAN".
        samples_per_frame: output samples per 10 ms.
        parameters: numbers in the file, the posterior encoder left out.
        label: the file's own words about itself, such as "200epoch".
        embedder: content encoder it was trained with, if it says so.
        metadata: the file's other plain values, as other programs wrote them.
        warnings: what is odd but can be lived with.
    """

    version: str
    sample_rate: int
    has_f0: bool
    speakers: int
    content_dim: int
    vocoder: str
    samples_per_frame: int
    parameters: int
    label: str = ""
    embedder: str = ""
    metadata: dict[str, str | int | float | bool] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class VoiceCheckpoint:
    """A voice file in memory.

    Attributes:
        info: what it is.
        net: the network its config and tensors describe.
        weights: its tensors exactly as in the file (names, types, order), leftovers of the posterior encoder included.
        document: every other item of the file, as read.
    """

    info: VoiceInfo
    net: NetConfig
    weights: dict[str, torch.Tensor]
    document: dict[str, Any]


def read_checkpoint(path: str | Path) -> VoiceCheckpoint:
    """Read a voice and check every name, shape and number of it.

    Raises:
        VoiceFileError: not a voice (says what it is instead), damaged, tensors missing, unknown, of wrong shape or not
            finite, or a file that carries code, which is never run.
    """
    with open_tensors(path, max_bytes=MAX_VOICE_BYTES, what="voice", error=VoiceFileError) as file:
        _judge_outline(file)
        tree = file.load()
        info, net = _judge(tree, file.refuse)
        weights = tree.pop("weight")
        _finite(weights, file.refuse)
        return VoiceCheckpoint(info, net, weights, tree)


def inspect_checkpoint(path: str | Path) -> VoiceInfo:
    """What a voice is, from its outline alone: all names and shapes are checked, its numbers are not read.

    Raises:
        VoiceFileError: as `read_checkpoint`, apart from numbers that are damaged or not finite.
    """
    with open_tensors(path, max_bytes=MAX_VOICE_BYTES, what="voice", error=VoiceFileError) as file:
        return _judge_outline(file)


def make_checkpoint(weights: Mapping[str, torch.Tensor], document: Mapping[str, Any]) -> VoiceCheckpoint:
    """A voice from its parts, checked like one from a file. `document` needs at least `config`.

    Raises:
        VoiceFileError: as `read_checkpoint`.
    """
    info, net = _judge({"weight": dict(weights), **document}, _refuse_parts)
    _finite(weights, _refuse_parts)
    return VoiceCheckpoint(info, net, dict(weights), dict(document))


def write_checkpoint(path: str | Path, checkpoint: VoiceCheckpoint) -> Path:
    """Write a voice in the community layout; what `read_checkpoint` gave comes out with the same tensors and items.

    The file appears under its name only when it is whole. The same voice gives the same bytes.

    Raises:
        VoiceFileError: the parts do not make a voice.
        OutputError: the folder does not exist or cannot be written.
    """
    make_checkpoint(checkpoint.weights, checkpoint.document)
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}.part")
    with contextlib.ExitStack() as cleanup:
        try:
            with temporary.open("xb") as file:  # an open file, not a path: torch puts a path's name into the archive
                cleanup.callback(temporary.unlink, missing_ok=True)
                torch.save({"weight": dict(checkpoint.weights), **checkpoint.document}, file)
            os.replace(temporary, path)
        except (OSError, ValueError, RuntimeError) as problem:  # torch's writer reports a full disk as RuntimeError
            raise _cannot_write(path, problem) from None
    return path


def _cannot_write(path: Path, problem: Exception) -> OutputError:
    reason = getattr(problem, "strerror", None) or str(problem)[:200]
    return OutputError(f"cannot write the voice {shown(path)}: {reason}", "Check the folder and the free space.")


def _refuse_parts(problem: str, next_step: str) -> NoReturn:
    raise VoiceFileError(f"these parts do not make a voice: {problem}", next_step)


# --- judging an object tree, of tensors or of their descriptions -----------------------------------------------------


def _judge_outline(file: TensorFile) -> VoiceInfo:
    info, _ = _judge(file.outline, file.refuse)
    claimed = sum(note_bytes(note) for note in file.outline["weight"].values())
    if claimed > file.size:  # many names for the same stored numbers: small on disk, huge once widened
        file.refuse(f"its tensors claim {claimed:,} bytes and the file has {file.size:,}", _FILE)
    return info


def _judge(tree: Any, refuse: Refuse) -> tuple[VoiceInfo, NetConfig]:
    foreign = foreign_kind(tree)
    if foreign is not None:
        refuse(f"it is {foreign[0]}", foreign[1])
    weights = tree.get("weight")
    if not isinstance(weights, dict) or "config" not in tree:
        missing = "config" if isinstance(weights, dict) else "weight"
        held = ", ".join(shown(key, 40) for key in list(tree)[:5]) or "nothing"
        refuse(f"it has no '{missing}' and so is not a voice (it holds {held})", "Give an RVC voice (.pth).")
    if not all(isinstance(name, str) for name in tree):
        refuse("an item of it has no name", "Give an RVC voice (.pth).")
    if len(weights) > MAX_TENSORS:
        refuse(f"it has {len(weights):,} tensors, the limit is {MAX_TENSORS:,}", "Give an RVC voice (.pth).")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not hasattr(tensor, "dtype"):
            refuse(f"under 'weight' it holds {shown(name)}, which is not a named tensor", _FILE)
    try:
        net = parse_config(tree["config"], _traits(weights))
        resolve(weights, net)
    except (LayoutProblem, WeightProblem) as problem:
        refuse(str(problem), _FILE)
    return _describe(tree, net), net


def _traits(weights: Mapping[str, Shaped]) -> Traits:
    width = _axis(weights, "enc_p.emb_phone.weight", 1)
    if width not in CONTENT_VERSIONS:
        raise WeightProblem(f"its content width is {width}; RVC voices have 256 (v1) or 768 (v2)")
    pitch, source = "enc_p.emb_pitch.weight" in weights, "dec.m_source.l_linear.weight" in weights
    if pitch != source:
        absent = "dec.m_source.l_linear.weight" if pitch else "enc_p.emb_pitch.weight"
        raise WeightProblem(f"tensor '{absent}' is missing: half of a voice with pitch")
    mrf = any(name.startswith("dec.mrfs.") for name in weights)
    if mrf and not pitch:
        raise WeightProblem("tensor 'enc_p.emb_pitch.weight' is missing: voices with the MRF vocoder have pitch")
    speakers = _axis(weights, "emb_g.weight", 0)
    if not 1 <= speakers <= MAX_SPEAKERS:
        raise WeightProblem(f"its speaker table has {speakers:,} rows, not 1 to {MAX_SPEAKERS:,}")
    return Traits(width, speakers, pitch, MRF if mrf else HIFIGAN)


def _axis(weights: Mapping[str, Shaped], name: str, axis: int) -> int:
    if name not in weights:
        raise WeightProblem(f"tensor '{name}' is missing")
    shape = weights[name].shape
    if len(shape) != 2:
        raise WeightProblem(f"tensor '{name}' has shape {list(shape)}, not two axes")
    return shape[axis]


def _finite(weights: Mapping[str, torch.Tensor], refuse: Refuse) -> None:
    try:
        check_finite(weights)
    except WeightProblem as problem:
        refuse(str(problem), "Use an earlier save of this voice.")


# --- describing it ---------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """A label from the file as one printable line; a terminal must not obey it."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in value[:MAX_TEXT]).strip()


def _describe(tree: Mapping[str, Any], net: NetConfig) -> VoiceInfo:
    metadata: dict[str, str | int | float | bool] = {}
    for name, value in tree.items():
        small = isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 2**63)
        if name not in _KNOWN_ITEMS and (small or (isinstance(value, float) and math.isfinite(value))):
            metadata[_text(name)] = _text(value) if isinstance(value, str) else value
    embedder = _text(tree.get("embedder_model")) or _text(tree.get("embedder_name"))
    weights = tree["weight"]
    return VoiceInfo(
        version=CONTENT_VERSIONS[net.content_dim],
        sample_rate=net.sample_rate,
        has_f0=net.has_f0,
        speakers=net.speakers,
        content_dim=net.content_dim,
        vocoder=net.vocoder,
        samples_per_frame=net.samples_per_frame,
        parameters=sum(math.prod(weights[name].shape) for name in weights if not name.startswith(POSTERIOR)),
        label=_text(tree.get("info")),
        embedder=embedder,
        metadata=metadata,
        warnings=tuple(_oddities(tree, net, embedder)),
    )


def _oddities(tree: Mapping[str, Any], net: NetConfig, embedder: str) -> list[str]:
    """Labels that contradict the tensors, and features this voice may not have been made for."""
    found = []
    kind, layer = CONTENT_VERSIONS[net.content_dim], 9 if net.content_dim == 256 else 12
    believed = "the tensors were believed"
    if (version := _label(tree, "version", "v1")) != kind:
        found.append(f"the file calls itself {version}, its tensors are {kind} ({net.content_dim} wide); {believed}")
    if (flag := _label(tree, "f0", "1")) not in (("1", "True") if net.has_f0 else ("0", "False")):
        having = "with" if net.has_f0 else "without"
        found.append(f"the file says f0={flag}, its tensors make a voice {having} pitch; {believed}")
    if "sr" in tree and _rate(tree["sr"]) != net.sample_rate:
        found.append(f"the file says sr={_label(tree, 'sr', '')}, its network makes {net.sample_rate} Hz; {believed}")
    if (vocoder := _label(tree, "vocoder", net.vocoder)) not in (net.vocoder, "Default"):
        found.append(f"the file says vocoder={vocoder}, its tensors are {net.vocoder}; {believed}")
    if embedder.lower().removesuffix(".pt") not in _USUAL_EMBEDDERS:
        found.append(f"trained on features of {embedder[:60]}; the usual content encoder will not fit it well")
    if (used := _label(tree, "embedder_output_layer", str(layer))) != str(layer):
        found.append(f"trained on layer {used} of its content encoder, where {layer} is usual")
    return found


def _label(tree: Mapping[str, Any], name: str, default: str) -> str:
    """A label as short text; the name of its type where it is no plain value."""
    value = tree.get(name, default)
    return _text(str(value))[:40] if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _rate(label: Any) -> int | None:
    try:
        return sample_rate_of(label)
    except LayoutProblem:
        return None
