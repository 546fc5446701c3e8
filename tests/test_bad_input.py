"""What an impatient or a hostile user hands in, through the doors that users have: each case is a named error.

Every case must raise an error of our tree whose message names the next step, leave no file behind, run no code of the
file, and leave the loaded voice usable. The parsers have deeper tests of their own beside this one.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rvc_spark.audio import Audio, encode_audio
from rvc_spark.errors import RvcSparkError
from rvc_spark.infer.random_voice import VoiceRecipe, voice_parts
from rvc_spark.processing.utils import split_text_and_validate
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.rvc_init import convert_folder, init_rvc, speak
from rvc_spark.rvc_modules import VC
from tests.voice_maker import save_parts, save_voice

DEMO = RVCConfig().demo_dir
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 57582639\n"
HTML = b"<!DOCTYPE html><html><body>404</body></html>"
TONE = Audio(np.sin(np.arange(16_000) * 0.06).astype(np.float32) * 0.3, 16_000)


@pytest.fixture(scope="module")
def vc() -> VC:
    loaded = init_rvc()
    loaded.load("demo")
    return loaded


class Bomb:
    """A pickle that makes a folder when it is run."""

    def __reduce__(self):
        return os.mkdir, ("BOMB_WENT_OFF",)


def _demo_parts() -> tuple[dict, dict]:
    document = torch.load(DEMO / "demo_slt_32k.pth", map_location="cpu", weights_only=True)
    weights = document.pop("weight")
    return dict(weights), dict(document)


def _changed(change: Callable[[dict, dict], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        weights, document = _demo_parts()
        change(weights, document)
        save_parts(path, weights, document)

    return make


def _with(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return _changed(lambda weights, document: weights.__setitem__(name, value(weights[name])))


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def _saved(document: object) -> Callable[[Path], None]:
    return lambda path: torch.save(document, path)


def _truncated(path: Path) -> None:
    path.write_bytes((DEMO / "demo_slt_32k.pth").read_bytes()[:-5000])


def _zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("voice/data.pkl", pickle.dumps({}, 2))
        archive.writestr("voice/data/0", bytes(200 << 20))


def _huge_config(weights: dict, document: dict) -> None:
    document["config"] = [*document["config"][:3], 2**31, *document["config"][4:]]


BAD_VOICES: dict[str, Callable[[Path], None]] = {
    "empty": _bytes(b""),
    "web page": _bytes(HTML),
    "LFS pointer": _bytes(LFS_POINTER),
    "text": _bytes(b"hello" * 100),
    "renamed wav": _bytes(encode_audio(TONE)),
    "renamed index": _bytes((DEMO / "added_IVF38_Flat_nprobe_1_demo_slt_v1.index").read_bytes()),
    "truncated": _truncated,
    "zip bomb": _zip_bomb,
    "plain zip": _bytes(b"PK\x05\x06" + bytes(18)),
    "pickle bomb": _bytes(pickle.dumps(Bomb(), 2)),
    "pickle bomb in a zip": _saved({"weight": Bomb(), "config": Bomb()}),
    "training checkpoint": _saved(
        {"model": {"a": torch.zeros(2)}, "iteration": 3, "optimizer": {}, "learning_rate": 1}
    ),
    "GPT-SoVITS": _saved({"weight": {"a": torch.zeros(2)}, "config": {"data": {}}, "info": "x"}),
    "state dict only": _saved({"a.weight": torch.zeros(2)}),
    "a list": _saved([1, 2, 3]),
    "missing tensor": _changed(lambda weights, document: weights.pop("enc_p.proj.bias")),
    "unknown tensor": _changed(lambda weights, document: weights.__setitem__("extra.weight", torch.zeros(3))),
    "wrong shape": _with("enc_p.proj.bias", lambda tensor: tensor[:-1].clone()),
    "infinite weights": _with("enc_p.proj.bias", lambda tensor: tensor * float("inf")),
    "NaN weights": _with("dec.conv_pre.bias", lambda tensor: tensor * float("nan")),
    "config of 4": _changed(lambda weights, document: document.__setitem__("config", [1, 2, 3, 4])),
    "huge config": _changed(_huge_config),
    "half of the pitch tensors": _changed(lambda weights, document: weights.pop("enc_p.emb_pitch.weight")),
    "a folder": lambda path: path.mkdir(),
    "a dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "another encoder's width": lambda path: save_voice(path, VoiceRecipe(version="v2")),
}


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    """A working folder in which any side effect shows."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refused(action: Callable[[], object], folder: Path) -> str:
    """The message of the refusal; checks what every refusal owes."""
    with pytest.raises(RvcSparkError) as caught:
        action()
    assert len(caught.value.next_step) > 5
    assert list(folder.iterdir()) == []
    return str(caught.value)


def still_usable(vc: VC) -> bool:
    return vc.voice is not None and vc.voice.name == "demo" and vc.convert(TONE, f0_method="pm").frames == 32_000


@pytest.mark.parametrize("case", BAD_VOICES)
def test_bad_voices(case, vc, tmp_path, empty_folder):
    path = tmp_path / "bad.pth"
    BAD_VOICES[case](path)
    if case == "another encoder's width":  # beside a v1-only encoder, or the error would be the missing encoder
        (tmp_path / "content_encoder").symlink_to(DEMO / "content_encoder")
    message = refused(lambda: vc.load(path), empty_folder)
    assert "bad.pth" in message or case in ("missing tensor",)
    assert vc.voice is not None and vc.voice.name == "demo"


def test_a_refused_voice_leaves_the_loaded_one_working(vc, tmp_path):
    (tmp_path / "bad.pth").write_bytes(HTML)
    with pytest.raises(RvcSparkError):
        vc.load(tmp_path / "bad.pth")
    assert still_usable(vc)


BAD_NAMES = ["", "../../etc/passwd", "/etc/passwd", "x" * 5000, "a\0b", "demo/../demo", "de\nmo", "C:\\voice.pth"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:20]))
def test_bad_voice_names(name, vc, empty_folder):
    refused(lambda: vc.load(name), empty_folder)


def _index_of(width: int) -> bytes:
    vectors = np.zeros((2, width), np.float32)
    header = struct.pack("<iqqqBi", width, 2, 1 << 20, 1 << 20, 1, 1)
    return b"IxF2" + header + struct.pack("<Q", vectors.size) + vectors.tobytes()


DEMO_INDEX = (DEMO / "added_IVF38_Flat_nprobe_1_demo_slt_v1.index").read_bytes()
BAD_INDEXES = {
    "empty": b"",
    "web page": HTML,
    "LFS pointer": LFS_POINTER,
    "truncated": DEMO_INDEX[:-1000],
    "another dimension": _index_of(768),
    "claims 10^18 vectors": DEMO_INDEX[:8] + struct.pack("<q", 10**18) + DEMO_INDEX[16:],
    "negative dimension": DEMO_INDEX[:4] + struct.pack("<i", -256) + DEMO_INDEX[8:],
    "unknown kind": b"IwPQ" + DEMO_INDEX[4:],
    "renamed voice": (DEMO / "demo_slt_32k.pth").read_bytes(),
    "NaN vectors": DEMO_INDEX[:-400_000] + b"\xff" * 300_000 + DEMO_INDEX[-100_000:],
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_bad_indexes(case, vc, tmp_path, empty_folder):
    path = tmp_path / "bad.index"
    path.write_bytes(BAD_INDEXES[case])
    refused(lambda: vc.load("demo", index=path), empty_folder)


def _wav(samples: np.ndarray, rate: int = 16_000, channels: int = 1, claim: int | None = None) -> bytes:
    data = samples.astype("<f4").tobytes()
    fmt = struct.pack("<HHIIHH", 3, channels, rate, rate * 4 * channels, 4 * channels, 32)
    size = len(data) if claim is None else claim
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


BAD_SOUNDS = {
    "empty": b"",
    "web page": HTML,
    "LFS pointer": LFS_POINTER,
    "text": b"this is not a sound " * 50,
    "renamed voice": (DEMO / "demo_slt_32k.pth").read_bytes()[:100_000],
    "truncated flac": encode_audio(TONE, None)[:30],
    "no samples": _wav(np.zeros(0)),
    "3 samples": _wav(np.full(3, 0.1)),
    "NaN": _wav(np.full(16_000, np.nan)),
    "infinite": _wav(np.full(16_000, np.inf)),
    "9 channels": _wav(np.zeros(9 * 1600), channels=9),
    "0 channels": _wav(np.zeros(1600), channels=0),
    "rate 0": _wav(np.zeros(1600), rate=0),
    "rate 1 Hz": _wav(np.zeros(1600), rate=1),
    "rate 4 MHz": _wav(np.zeros(1600), rate=4_000_000),
    "claims more than it has": _wav(np.zeros(1600), claim=1 << 30),
    "absurdly loud": _wav(np.full(1600, 1e30)),
}


@pytest.mark.parametrize("case", BAD_SOUNDS)
def test_bad_sounds(case, vc, tmp_path, empty_folder):
    path = tmp_path / "bad.wav"
    path.write_bytes(BAD_SOUNDS[case])
    refused(lambda: vc.convert(path, output=tmp_path / "out.wav"), empty_folder)
    refused(lambda: vc.convert(io.BytesIO(BAD_SOUNDS[case])), empty_folder)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bad.wav", "cwd"]


@pytest.mark.parametrize(
    "samples", [np.zeros((9, 100)), np.zeros(0), np.full(100, np.nan), np.zeros((1, 2, 3))], ids=str
)
def test_bad_arrays(samples, vc, empty_folder):
    refused(lambda: vc.convert(Audio(samples.astype(np.float32), 16_000)), empty_folder)


BAD_TEXTS = {
    "empty": "",
    "spaces": " \n\t ",
    "a million characters": "word " * 200_000,
    "control characters": "\x00\x01\x02",
    "unpaired surrogate": "\ud800",
    "punctuation": "... !!! ???",
    "emoji": "😀😀",
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts(case, vc, empty_folder):
    refused(lambda: split_text_and_validate(BAD_TEXTS[case]), empty_folder)
    refused(lambda: speak(BAD_TEXTS[case]), empty_folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"key": 1e9}, {"f0_method": "psychic"}, {"f0_method": "rmvpe"}, {"speaker": 99}, {"speaker": 2333},
        {"f0_curve": "/nowhere.csv"}, {"scale": "H flat"}, {"auto_key": "nan"}, {"resample_rate": 3}, {"unknown": 1},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings(setting, vc, empty_folder, tmp_path):
    refused(lambda: vc.convert(TONE, output=tmp_path / "out.wav", **setting), empty_folder)
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    "curve", ["", "a,b\nc,d", "0,100\n0.1,nan", "1,100\n0,100", "0,-5\n1,5", "\x00\x01", "0,1e9\n1,1"]
)
def test_bad_f0_curves(curve, vc, tmp_path, empty_folder):
    path = tmp_path / "curve.csv"
    path.write_text(curve)
    refused(lambda: vc.convert(TONE, f0_curve=str(path)), empty_folder)


def test_bad_outputs(vc, tmp_path, empty_folder):
    clip = tmp_path / "clip.wav"
    clip.write_bytes(encode_audio(TONE))
    before = clip.read_bytes()
    for output in (clip, tmp_path / "x.unknown", tmp_path / "missing" / "x.wav", tmp_path, tmp_path / "noending"):
        refused(lambda output=output: vc.convert(clip, output=output, f0_method="pm"), empty_folder)
    assert clip.read_bytes() == before
    refused(lambda: list(convert_folder(tmp_path / "none", tmp_path / "out")), empty_folder)
    refused(lambda: list(convert_folder(tmp_path, clip)), empty_folder)


BAD_ENCODERS = {
    "no config": {},
    "config is a list": {"config.json": b"[]"},
    "config of 10^9 layers": {"config.json": json.dumps({"model_type": "hubert", "num_hidden_layers": 10**9}).encode()},
    "web page for weights": {
        "config.json": (DEMO / "content_encoder" / "config.json").read_bytes(), "model.safetensors": HTML,
    },
    "header longer than the file": {
        "config.json": (DEMO / "content_encoder" / "config.json").read_bytes(),
        "model.safetensors": struct.pack("<Q", 1 << 60) + b"{}",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ENCODERS)
def test_bad_encoders(case, vc, tmp_path, empty_folder):
    folder = tmp_path / "voice"
    (folder / "content_encoder").mkdir(parents=True)
    for name, content in BAD_ENCODERS[case].items():
        (folder / "content_encoder" / name).write_bytes(content)
    save_voice(folder / "voice.pth", VoiceRecipe(version="v1"))
    refused(lambda: vc.load(folder / "voice.pth"), empty_folder)


BAD_CARDS = [
    "[", "[]", '{"median_f0_hz": -3}', '{"median_f0_hz": "high"}', "[" * 60_000, "[" * 100_000,
    '{"median_f0_hz": 200, "low_f0_hz": 300}',
]  # fmt: skip


@pytest.mark.parametrize("card", BAD_CARDS, ids=lambda card: card[:40])
def test_bad_voice_cards(card, vc, tmp_path, empty_folder):
    weights, document = voice_parts(VoiceRecipe(version="v1"))
    save_parts(tmp_path / "v.pth", weights, document)
    (tmp_path / "v.json").write_text(card)
    refused(lambda: vc.load(tmp_path / "v.pth"), empty_folder)


def test_a_pickle_that_would_run_code_never_runs_it(tmp_path, monkeypatch):
    """The bomb does go off when it is unpickled, so its silence above means something."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb(), 2))
    assert (tmp_path / "BOMB_WENT_OFF").is_dir()


def test_there_are_at_least_sixty_cases():
    parametrised = (BAD_VOICES, BAD_NAMES, BAD_INDEXES, BAD_SOUNDS, BAD_TEXTS, BAD_ENCODERS)
    assert sum(map(len, parametrised)) >= 60
