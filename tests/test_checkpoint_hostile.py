"""Files that are no voices and files made to attack: each is refused by name, and nothing in them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from hostile_files import old_container, refused, torch_zip
from voice_maker import save_parts

from rvc_spark import safe_load
from rvc_spark.errors import PitchModelError, VoiceFileError
from rvc_spark.infer.checkpoint import read_checkpoint
from rvc_spark.infer.random_voice import VoiceRecipe, voice_parts
from rvc_spark.safe_load import read_tensors

GOLDEN = Path(__file__).parent / "golden" / "rvc"


# --- files that are something else -----------------------------------------------------------------------------------


def zipped(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("voice.pth"))
    return buffer.getvalue()


OTHER_FILES = {
    "empty": (b"", "empty \\(0 bytes\\)"),
    "html": (b"<!DOCTYPE html><html><title>Sign in</title>", "web page.*Download the file itself"),
    "html after blanks": (b"\xef\xbb\xbf \n<HTML>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 55\n", "Git LFS pointer.*git lfs pull"),
    "json": (b'{"error": "quota"}', "JSON text"),
    "text": (b"Too many requests, try again later.", "a text"),
    "index": (b"IwFl" + bytes(100), "faiss index.*Give it as the index"),
    "flat index": (b"IxF2" + bytes(100), "faiss index"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(50), "gzip archive.*Unpack it"),
    "rar": (b"Rar!\x1a\x07\x01\0", "RAR archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z archive"),
    "tar": (tarred(), "tar archive|nothing but zeros"),
    "zip": (zipped("songs/readme.txt", b"hello"), "zip archive, not a file saved by torch"),
    "zipped voice": (zipped("my_voice.pth", b"x" * 99), r"zip archive with 'my_voice\.pth' in it.*Unpack it"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "empty zip archive"),
    "wav": (b"RIFF\x24\0\0\0WAVEfmt ", "sound file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "picture"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "noise": (bytes(range(129, 250)), "starts with 81 82 83"),
    "one byte": (b"\x80", "neither torch|starts with"),
    "sovits by its mark": (b"05\x03\x04" + bytes(60), "GPT-SoVITS"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(60), "GGUF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
    "plain pickle": (pickle.dumps({"weight": {}}, protocol=2), "not one that torch.save wrote"),
    "new pickle": (pickle.dumps([1, 2], protocol=5), "not one that torch.save wrote"),
    "cut pickle": (pickle.dumps({"weight": "x" * 50}, protocol=2)[:-9], "damaged"),
    "safetensors of nothing": (struct.pack("<Q", 2) + b"{}", "no 'weight'"),
    "safetensors, huge header": (struct.pack("<Q", 1 << 62) + b"{" + bytes(100), "starts with"),
    "safetensors, bad json": (struct.pack("<Q", 9) + b'{"a": [[[' + bytes(9), "header is damaged"),
    "safetensors, deep json": (struct.pack("<Q", 60_005) + b'{"a":' + b"[" * 60_000, "header is damaged"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_called_by_their_name(kind, tmp_path):
    content, words = OTHER_FILES[kind]
    path = tmp_path / "voice.pth"
    path.write_bytes(content)
    refused(path, words)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "does not take"),
        ({"dtype": "F32", "shape": [1 << 39, 1 << 39], "data_offsets": [0, 4]}, "does not take"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}, "not sizes"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "overlap others or leave a gap"),
        ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, "type that is not read"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "cut off"),
        (7, "type that is not read"),
    ],
)
def test_safetensors_that_contradict_themselves(entry, words, tmp_path):
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(path, words)


def test_paths_that_are_no_files(tmp_path):
    refused(tmp_path, "it is a folder")
    refused(tmp_path / "none.pth", "cannot be opened \\(No such file")
    refused(Path("nul\0byte.pth"), "cannot be opened")
    refused(tmp_path / ("x" * 300), "cannot be opened")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "not a regular file")
    if Path("/dev/zero").exists():
        (tmp_path / "device.pth").symlink_to("/dev/zero")
        refused(tmp_path / "device.pth", "not a regular file")


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "huge.pth"
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, (1 << 30) + 1)  # sparse: takes no space
    refused(path, "1,073,741,825 bytes, the limit is 1,073,741,824")


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    path = tmp_path / "evil\x1b[2J\n.pth"
    path.write_bytes(b"")
    with pytest.raises(VoiceFileError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable() and "\\x1b" in str(caught.value)


# --- pickles that would do something ---------------------------------------------------------------------------------


def calling(function: str, argument: str) -> bytes:
    """A pickle that calls `function` ("module name") with a text when an ordinary unpickler reads it."""
    module, name = function.rsplit(".", 1)
    text = argument.encode()
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


CALLS = ["os.system", "posix.system", "subprocess.getoutput", "builtins.eval", "builtins.exec", "__builtin__.eval",
         "os.mkdir", "torch.load", "torch.hub.load", "shutil.rmtree", "runpy.run_path", "importlib.import_module",
         "webbrowser.open", "pty.spawn", "nt.system"]  # fmt: skip


@pytest.mark.parametrize("function", CALLS)
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = calling(function, "touch canary; mkdir canary")
    refused(torch_zip(tmp_path / "new.pth", tree), "instructions instead of data|object of the class")
    refused(old_container(tmp_path / "old.pth", tree), "instructions instead of data|object of the class")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.pth", "old.pth"]


class Bomb:
    """An ordinary object whose unpickling creates a folder."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("place", ["info", "config", "weight", "metadata", "key"])
def test_code_hidden_anywhere_in_a_voice_is_not_run(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, document = voice_parts()
    if place == "info":
        document["info"] = Bomb()
    elif place == "config":
        document["config"][3] = Bomb()
    elif place == "weight":
        weights["enc_q.bomb"] = Bomb()
    elif place == "metadata":
        document["notes"] = [{"deep": [Bomb()]}]
    else:
        document[("a", Bomb())] = 1
    for legacy in (False, True):
        path = save_parts(tmp_path / "voice.pth", weights, document, legacy=legacy)
        refused(path, "instructions instead of data")
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden vectors are not here")
def test_the_recorded_hostile_voice_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(GOLDEN / "voices" / "variants" / "hostile.pth", "instructions instead of data")
    assert list(tmp_path.iterdir()) == []


def test_attributes_that_would_hide_methods_are_harmless(tmp_path):
    """torch's loader lets a file set attributes of an OrderedDict: `items` would then be a number."""
    tree = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x05sb."
    path = torch_zip(tmp_path / "x.pth", tree)
    assert read_tensors(path, max_bytes=10_000, what="test", error=VoiceFileError) == {}


# --- bombs -----------------------------------------------------------------------------------------------------------

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%btQ"


def tensor_tree(count: bytes, offset: bytes, shape: bytes, stride: bytes) -> bytes:
    """A pickle of {"weight": {"a": tensor}} with any storage size, offset, shape and stride (pickled integers)."""
    storage = STORAGE.replace(b"%b", count)
    return (
        b"\x80\x02}X\x06\x00\x00\x00weight}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
        + storage + offset + b"(" + shape + b"t(" + stride + b"t\x89ccollections\nOrderedDict\n)RtRss."
    )  # fmt: skip


def integer(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((4, 0, 5, 1), "larger than its stored data"),
        ((4, 0, 1 << 36, 0), "larger than its stored data"),
        ((4, 3, 2, 1), "larger than its stored data"),
        ((4, 0, -1, 1), "negative or impossible"),
        ((4, -2, 1, 1), "negative or impossible"),
        ((4, 0, 1, 1 << 60), "negative or impossible"),
        ((1 << 39, 0, 1, 1), "has 8 bytes instead of"),
        ((1 << 62, 0, 1, 1), "negative or impossible"),
        ((2, 0, 1, 1), "has 8 bytes instead of 4"),
    ],
)
def test_tensors_that_claim_more_than_is_stored(numbers, words, tmp_path):
    tree = tensor_tree(*(integer(number) for number in numbers))
    refused(torch_zip(tmp_path / "x.pth", tree, {"x/data/0": bytes(8)}), words)


def test_storages_that_are_not_there(tmp_path):
    tree = tensor_tree(*(integer(number) for number in (4, 0, 4, 1)))
    refused(torch_zip(tmp_path / "x.pth", tree), "data entry '0' is missing")
    tree = tree.replace(b"X\x01\x00\x00\x000X", b"X\x07\x00\x00\x00../evilX")
    refused(torch_zip(tmp_path / "x.pth", tree), "in a way torch.save never does")


def test_an_old_container_that_claims_terabytes_allocates_nothing(tmp_path):
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    tree = tensor_tree(*(integer(number) for number in (1 << 39, 0, 1, 1)))
    (tmp_path / "x.pth").write_bytes(b"".join(head) + tree + pickle.dumps(["0"], protocol=2) + bytes(64))
    refused(tmp_path / "x.pth", "cut off: 1,099,511,6")


def test_one_stored_run_under_many_names_is_not_multiplied(tmp_path):
    weights, document = voice_parts(VoiceRecipe(changes={4: 3000}))
    shared = torch.zeros(3000 * 12 * 3, dtype=torch.float16)
    for name in weights:
        if "ffn_layers" in name:
            weights[name] = shared[: weights[name].numel()].view(weights[name].shape)
    refused(save_parts(tmp_path / "x.pth", weights, document), "tensors claim")


# a call that the safe loader of torch would follow: bytearray(2**44)
TERABYTES = b"c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R"
BOMBS = {
    "bytearray": (b"\x80\x02" + TERABYTES + b".", "class __builtin__.bytearray"),
    "bytearray in a state": (b"\x80\x02ccollections\nOrderedDict\n)R}K\x01" + TERABYTES + b"sb.", "class __built"),
    "bytearray overwritten": (b"\x80\x02}(K\x01" + TERABYTES + b"K\x01K\x01u.", "class __builtin__.bytearray"),
    "doubling list": (b"\x80\x02]q\x00K\x01a" + b"".join(
        b"0]q" + bytes([n + 1]) + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(60)) + b".",
        "unfolds into more than"),
    "doubling tuple as a key": (b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s.", "as a key|POP|damaged|DUP"),
    "deep list": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "12 levels"),
    "deep tuple": (b"\x80\x02K\x01" + b"\x85" * 300_000 + b".", "12 levels"),
    "list in itself": (b"\x80\x02]q\x00h\x00a.", "12 levels"),
    "two million steps": (b"\x80\x02](" + b"K\x01" * 2_000_000 + b"e.", "steps to build"),
    "text of four gigabytes": (b"\x80\x02X\xff\xff\xff\xffabc.", "damaged"),
    "integer of a megabyte": (b"\x80\x02\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b".", "integer of"),
    "digits without end": (b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "damaged|integer of"),
    "memo of two billion": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "a saved int"),
    "nothing on the stack": (b"\x80\x02.", "damaged"),
    "unknown instruction": (b"\x80\x02\xff.", "damaged"),
    "an extension": (b"\x80\x02\x82\x01.", "damaged|instruction EXT1"),
    "text that is no utf-8": (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "damaged"),
    "bytes": (pickle.dumps({"weight": b"abc"}, protocol=4), "holds a bytes"),
    "a set": (b"\x80\x04\x8f.", "holds a set"),
    "a bare class": (b"\x80\x02}X\x06\x00\x00\x00weightctorch\nHalfStorage\ns.", "class torch.HalfStorage"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickle_bombs_do_not_go_off(bomb, tmp_path):
    tree, words = BOMBS[bomb]
    refused(torch_zip(tmp_path / "new.pth", tree), words)
    refused(old_container(tmp_path / "old.pth", tree), words)


def test_zip_bombs_do_not_go_off(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(zipped("x/data.pkl", bytes(50_000_000)))
    refused(path, "is compressed to .* archive bomb")
    torch_zip(path, b"\x80\x02}.", {f"x/data/{number}": b"" for number in range(safe_load.MAX_ENTRIES + 1)})
    refused(path, "archive directory has")
    torch_zip(path, b"\x80\x02" + b"]0" * (safe_load.MAX_TREE_BYTES // 2) + b"}.")
    refused(path, "object tree has")


def test_overlapping_and_doubled_entries_are_refused(tmp_path):
    path = torch_zip(tmp_path / "x.pth", b"\x80\x02}.", {"x/data/0": bytes(4000)})
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x01\x02")  # the directory's entry for data/0: claim ten times the bytes
    struct.pack_into("<2L", content, at + 20, 40_000, 40_000)
    path.write_bytes(content)
    refused(path, "entries claim|damaged")
    with pytest.warns(UserWarning, match="Duplicate name"):
        torch_zip(path, b"\x80\x02}.", {"x/version": b"4\n"})
    refused(path, "same name")


def test_torchscript_is_not_run(tmp_path):
    torch_zip(tmp_path / "x.pt", b"\x80\x02}.", {"x/constants.pkl": b"\x80\x02)."})
    refused(tmp_path / "x.pt", "TorchScript program")


def test_other_models_through_the_same_door_get_their_own_error(tmp_path):
    (tmp_path / "rmvpe.pt").write_bytes(b"<html>")
    with pytest.raises(PitchModelError, match="refused as a pitch model: it is a web page"):
        read_tensors(tmp_path / "rmvpe.pt", max_bytes=10**6, what="pitch model", error=PitchModelError)
