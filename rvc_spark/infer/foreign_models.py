"""Which other program's model a file is, told from the names in its object tree, when a voice was expected.

Knows the marks of the files people confuse with voices and refuses to know how any of them works.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_EXTRACT = "Extract a voice from it first (model extraction in any RVC program), then give the small .pth."
_VOICE = "Give an RVC voice: a .pth of about 55 MB with 'weight' and 'config'."

# (parts that all occur as starts of tensor names, what it is, what to do)
_BY_TENSORS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("unet.", "fc."), "an RMVPE pitch model, not a voice model", "Put it into the rmvpe folder."),
    (("feature_extractor.conv_layers.", "encoder.layers."), "a content encoder, not a voice model",
     "Put it into the hubert folder."),
    (("hubert.",), "a content encoder, not a voice model", "Put it into the hubert folder."),
    (("stg1_",), "a UVR source separation network, not a voice model", _VOICE),
    (("band_split.",), "a RoFormer source separation network, not a voice model", _VOICE),
    (("unit2ctrl.",), "a DDSP-SVC model, not an RVC voice", _VOICE),
    (("phone_extractor.",), "a Beatrice model, not an RVC voice", _VOICE),
    (("enc_p.ssl_proj.",), "a GPT-SoVITS model, not an RVC voice", _VOICE),
    (("enc_p.mrte.",), "a GPT-SoVITS model, not an RVC voice", _VOICE),
    (("emb_uv.",), "a so-vits-svc model, not an RVC voice", _VOICE),
    (("f0_decoder.",), "a so-vits-svc model, not an RVC voice", _VOICE),
    (("discriminators.",), "a training checkpoint of a discriminator (D_*.pth)", _EXTRACT),
    (("enc_p.", "dec.", "enc_q."), "a training checkpoint or pretrained base (G_*.pth)", _EXTRACT),
)  # fmt: skip


def _by_tensors(names: Iterable[Any]) -> tuple[str, str] | None:
    listed = [name for name in names if isinstance(name, str)]
    for starts, kind, cure in _BY_TENSORS:
        if all(any(name.startswith(start) for name in listed) for start in starts):
            return kind, cure
    return None


def foreign_kind(tree: Any) -> tuple[str, str] | None:
    """(what the file is, what to do) for an object tree that is no RVC voice; None for one that may be."""
    if not isinstance(tree, dict):
        return f"a saved {type(tree).__name__}, not a voice", _VOICE
    if isinstance(tree.get("weight"), dict):
        return _with_weight(tree)
    model = tree.get("model")
    if isinstance(model, dict):
        if isinstance(tree.get("cfg"), dict) or "task_state" in tree:
            return "a fairseq checkpoint such as a content encoder, not a voice model", "Put it into the hubert folder."
        inner = _by_tensors(model)
        if inner is not None:
            return inner
        if {"optimizer", "iteration", "learning_rate"} & set(tree):
            return "a training checkpoint", _EXTRACT
    if {"phone_extractor", "pitch_estimator"} & set(tree) or {"net_g", "net_d"} <= set(tree):
        return "a Beatrice model, not an RVC voice", _VOICE
    if "pitch_extractor" in tree or "global_step" in tree:
        return "a model of another program (DDSP-SVC or a diffusion model), not an RVC voice", _VOICE
    if "iteration" in tree and "optimizer" in tree:
        return "a training checkpoint", _EXTRACT
    inner = _by_tensors(tree)
    if inner is not None:
        return inner
    state = tree.get("state_dict")
    if isinstance(state, dict):
        return _by_tensors(state) or ("a training checkpoint of another program, not an RVC voice", _VOICE)
    return None


def _with_weight(tree: dict[Any, Any]) -> tuple[str, str] | None:
    if isinstance(tree.get("config"), dict):
        return "a GPT-SoVITS model, not an RVC voice", _VOICE
    names = tree["weight"]
    for mark, kind in (("dec.mel_conv.", "RefineGAN"), ("dec.upsample_conv_blocks.", "RefineGAN")):
        if any(isinstance(name, str) and name.startswith(mark) for name in names):
            return (
                f"a voice with the {kind} vocoder, which this library does not play: {kind} voices cannot be checked "
                "against a reference",
                "Ask its maker for a HiFi-GAN version, or use Applio for this voice.",
            )
    inner = _by_tensors(names)
    is_voice = any(isinstance(name, str) and name.startswith("enc_p.emb_phone") for name in names)
    return None if is_voice else inner
