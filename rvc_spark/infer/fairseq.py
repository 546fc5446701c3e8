"""The original fairseq checkpoint of a content encoder (`hubert_base.pt`), read without fairseq and without running it.

The file is a pickle full of fairseq and omegaconf classes, so torch's safe loader refuses it and the usual way, an
unrestricted unpickler, runs whatever the file says. Here it goes through `tensor_archive`: classes become inert
records, only the tensors under `model` are read, and they get the names of transformers' HubertModel. A few plain
settings are picked out of the records because tensors cannot tell them (attention heads, strides). The module refuses
to know how the network is built or run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rvc_spark.errors import EncoderFileError
from rvc_spark.inert_pickle import Record
from rvc_spark.infer.tensor_archive import TensorArchive, TensorNote
from rvc_spark.safe_load import shown

MAX_TENSORS = 4_000  # 214 in hubert_base.pt, 800 in the largest HuBERT

# Training targets only; no feature depends on them.
_DROPPED = re.compile(r"label_embs_concat|_float_tensor|target_glu\..*")

# fairseq name -> transformers name (both checked against the published conversion script)
_RENAMED = (
    (r"mask_emb", r"masked_spec_embed"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(weight|bias)", r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (r"layer_norm\.(weight|bias)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(weight|bias)", r"feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.weight_g", r"encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", r"encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.(weight|bias)", r"encoder.pos_conv_embed.conv.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv]|out)_proj\.(weight|bias)", r"encoder.layers.\1.attention.\2_proj.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)", r"encoder.layers.\1.layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.fc1\.(weight|bias)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (r"encoder\.layers\.(\d+)\.fc2\.(weight|bias)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (r"(encoder\.layers\.\d+\.final_layer_norm\.(?:weight|bias))", r"\1"),
    (r"(encoder\.layer_norm\.(?:weight|bias))", r"\1"),
    (r"(final_proj\.(?:weight|bias))", r"\1"),
)
_RENAMED_COMPILED = tuple((re.compile(pattern), target) for pattern, target in _RENAMED)

_MODEL_SETTINGS = (
    "encoder_attention_heads",
    "conv_feature_layers",
    "conv_pos_groups",
    "extractor_mode",
    "layer_norm_first",
    "activation_fn",
    "conv_bias",
)


@dataclass(frozen=True)
class FairseqCheckpoint:
    """What a fairseq file says about a content encoder.

    Attributes:
        weights: float32 tensors under transformers' names.
        settings: plain values of the training configuration that matter for inference, those that were found:
            `encoder_attention_heads`, `conv_feature_layers`, `normalize`, ...
    """

    weights: dict[str, torch.Tensor]
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)


def read_fairseq(path: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a fairseq HuBERT checkpoint, float32, under the names of transformers' HubertModel (+ `final_proj`).

    Raises:
        EncoderFileError: not a fairseq HuBERT file, damaged, over a limit, or made to attack its reader. Nothing in the
            file is imported or called in any case.
    """
    return read_fairseq_checkpoint(path).weights


def read_fairseq_checkpoint(path: str | Path) -> FairseqCheckpoint:
    """Like `read_fairseq`, with the settings that the tensors alone cannot tell.

    Raises:
        EncoderFileError: as `read_fairseq`.
    """
    path = Path(path)
    with TensorArchive(path) as archive:
        notes = _model_notes(archive.tree, path)
        return FairseqCheckpoint(archive.materialize(notes), _settings(archive.tree))


def transformers_name(name: str) -> str | None:
    """Name of a fairseq tensor in transformers' HubertModel; None for training targets; raises KeyError if unknown."""
    if _DROPPED.fullmatch(name):
        return None
    for pattern, target in _RENAMED_COMPILED:
        if pattern.fullmatch(name):
            return pattern.sub(target, name)
    raise KeyError(name)


def _model_notes(tree: Any, path: Path) -> dict[str, TensorNote]:
    """The tensors of `model` under their new names; says what else a file is that has none."""
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict) or not model:
        raise EncoderFileError(f"{shown(path.name)} is not a fairseq checkpoint: {_what_tree(tree)}", _NEXT)
    if len(model) > MAX_TENSORS:
        raise EncoderFileError(
            f"{shown(path.name)} has {len(model):,} tensors, over the limit of {MAX_TENSORS:,}", _NEXT
        )
    notes: dict[str, TensorNote] = {}
    for name, note in model.items():
        if not isinstance(name, str) or not isinstance(note, TensorNote):
            raise EncoderFileError(f"{shown(path.name)} holds something else than tensors under 'model'", _NEXT)
        try:
            target = transformers_name(name)
        except KeyError:
            raise EncoderFileError(
                f"{shown(path.name)} is not a HuBERT content encoder: it has a tensor {shown(name)}", _NEXT
            ) from None
        if target is not None:
            notes[target] = note
    return notes


_NEXT = "Use RVC's hubert_base.pt, or a HuggingFace folder with config.json and model.safetensors."


def _what_tree(tree: Any) -> str:
    if not isinstance(tree, dict):
        return "there is no dictionary in it"
    if "weight" in tree and "config" in tree:
        return "it is a voice; put it into the voices folder"
    if any(str(key).startswith("unet.") for key in tree):
        return "it is an RMVPE pitch model; put it into the rmvpe folder"
    return "it has no weights under 'model'"


# --- settings out of records -----------------------------------------------------------------------------------------


def _members(value: Any) -> dict[Any, Any]:
    """Members of a dict, an argparse.Namespace, a dataclass or an omegaconf container; {} for anything else."""
    for _ in range(4):  # omegaconf wraps its dict once; a file may wrap a record into itself
        if isinstance(value, dict):
            return value
        if not isinstance(value, Record):
            return {}
        state = value.state
        if isinstance(state, dict):
            value = state.get("_content", state)
        else:
            return {}
    return {}


def _plain(value: Any) -> str | int | float | bool | None:
    """The scalar inside an omegaconf node or an enumeration member; None for anything larger."""
    if isinstance(value, Record):
        members = _members(value)
        if "_val" in members or "value" in members:
            value = members.get("_val", members.get("value"))
        elif len(value.arguments) == 1:
            value = value.arguments[0]
    if isinstance(value, str) and len(value) > 500:
        return None
    return value if isinstance(value, (str, int, float, bool)) else None


def _settings(tree: dict[Any, Any]) -> dict[str, str | int | float | bool]:
    config, arguments = _members(tree.get("cfg")), _members(tree.get("args"))
    # newer fairseq nests by part; older argparse namespaces are flat, sometimes with the model's dataclass inside
    models = [_members(config.get("model")), *(_members(value) for value in arguments.values()), arguments]
    tasks = [_members(config.get("task")), arguments]
    found: dict[str, str | int | float | bool] = {}
    for names, places in ((_MODEL_SETTINGS, models), (("normalize",), tasks)):
        for name in names:
            values = (_plain(place[name]) for place in places if name in place)
            first = next((value for value in values if value is not None), None)
            if first is not None:
                found[name] = first
    return found
