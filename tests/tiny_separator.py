"""A separation model in the published form, made on the spot: the real HTDemucs class, tiny, with random weights."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

SOURCES = ["drums", "bass", "other", "vocals"]
TINY = {
    "audio_channels": 2, "samplerate": 44_100, "segment": Fraction(39, 50), "channels": 4, "growth": 2, "nfft": 512,
    "depth": 3, "dconv_mode": 1, "dconv_depth": 1, "dconv_comp": 4, "bottom_channels": 8, "t_layers": 1, "t_heads": 2,
    "t_dropout": 0.0, "norm_starts": 4, "cac": True, "t_lr": None, "t_mask_type": "diag",
}  # fmt: skip


def encoded(value: Any) -> Any:
    """JSON as demucs's exporter writes it."""
    if isinstance(value, Fraction):
        return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}
    return value


def make_network(seed: int = 0, **changes: Any) -> torch.nn.Module:
    from demucs.htdemucs import HTDemucs

    torch.manual_seed(seed)
    return HTDemucs(SOURCES, **{**TINY, **changes}).eval()


def write_network(path: Path, network: torch.nn.Module, **metadata: str) -> Path:
    """The file demucs's exporter would write: half precision, class and arguments in the header."""
    from safetensors.torch import save_file

    args, kwargs = network._init_args_kwargs
    said = {
        "klass": "demucs.htdemucs.HTDemucs", "args": json.dumps([encoded(item) for item in args]),
        "kwargs": json.dumps({name: encoded(value) for name, value in kwargs.items()}), **metadata,
    }  # fmt: skip
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, metadata={key: value for key, value in said.items() if value})
    return path


def make_model(folder: Path, name: str = "htdemucs") -> Path:
    """A folder with one network (`htdemucs`) or with four and their weights (`htdemucs_ft`)."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "htdemucs":
        write_network(folder / "955717e8.safetensors", make_network())
        (folder / "htdemucs.yaml").write_text("models: ['955717e8']\n")
        return folder
    names = ["f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d"]
    for seed, item in enumerate(names):
        write_network(folder / f"{item}.safetensors", make_network(seed))
    rows = [[1.0 if row == column else 0.0 for column in range(4)] for row in range(4)]
    (folder / f"{name}.yaml").write_text(f"models: {names}\nweights: {rows}\n")
    return folder
