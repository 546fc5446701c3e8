"""The content encoder in every form it is stored in: transformers folders, fairseq files, and recipes in both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conformance_checks.engines import load_encoder
from conformance_checks.folder import Arrays, case_file
from conformance_checks.limits import CONTENT_FULL, CONTENT_TINY, EXACT, Limit
from conformance_checks.record import Recorder
from conformance_checks.run import Run
from rvc_spark.infer.content import ContentEncoder
from rvc_spark.infer.fairseq import read_fairseq

LAYER = re.compile(r"layer(\d+)")
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
KEY_MAP = "hubert/key_map.json"


def check_case(case: dict[str, Any], run: Run, record: Recorder) -> None:
    """Every recorded layer of one signal, by every stored form of the encoder."""
    arrays, prefix = run.folder.arrays(case_file(case, ".npz")), case["prefix"]
    limit = CONTENT_TINY if case["kind"] == "hubert" else CONTENT_FULL
    forms = recipe_forms(case["recipe"], run) if case["kind"] == "hubert_recipe" else stored_forms(case, run)
    if not forms:
        record.fail("case", "names no encoder in a known form")
    for form, path in forms.items():
        encoder = load_encoder(run, path)
        check_layers(arrays, prefix, form, encoder, limit, record)
        if "frames" in case:
            frames = encoder.features(arrays.given(prefix + "in.audio"), "v2").shape[1]
            record.same(f"{form}, frames", frames, case["frames"])


def check_layers(
    arrays: Arrays, prefix: str, form: str, encoder: ContentEncoder, limit: Limit, record: Recorder
) -> None:
    """All arrays of one signal that an encoder can make: v1, v2, conv and layerN."""
    samples = arrays.given(prefix + "in.audio")
    for key in arrays.keys(prefix):
        what = key.removeprefix(prefix)
        if what in ("v1", "v2"):
            got = encoder.features(samples, what)
        elif what == "conv":
            got = encoder.convolutional(samples)
        elif match := LAYER.fullmatch(what):
            got = encoder.hidden(samples, int(match[1]))
        else:
            continue
        record.against(arrays, key, got[0], limit, f"{key} by {form}")


def stored_forms(case: dict[str, Any], run: Run) -> dict[str, Path]:
    """The encoder files and folders of a case, and folders beside them that no case names."""
    forms = {}
    beside = set()
    family = Path(case_file(case, ".npz")).stem  # "tiny" of tiny.npz: folders are called tiny_something
    for name in case["files"]:
        path = Path(name)
        if path.suffix == ".pt":
            forms[path.name] = run.folder.path(name)
        elif path.name in FOLDER_WEIGHTS:
            beside.add(path.parent.parent)
    for parent in beside:
        for config in sorted((run.folder.root / parent).glob(f"{family}*/config.json")):
            name = config.parent.relative_to(run.folder.root).as_posix()
            forms[config.parent.name] = run.folder.path(name)
    return forms


def recipe_forms(name: str, run: Run) -> dict[str, Path]:
    """A recipe encoder as a fairseq file, and as a transformers folder under the names of key_map.json."""
    folder = run.scratch / f"{name}_hf"
    if not folder.exists():
        write_folder(folder, name, run)
    return {f"{name} as fairseq": run.recipe_file(name), f"{name} as folder": folder}


def write_folder(folder: Path, name: str, run: Run) -> None:
    """Write config.json and model.safetensors of a recipe encoder."""
    names = json.loads(run.folder.path(KEY_MAP).read_text(encoding="utf-8"))
    sizes = run.recipe(name)["config"]
    weights = {names[key]: value for key, value in run.recipe_tensors(name).items() if names[key] is not None}
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of HuBERT base at any width
    config = {
        "model_type": "hubert",
        "architectures": ["HubertModelWithFinalProj"],
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["intermediate"],
        "classifier_proj_size": sizes["proj"],
        "conv_dim": [sizes["conv"]] * len(kernels),
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_feat_extract_layers": len(kernels),
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "conv_bias": False,
        "do_stable_layer_norm": False,
        "layer_norm_eps": 1e-5,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")


def check_forms(run: Run, record: Recorder) -> None:
    """The stored fairseq files hold the recipe's numbers under the names of key_map.json."""
    names = json.loads(run.folder.path(KEY_MAP).read_text(encoding="utf-8"))
    paths = {
        run.folder.path(name)
        for case in run.folder.cases
        if case["kind"] == "hubert"
        for name in case["files"]
        if name.endswith(".pt")
    }
    for path in sorted(paths):
        weights = read_fairseq(path)
        recipe = run.recipe_tensors(recipe_of(weights, run))
        wanted = {names[key]: value for key, value in recipe.items() if names[key] is not None}
        dropped = wanted.keys() - weights.keys()  # a loader may leave out what inference never reads
        record.holds(
            f"{path.name}, tensors",
            weights.keys() <= wanted.keys() and dropped <= {"masked_spec_embed"},
            f"lacks {sorted(dropped)[:3]}, has beyond the map {sorted(weights.keys() - wanted.keys())[:3]}",
        )
        for name in sorted(weights.keys() & wanted.keys()):
            record.compare(f"{path.name}: {name}", weights[name].to(torch.float32), wanted[name].numpy(), EXACT)


def recipe_of(weights: dict[str, torch.Tensor], run: Run) -> str:
    """The recipe whose network has the sizes of these weights; ValueError if there is none."""
    wanted = tuple(weights["final_proj.weight"].shape)
    for name, recipe in run.recipes.items():
        sizes = recipe.get("config")
        if recipe["model"] == "hubert_base_layout" and (sizes["proj"], sizes["hidden"]) == wanted:
            return name
    raise ValueError(f"no recipe makes a content encoder with a projection of {wanted}")
