"""Fairseq files that were made to attack, exhaust or confuse their reader: refused by name, and nothing ever runs."""

from __future__ import annotations

import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from rvc_spark.errors import EncoderFileError
from rvc_spark.inert_pickle import InertMachine, Name, PickleRefusal, Record, harmful
from rvc_spark.infer.content import load_content_encoder
from rvc_spark.infer.fairseq import read_fairseq
from tests.encoder_files import (
    checkpoint,
    fairseq_weights,
    model_of,
    name,
    storage,
    tensor,
    text,
    torch_zip,
    whole,
    write_fairseq,
)

GOLDEN = Path(__file__).parent / "golden" / "rvc" / "hubert"
CANARY = "RVC_PICKLE_CANARY_EXECUTED"
MAKE = text(f"import os; os.mkdir({CANARY!r})")


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path, monkeypatch):
    """Every test runs in an empty folder that must stay without the canary; a module lies ready to be imported."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "canary_module.py").write_text(f"import os\nos.mkdir({CANARY!r})\nclass Thing: pass\n")
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    yield
    assert not (work / CANARY).exists(), "code in the file was run"
    assert "canary_module" not in sys.modules
    assert {entry.name for entry in work.iterdir()} <= {"canary_module.py"}


def refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "hubert_base.pt"
    path.write_bytes(data)
    for read in (read_fairseq, load_content_encoder):
        with pytest.raises(EncoderFileError, match=words) as caught:
            read(path)
        assert str(tmp_path) not in str(caught.value) and len(str(caught.value)) < 400


CALLS = {
    "os.system by GLOBAL": name("os", "system") + b"(" + text(f"mkdir {CANARY}") + b"tR",
    "posix.mkdir by STACK_GLOBAL": text("posix") + text("mkdir") + b"\x93(" + text(CANARY) + b"tR",
    "os.mkdir by INST": b"(" + text(CANARY) + b"ios\nmkdir\n",
    "os.mkdir by OBJ": b"(" + name("os", "mkdir") + text(CANARY) + b"o",
    "os.mkdir by NEWOBJ": name("os", "mkdir") + b"(" + text(CANARY) + b"t\x81",
    "os.mkdir by NEWOBJ_EX": name("os", "mkdir") + b"(" + text(CANARY) + b"t}\x92",
    "exec": name("builtins", "exec") + b"(" + MAKE + b"tR",
    "eval of Python 2": name("__builtin__", "eval") + b"(" + text(f"__import__('os').mkdir({CANARY!r})") + b"tR",
    "getattr chain": name("builtins", "getattr")
    + b"("
    + name("builtins", "getattr")
    + b"("
    + name("collections", "OrderedDict")
    + text("__init__")
    + b"tR"
    + text("__globals__")
    + b"tR",
    "subprocess": name("subprocess", "Popen") + b"((" + text("mkdir") + text(CANARY) + b"ltR",
    "torch.load": name("torch", "load") + b"(" + text("canary_module.py") + b"tR",
    "torch.hub": name("torch.hub", "load") + b"(" + text("a/b") + b"tR",
    "bytes that are a pickle": name("torch.storage", "_load_from_bytes") + b"(" + text("x") + b"tR",
    "runpy": name("runpy", "run_path") + b"(" + text("canary_module.py") + b"tR",
    "importlib": name("importlib", "import_module") + b"(" + text("canary_module") + b"tR",
    "state into a real class": name("threading", "Thread") + b")\x81}(" + text("_target") + MAKE + b"ub",
    "another pickle": name("pickle", "loads") + b"(" + text("x") + b"tR",
    "pip": name("pip._internal", "main") + b"(" + text("install") + b"tR",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("place", ["instead of the document", "inside the weights", "in an ignored entry"])
def test_calls_are_refused(call, place, tmp_path):
    pickles = {
        "instead of the document": b"\x80\x02" + call + b".",
        "inside the weights": model_of(("a", call)),
        "in an ignored entry": checkpoint(("extra_state", call), ("model", b"}")),
    }
    refused(tmp_path, torch_zip(pickles[place]), "instructions instead of data")


def test_the_hostile_file_of_the_golden_set():
    with pytest.raises(EncoderFileError, match="posix.mkdir"):
        read_fairseq(GOLDEN / "hostile_fairseq.pt")


BROKEN = {
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "text persistent id": (b"\x80\x02Pabc\n.", "PERSID"),
    "numeric persistent id": (b"\x80\x02K\x05Q.", "outside data"),
    "persistent id of a list": (b"\x80\x02]Q.", "outside data"),
    "storage of a class": (checkpoint(("model", storage(1, kind="Tensor"))), "type this reader"),
    "bytearray of terabytes": (b"\x80\x05\x96" + struct.pack("<Q", 2**42) + b".", "damaged"),
    "bytes of terabytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**42) + b".", "damaged"),
    "bytes beyond 64 bits": (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "damaged"),
    "text of gigabytes": (b"\x80\x02X" + b"\xff\xff\xff\x7f.", "damaged"),
    "negative length": (b"\x80\x02T" + struct.pack("<i", -5) + b".", "damaged"),
    "negative LONG4": (b"\x80\x02\x8b" + struct.pack("<i", -1) + b".", "damaged"),
    "integer of 80,000 bits": (b"\x80\x02\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b".", "bits"),
    "integer of 10,000 digits": (b"\x80\x02I" + b"9" * 10_000 + b"\n.", "damaged"),
    "long of 10,000 digits": (b"\x80\x02L" + b"9" * 10_000 + b"L\n.", "damaged"),
    "a million steps": (b"\x80\x02" + b"N0" * 500_000 + b"N.", "steps"),
    "object tree of 20 MB": (b"\x80\x02X" + struct.pack("<I", 20_000_000) + b"a" * 20_000_000 + b".", "bytes, over"),
    "empty stack": (b"\x80\x020.", "damaged"),
    "reduce of nothing": (b"\x80\x02R.", "damaged"),
    "reduce of a text": (b"\x80\x02" + text("os.system") + b")R.", "not the name of a class"),
    "reduce of an instance": (b"\x80\x02" + name("a", "B") + b")R)R.", "not the name of a class"),
    "instance of nothing": (b"\x80\x02(o.", "damaged"),
    "state of a number": (b"\x80\x02K\x01}b.", "inner state"),
    "items of a number": (b"\x80\x02K\x01K\x02K\x03s.", "damaged"),
    "append to a dict": (b"\x80\x02}K\x02a.", "damaged"),
    "key without a value": (b"\x80\x02}(K\x01u.", "damaged"),
    "recall of nothing": (b"\x80\x02h\x07.", "damaged"),
    "no STOP": (b"\x80\x02}", "damaged"),
    "two values at the end": (b"\x80\x02NN.", "damaged"),
    "unknown opcode": (b"\x80\x02\xff.", "damaged"),
    "class name of 10,000 letters": (b"\x80\x02" + name("a" * 10_000, "b") + b".", "class name"),
    "class name with an escape": (b"\x80\x02" + name("a\x1b[2J", "b") + b".", "class name"),
    "class name that is a number": (b"\x80\x02K\x01K\x02\x93.", "class name"),
    "list as a key": (b"\x80\x02}]Ns.", "as a key"),
    "tuple nested 100,000 deep as a key": (b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.", "as a key"),
    "integers that share a hash": (
        b"\x80\x02}(" + b"".join(whole(k * (2**61 - 1)) + b"N" for k in range(1, 3000)) + b"u.",
        "as a key",
    ),
    "100,000 lists in each other": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "no dictionary"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "no dictionary"),
    "two billion memo slots": (b"\x80\x02}r\xff\xff\xff\x7f.", "no weights"),
    "a dictionary given 20,000 pairs again": (
        b"\x80\x02" + name("collections", "OrderedDict") + b"(]q\x00(" + b"h\x00" * 20_000 + b"etR.",
        "fills a dictionary",
    ),
    "marks without an end": (b"\x80\x02" + b"(" * 100_000 + b"N.", "left over"),
    "no weights": (checkpoint(("optimizer", b"}")), "no weights under 'model'"),
    "model is a list": (checkpoint(("model", b"]")), "no weights under 'model'"),
    "model holds numbers": (model_of(("mask_emb", b"K\x01")), "something else than tensors"),
    "a voice": (checkpoint(("weight", b"}"), ("config", b"]")), "it is a voice"),
    "rmvpe": (checkpoint(("unet.encoder.bn.weight", b"N")), "RMVPE"),
    "another network": (model_of(("decoder.embed.weight", tensor(1, (1,), (1,)))), "not a HuBERT"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_broken_trees_are_refused(broken, tmp_path):
    data, words = broken
    refused(tmp_path, torch_zip(data, {"0": bytes(4)}), words)


def test_shared_lists_do_not_unfold(tmp_path):
    """2^60 elements when written out; the file is refused for what it is, not after an hour."""
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
    )
    refused(tmp_path, torch_zip(laughs + b"\x85."), "left over|no dictionary")


TENSORS = {
    "beyond its storage": (tensor(4, (5,), (1,)), "larger than its stored data"),
    "offset beyond its storage": (tensor(4, (4,), (1,), offset=1), "larger than its stored data"),
    "a terabyte out of one number": (tensor(4, (2**40,), (0,)), "larger than its stored data"),
    "strides beyond its storage": (tensor(4, (2, 2), (9, 1)), "larger than its stored data"),
    "negative size": (tensor(4, (-1,), (1,)), "negative or impossible"),
    "negative stride": (tensor(4, (2,), (-1,)), "negative or impossible"),
    "negative offset": (tensor(4, (1,), (1,), offset=-1), "negative or impossible"),
    "size of 100 bits": (tensor(4, (2**100,), (1,)), "negative or impossible"),
    "negative storage": (tensor(-4, (1,), (1,)), "negative or impossible"),
    "twenty dimensions": (tensor(4, (1,) * 20, (1,) * 20), "not a list of sizes"),
    "fewer strides": (tensor(4, (1, 1), (1,)), "differ in number"),
    "storage longer than its entry": (tensor(2**40, (2**40,), (1,)), "larger together than the file|should hold"),
    "storage a little longer": (tensor(5, (5,), (1,)), "should hold 20 bytes"),
    "missing storage": (tensor(4, (4,), (1,), key="7"), "is missing"),
    "storage outside the archive": (tensor(4, (4,), (1,), key="../../etc/passwd"), "is missing"),
    "whole numbers": (tensor(2, (2,), (1,), kind="LongStorage"), "expected a float type"),
}


@pytest.mark.parametrize("hostile", TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_lie_about_their_size(hostile, tmp_path):
    opcodes, words = hostile
    refused(tmp_path, torch_zip(model_of(("mask_emb", opcodes)), {"0": bytes(16)}), words)


def test_a_storage_described_in_two_ways(tmp_path):
    """Each description would read the whole entry again: 4,000 readings of a gigabyte."""
    notes = [(f"encoder.layers.{i}.fc1.bias", tensor(i + 1, (1,), (1,))) for i in range(2)]
    refused(tmp_path, torch_zip(model_of(*notes), {"0": bytes(16)}), "two different ways")
    part = storage(4)[:-2] + b"(" + text("v") + whole(1) + whole(2) + b"ttQ"
    assert storage(4) in tensor(4, (1,), (1,))
    view = tensor(4, (1,), (1,)).replace(storage(4), part)
    refused(tmp_path, torch_zip(model_of(("mask_emb", view)), {"0": bytes(16)}), "two different ways")


def test_many_names_for_the_same_numbers(tmp_path):
    """4,000 tensors of 1 MB out of one storage would be 4 GB out of a file of 1 MB."""
    one = tensor(2**18, (2**18,), (1,))
    names = [(f"encoder.layers.{i}.fc1.bias", one) for i in range(3_000)]
    refused(tmp_path, torch_zip(model_of(*names), {"0": bytes(2**20)}), "larger together than the file")


def test_containers_that_are_no_checkpoint(tmp_path):
    for data, words in (
        (b"", "empty"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "LFS"),
        (b"\x00" * 4096, "zeros"),
        (os.urandom(8).hex().encode(), "text"),
        (b"PK\x03\x04", "truncated"),
        (b"PK\x03\x04" + b"\x00" * 5000, "truncated"),
        (pickle.dumps({"model": {}}), "not one that torch.save wrote"),
        (b"\x80\x02.", "damaged|not one that torch.save wrote"),
        (torch_zip(b"\x80\x02}.")[:-30], "truncated|damaged"),
        (
            torch_zip(model_of(("mask_emb", tensor(1, (1,), (1,)))), {"0": b"abcd"}).replace(b"abcd", b"abce", 1),
            "damaged",
        ),
    ):
        refused(tmp_path, data, words)


def test_archives_that_are_not_of_torch(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50_000_000))
    refused(tmp_path, path.read_bytes(), "archive bomb")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path, path.read_bytes(), "no single data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("b/data.pkl", b"\x80\x02}.")
    refused(tmp_path, path.read_bytes(), "no single data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(21_000):
            archive.writestr(f"{i}", b"")
    refused(tmp_path, path.read_bytes(), "entries")
    big = torch_zip(b"\x80\x02}.").replace(b"little", b"big   ")
    refused(tmp_path, big, "big-endian|damaged")


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")  # opening it would wait for ever
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    for path in (tmp_path / "pipe.pt", tmp_path / "loop.pt", tmp_path / "none.pt", "a\0b.pt", "x" * 5000, "/dev/zero"):
        with pytest.raises(EncoderFileError):
            load_content_encoder(path)
    with pytest.raises(EncoderFileError, match="regular file"):
        read_fairseq(tmp_path)


def test_foreign_classes_stay_records(tmp_path):
    """A class nobody has heard of is harmless here: it is not imported, and the weights are read."""
    weights = fairseq_weights()
    good = write_fairseq(tmp_path / "good.pt")
    with zipfile.ZipFile(good) as archive:
        folder = archive.namelist()[0].split("/")[0]
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    thing = name("canary_module", "Thing") + b")\x81}(" + text("x") + b"K\x01ub"
    tree = entries[f"{folder}/data.pkl"]
    assert tree.startswith(b"\x80\x02}q\x00(")
    entries[f"{folder}/data.pkl"] = tree[:6] + text("extra") + thing + tree[6:]
    with zipfile.ZipFile(tmp_path / "foreign.pt", "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    read = read_fairseq(tmp_path / "foreign.pt")
    assert torch.equal(read["masked_spec_embed"], weights["mask_emb"])


def test_the_old_container(tmp_path):
    """Before torch 1.6 a checkpoint was a plain stream; it gives the same numbers, and its damage is noticed."""
    path = write_fairseq(tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    new = read_fairseq(write_fairseq(tmp_path / "new.pt"))
    old = read_fairseq(path)
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in new)
    data = path.read_bytes()
    refused(tmp_path, data[:-1], "end too early")
    refused(tmp_path, data[: len(data) // 2], "end too early|damaged")
    first = fairseq_weights()["mask_emb"].half().numpy().tobytes()
    place = data.index(first) - 8
    assert int.from_bytes(data[place : place + 8], "little") == 24
    refused(tmp_path, data[:place] + struct.pack("<q", -24) + data[place + 8 :], "another length")
    refused(tmp_path, data[:place] + struct.pack("<q", 2**40) + data[place + 8 :], "another length")


def test_damaged_bytes_never_get_further_than_a_refusal(tmp_path):
    """A few hundred random changes to both containers; a longer run of the same is how the parser was fuzzed."""
    rng = random.Random(7)
    path = tmp_path / "fuzzed.pt"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        good = write_fairseq(tmp_path / "good.pt", **options).read_bytes()
        tree = len(good) if not options else 20_000
        for _ in range(120):
            data = bytearray(good)
            for _ in range(rng.choice((1, 1, 3, 20))):
                data[rng.randrange(tree)] = rng.randrange(256)
            path.write_bytes(data[: rng.randrange(tree)] if rng.random() < 0.1 else data)
            try:
                read_fairseq(path)
            except EncoderFileError:
                pass


def test_what_counts_as_harmful():
    for module, leaf in (
        ("os", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("sys", "modules"),
        ("torch", "load"),
    ):
        assert harmful(Name(module, leaf))
    for module, leaf in (
        ("fairseq.data.dictionary", "Dictionary"),
        ("omegaconf.dictconfig", "DictConfig"),
        ("argparse", "Namespace"),
        ("typing", "Any"),
        ("__builtin__", "dict"),
        ("torch", "float16"),
        ("numpy.core.multiarray", "scalar"),
    ):
        assert not harmful(Name(module, leaf))


def test_the_machine_reads_what_pickle_wrote():
    """Plain data of every protocol comes out as pickle itself would give it."""
    data = {
        "a": [1, -2, 2**70, 1.5, None, True, b"xy", "ä"],
        "b": {"c": (1, (2, 3), ())},
        7: {1, 2},
        "d": frozenset("q"),
    }

    def no_outside(identity: object) -> object:
        raise PickleRefusal("none")

    for protocol in range(5):
        machine = InertMachine(pickle.dumps(data, protocol), {"builtins.set": lambda a: set(*a)} | _old(), no_outside)
        read = machine.load()
        assert read["a"][:6] == data["a"][:6] and read["b"] == data["b"] and read["a"][7] == "ä"
        assert isinstance(read[7], set | Record)


def _old() -> dict:
    return {"__builtin__.set": lambda arguments: set(*arguments)}
