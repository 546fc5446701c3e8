"""A published HTDemucs file -> the network, without running anything the file names.

A `.safetensors` of demucs 4.1 carries in its header, as JSON, the class and the arguments it was made with; demucs
imports whatever class stands there. Here the name must be the one of HTDemucs and every argument one of those it is
known to take, within bounds, so a file can neither name code nor ask for a network that fills the memory: it is laid
out without memory first and compared with the tensors of the file, name by name and shape by shape.

    name.yaml               which files form the model, and how much of each source comes from which of them
    955717e8.safetensors    one network
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml

from rvc_spark.errors import MissingPackageError, SeparatorFileError
from rvc_spark.safe_load import TensorFile, open_tensors, shown

RATE = 44_100
"""Hz. Every published HTDemucs works at this rate, with two channels."""
VOCALS = "vocals"
CLASS = "demucs.htdemucs.HTDemucs"
MAX_FILE_BYTES = 1 << 30  # htdemucs has 84 MB
MAX_BAG_BYTES = 64 << 10
MAX_MODELS = 8
MAX_PARAMETERS = 400_000_000  # htdemucs has 42 million
_SIGNATURE = re.compile(r"[0-9a-zA-Z_-]{1,64}")
_NEXT = "Fetch the published file again: rvc-spark assets get demucs --replace."

# Argument of HTDemucs -> what it may be: (low, high) for numbers, a set for words, bool for switches. The bounds leave
# room for every published model and none for one that could not be held in memory.
_NUMBERS: dict[str, tuple[float, float]] = {
    "audio_channels": (2, 2), "channels": (4, 128), "channels_time": (4, 128), "growth": (1, 3), "nfft": (256, 8192),
    "wiener_iters": (0, 0), "end_iters": (0, 0), "depth": (2, 6), "multi_freqs_depth": (0, 6), "freq_emb": (0, 1),
    "emb_scale": (0.01, 100), "kernel_size": (2, 16), "time_stride": (1, 4), "stride": (2, 8), "context": (0, 4),
    "context_enc": (0, 4), "norm_starts": (0, 100), "norm_groups": (1, 16), "dconv_mode": (0, 3), "dconv_depth": (1, 4),
    "dconv_comp": (1, 16), "dconv_init": (0, 1), "bottom_channels": (0, 1024), "t_layers": (0, 12),
    "t_hidden_scale": (0.25, 8), "t_heads": (1, 16), "t_dropout": (0, 1), "t_max_positions": (1, 100_000),
    "t_max_period": (1, 1e6), "t_weight_decay": (0, 1), "t_lr": (0, 1), "t_weight_pos_embed": (0, 10),
    "t_sin_random_shift": (0, 100_000), "t_mask_random_seed": (0, 2**31), "t_sparse_attn_window": (1, 100_000),
    "t_global_window": (1, 100_000), "t_sparsity": (0, 1), "rescale": (0, 1), "samplerate": (RATE, RATE),
    "segment": (0.25, 30),
}  # fmt: skip
_WHOLE = {
    "audio_channels", "channels", "channels_time", "nfft", "wiener_iters", "end_iters", "depth", "multi_freqs_depth",
    "kernel_size", "time_stride", "stride", "context", "context_enc", "norm_starts", "norm_groups", "dconv_mode",
    "dconv_depth", "dconv_comp", "bottom_channels", "t_layers", "t_heads", "t_max_positions", "t_sin_random_shift",
    "t_mask_random_seed", "t_sparse_attn_window", "t_global_window", "samplerate",
}  # fmt: skip
_SWITCHES = {
    "wiener_residual", "cac", "rewrite", "emb_smooth", "t_norm_in", "t_norm_in_group", "t_group_norm", "t_norm_first",
    "t_norm_out", "t_layer_scale", "t_gelu", "t_cape_mean_normalize", "t_cape_augment", "t_cross_first",
    "use_train_segment",
}  # fmt: skip
_OFF = {"t_sparse_self_attn", "t_sparse_cross_attn", "t_auto_sparsity"}  # they need a package of their own
_WORDS = {"t_emb": {"sin", "cape", "scaled"}, "t_mask_type": {"diag"}}
_NONE = {"channels_time", "multi_freqs", "t_lr"}  # may also be none
_LISTS = {"multi_freqs": 4, "t_cape_glob_loc_scale": 3}


@dataclass(frozen=True)
class Bag:
    """Which files of a folder form a model, as its `.yaml` says.

    files: those the voice comes from, each with its share, which add up to 1. left_out: files that give other sources.
    """

    files: tuple[tuple[Path, float], ...]
    left_out: tuple[str, ...] = ()


def read_bag(folder: Path, name: str, vocals: int = 3) -> Bag:
    """The files a model's voice comes from. `htdemucs_ft` has a network per source: only one of its four is needed.

    vocals: which of the sources is the voice; drums, bass, other, vocals is the order of every published model.

    Raises SeparatorFileError: no such file, not plain YAML, or names that are not plain.
    """
    path = folder / f"{name}.yaml"

    def refuse(problem: str) -> SeparatorFileError:
        return SeparatorFileError(f"{shown(path.name)} is refused as a list of networks: {problem}", _NEXT)

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BAG_BYTES + 1)
    except OSError as error:
        problem = f"there is no separation model {name} in {folder} ({error.strerror})"
        raise SeparatorFileError(problem, _NEXT) from error
    if len(data) > MAX_BAG_BYTES or b"&" in data or b"*" in data:  # no alias, so nothing can grow
        raise refuse("it is too large, or has aliases")
    try:
        content = yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refuse("it is not plain YAML") from error
    content = content if isinstance(content, dict) else {}
    names, rows = content.get("models"), content.get("weights")
    if not isinstance(names, list) or not 0 < len(names) <= MAX_MODELS:
        raise refuse("it names no networks")
    if not all(isinstance(item, str) and _SIGNATURE.fullmatch(item) for item in names):
        raise refuse("it names networks by something that is not a plain name")
    shares = [1.0] * len(names)
    if rows is not None:
        if not isinstance(rows, list) or len(rows) != len(names):
            raise refuse("it has not one row of weights per network")
        shares = [_share(row, vocals) for row in rows]
        if any(math.isnan(share) for share in shares) or sum(shares) <= 0:
            raise refuse(f"its weights are not numbers from 0 on, or give no {VOCALS}")
    used = [(folder / f"{item}.safetensors", share / sum(shares)) for item, share in zip(names, shares, strict=True)]
    left_out = tuple(path.stem for path, share in used if share == 0)
    return Bag(tuple((path, share) for path, share in used if share > 0), left_out)


def _share(row: Any, place: int) -> float:
    value = row[place] if isinstance(row, list) and len(row) > place else None
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e6
    return float(value) if good else math.nan


def load_htdemucs(path: Path, device: str) -> torch.nn.Module:
    """One network from a published file, in float32, ready on `device`.

    Raises SeparatorFileError (another kind of file, another class, arguments or tensors that do not fit),
    MissingPackageError (demucs is not installed).
    """
    try:
        from demucs.htdemucs import HTDemucs
    except ImportError as error:
        raise MissingPackageError(
            f"separating a song needs demucs, which is not installed ({error})",
            "Run: pip install 'rvc-spark[covers]', or give the stems: --vocals FILE --accompaniment FILE.",
        ) from error
    with open_tensors(path, max_bytes=MAX_FILE_BYTES, what="separation model", error=SeparatorFileError) as file:
        arguments = _arguments(file)
        _check_layout(HTDemucs, arguments, file)
        tensors = file.load()
    wrong = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise SeparatorFileError(f"{file.name} holds numbers that are not finite in {shown(wrong[0])}", _NEXT)
    network = HTDemucs(**arguments)
    network.load_state_dict(tensors)
    return network.to(device).eval().requires_grad_(False)


def _arguments(file: TensorFile) -> dict[str, Any]:
    """The constructor's arguments out of the file's header, checked; unknown ones are left out, as demucs does."""
    said = file.metadata
    if said.get("klass") != CLASS:
        file.refuse(f"it is of class {shown(said.get('klass', 'nothing'))} instead of {CLASS}", _NEXT)
    if "structure" in said:
        file.refuse("it is quantised, which is not read here", "Use htdemucs or htdemucs_ft.")
    try:
        positional = _decoded(json.loads(said.get("args", "[]")))
        named = _decoded(json.loads(said.get("kwargs", "{}")))
    except (ValueError, RecursionError, TypeError, KeyError, ZeroDivisionError, OverflowError):
        file.refuse("its arguments are not JSON", _NEXT)
    if not isinstance(positional, list) or len(positional) > 1 or not isinstance(named, dict):
        file.refuse("its arguments are not a list of sources and named values", _NEXT)
    given = {**({"sources": positional[0]} if positional else {}), **named}
    sources = given.pop("sources", None)
    known = isinstance(sources, list | tuple) and all(isinstance(item, str) for item in sources)
    if not known or not 2 <= len(sources) <= 8 or VOCALS not in sources:
        file.refuse(f"its sources are {shown(sources)}, without {VOCALS}", "Use htdemucs or htdemucs_ft.")
    checked: dict[str, Any] = {"sources": list(sources)}
    for name, value in given.items():
        if name in _NUMBERS or name in _SWITCHES or name in _OFF or name in _WORDS or name in _LISTS:
            if not _allowed(name, value):
                file.refuse(f"its argument {name} is {shown(value, 40)}, which no HTDemucs has", _NEXT)
            checked[name] = value
    return checked


def _decoded(value: Any) -> Any:
    """JSON with demucs's form of a fraction."""
    if isinstance(value, dict):
        if value.get("_type") == "fraction":
            return Fraction(int(value["numerator"]), int(value["denominator"]))
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _allowed(name: str, value: Any) -> bool:
    if value is None:
        return name in _NONE
    if name in _LISTS:
        return isinstance(value, list) and len(value) <= _LISTS[name] and all(_is_number(item) for item in value)
    if name in _SWITCHES or name in _OFF:
        return isinstance(value, bool) and not (name in _OFF and value)
    if name in _WORDS:
        return isinstance(value, str) and value in _WORDS[name]
    low, high = _NUMBERS[name]
    kinds = int if name in _WHOLE else (int, float, Fraction)
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_layout(kind: type, arguments: Mapping[str, Any], file: TensorFile) -> None:
    """Compare what the network would be made of with what the file holds, before anything takes memory."""
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in kind(**arguments).state_dict().items()}
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, ZeroDivisionError) as problem:
        file.refuse(f"no HTDemucs can be made with its arguments ({shown(problem)})", _NEXT)
    if sum(math.prod(shape) for shape in wanted.values()) > MAX_PARAMETERS:
        file.refuse(f"its network would have more than {MAX_PARAMETERS:,} numbers", _NEXT)
    found = {name: note.shape for name, note in file.outline.items()}
    for name in sorted(wanted.keys() ^ found.keys())[:1]:
        file.refuse(f"its tensor {shown(name)} is {'missing' if name in wanted else 'of another network'}", _NEXT)
    for name, shape in wanted.items():
        if found[name] != shape:
            file.refuse(f"its tensor {shown(name)} has the shape {found[name]} instead of {shape}", _NEXT)
