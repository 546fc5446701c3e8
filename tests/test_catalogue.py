"""The list of files: complete, pinned, and strict about what anybody writes into it."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml

from rvc_spark.catalogue import BUILT_IN, Catalogue, read_catalogue
from rvc_spark.errors import AssetError


@pytest.fixture(scope="module")
def built_in() -> Catalogue:
    return read_catalogue()


def test_everything_is_pinned_or_needs_a_decision(built_in: Catalogue) -> None:
    unpinned = [asset for asset in built_in.assets.values() if asset.sha256 is None]
    assert {group for asset in unpinned for group in asset.groups} == {"spark"}
    for asset in built_in.assets.values():
        for source in asset.sources:
            assert source.kind != "hf" or re.fullmatch(r"[0-9a-f]{40}", source.revision), asset.id
            assert source.kind in ("hf", "archive") or source.url.startswith("https://"), asset.id


def test_non_commercial_weights_must_be_accepted(built_in: Catalogue) -> None:
    assert all(asset.accept == ("-NC-" in asset.licence) for asset in built_in.assets.values())
    assert {asset.id for asset in built_in.assets.values() if asset.accept} == set(built_in.groups["spark"])


@pytest.mark.parametrize(
    ("asset_id", "size", "digest"),
    [
        ("hubert-base", 189507909, "f54b40fd"),
        ("hubert-model", 189206711, "cc8c20f4"),
        ("rmvpe", 181184272, "6d62215f"),
        ("hubert-config", 1492, "03469507"),
        ("contentvec-model", 378342945, "d8dd400e"),
        ("rmvpe-onnx", 361688443, "5370e71a"),
        ("pretrained-v2-f0g48k", 75465569, "b5d51f58"),
        ("pretrained-v2-f0d40k", 142875703, "6b6ab091"),
        ("pretrained-v1-f0g32k", 72795627, "285f524b"),
        ("spark-bicodec-model", 625518756, "e9940cd4"),
        ("htdemucs-955717e8", 84025440, "d9fa1413"),
        ("htdemucs-6s-5c90dfd2", 54885744, "d2a1745f"),
        ("htdemucs-ft-04573f0d", 84025440, "68854b0d"),
        ("htdemucs-legacy", 84141911, "8726e21a"),
        ("mute-features-v2", 457856, "16ef62b9"),
        ("uvr-reverb-hq", None, "233bb5c6"),
    ],
)
def test_known_facts(built_in: Catalogue, asset_id: str, size: int | None, digest: str) -> None:
    asset = built_in.get(asset_id)
    assert asset.bytes == size and asset.sha256 is not None and asset.sha256.startswith(digest)


def test_groups_give_whole_sets(built_in: Catalogue) -> None:
    assert [asset.path for asset in built_in.select(groups=["infer"])] == [
        "hubert/hubert_base/pytorch_model.bin",
        "hubert/hubert_base/config.json",
        "hubert/hubert_base/preprocessor_config.json",
        "rmvpe/rmvpe.pt",
    ]
    assert {len(built_in.groups[group]) for group in ("train-v1", "train-v1-nof0", "train-v2-nof0")} == {6}
    assert len(built_in.groups["mute"]) == 8 and len(built_in.groups["spark"]) == 14
    assert len(built_in.select()) == len(built_in.assets)
    with pytest.raises(AssetError, match="Groups: .*infer"):
        built_in.select(groups=["inference"])


GOOD = {
    "id": "x",
    "path": "a/x.bin",
    "bytes": 5,
    "sha256": "0" * 64,
    "licence": "MIT",
    "groups": ["g"],
    "needed_by": "tests",
    "sources": [{"https": "https://example.com/x"}],
}


def document(**changes: object) -> dict:
    return {"version": 1, "assets": [{**GOOD, **changes}]}


def read(tmp_path: Path, content: object, user: bool = False) -> Catalogue:
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    return read_catalogue(BUILT_IN, path) if user else read_catalogue(path)


def test_a_good_entry_is_read(tmp_path: Path) -> None:
    asset = read(tmp_path, document(bytes=None)).get("x")
    assert (asset.bytes, asset.path, asset.groups, asset.accept) == (None, "a/x.bin", ("g",), False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "../x"}, "id"),
        ({"id": None}, "no 'id'"),
        ({"id": 7}, "not a str"),
        ({"path": "../x"}, "path"),
        ({"path": "/etc/x"}, "path"),
        ({"path": "a\\x"}, "path"),
        ({"path": ".state/x"}, "path"),
        ({"path": "a//x"}, "path"),
        ({"path": "C:x"}, "path"),
        ({"bytes": 0}, "outside"),
        ({"bytes": -1}, "outside"),
        ({"bytes": True}, "not a int"),
        ({"bytes": "5"}, "not a int"),
        ({"bytes": 1 << 60}, "outside"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"sha256": "G" * 64}, "sha256"),
        ({"licence": None}, "no 'licence'"),
        ({"groups": "g"}, "not a list"),
        ({"groups": [1]}, "not names"),
        ({"surprise": 1}, "unknown fields: surprise"),
        ({"sources": []}, "no sources"),
        ({"sources": [{}]}, "exactly one"),
        ({"sources": ["https://x"]}, "must be a mapping"),
        ({"sources": [{"https": "http://example.com/x"}]}, "only https"),
        ({"sources": [{"ftp": "x"}]}, "understood"),
        ({"sources": [{"https": "file:///etc/passwd"}]}, "only https"),
        ({"sources": [{"hf": "a/b"}]}, "understood"),
        ({"sources": [{"https": "https://u:p@example.com/x"}]}, "password"),
        ({"sources": [{"gdown": "x y"}]}, "understood"),
        ({"sources": [{"https": "https://example.com:x/"}]}, "not a URL"),
        ({"sources": [{"hf": "a/b@m:../x"}]}, "understood"),
        ({"sources": [{"archive": "gone:x"}]}, "cannot be fetched"),
        ({"sha256": None, "sources": [{"hf": "a/b@main:x"}]}, "commit"),
        ({"sha256": None, "sources": [{"gdown": "0123456789abc"}]}, "must have a sha256"),
        ({"sources": [{"https": "https://exämple.com/x"}]}, "refused"),
        ({"sources": [{"https": "https://a b/"}]}, "refused"),
    ],
)
def test_wrong_entries_name_the_field(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(AssetError, match=re.escape(words)) as caught:
        read(tmp_path, document(**changes))
    assert "c.yaml" in str(caught.value) or "x comes from" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"version: 2",
        b"version: 1\nversion: 1",
        b"\xff\xfe\x00",
        b"a: &a [1]\nb: *a",
        b"!!python/object:os.x {}",
        b"{" * 5000,
        b"[" * 200_000,
        b"version: 1\nassets: {}",
        b"version: 1\nextra: 1",
        b"x" * (2 << 20),
        b"1: 2",
        b"version: 1\n? [a]\n: b",
    ],
)
def test_files_that_are_no_catalogue_are_named_errors(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(AssetError):
        read(tmp_path, content)


def test_entries_must_not_share_an_id_or_a_place(tmp_path: Path) -> None:
    for second in ({"path": "b"}, {"id": "y", "path": "A/X.bin"}):
        entries = document()["assets"] + copy.deepcopy(document(**second)["assets"])
        with pytest.raises(AssetError, match="twice"):
            read(tmp_path, {"version": 1, "assets": entries})


def test_users_add_files_sources_and_mirrors_but_change_nothing(tmp_path: Path, built_in: Catalogue) -> None:
    mine = {
        "version": 1,
        "assets": [GOOD],
        "sources": {"rmvpe": [{"https": "https://lan.example/rmvpe.pt"}]},
        "mirrors": [{"prefix": "https://huggingface.co/", "use": "https://hf-mirror.example/"}],
    }
    wide = read(tmp_path, mine, user=True)
    rmvpe, before = wide.get("rmvpe"), built_in.get("rmvpe")
    assert (rmvpe.sha256, rmvpe.path) == (before.sha256, before.path) and wide.get("x").path == "a/x.bin"
    assert any(source.url.startswith("https://hf-mirror.example/lj1995/") for source in rmvpe.sources)
    assert any(source.url == "https://lan.example/rmvpe.pt" for source in rmvpe.sources)
    # a mirror is only as good as the sha256
    assert wide.get("spark-config").sources == built_in.get("spark-config").sources
    for bad in ({**GOOD, "id": "rmvpe"}, {**GOOD, "path": "rmvpe/RMVPE.pt"}):
        with pytest.raises(AssetError, match="built in"):
            read(tmp_path, {"version": 1, "assets": [bad]}, user=True)
    with pytest.raises(AssetError, match="no asset 'nothing'"):
        read(tmp_path, {"version": 1, "sources": {"nothing": [{"https": "https://a.example/"}]}}, user=True)
    with pytest.raises(AssetError, match="only https"):
        read(tmp_path, {"version": 1, "mirrors": [{"prefix": "https://a/", "use": "http://b/"}]}, user=True)
    with pytest.raises(AssetError, match="cannot be read"):
        read_catalogue(BUILT_IN, tmp_path / "missing.yaml")
