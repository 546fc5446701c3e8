"""Retrieval: search equal to faiss, blending, building, and finding the index of a voice."""

from __future__ import annotations

import re
from pathlib import Path

import faiss
import numpy as np
import pytest

from rvc_spark.errors import IndexFileError, OutputError
from rvc_spark.infer.index import MISSING_DISTANCE, RetrievalIndex, read_index
from rvc_spark.infer.index_build import build_index, cell_count, standard_name
from rvc_spark.infer.index_file import read_header
from rvc_spark.infer.index_find import find_index

GOLDEN = next(
    (
        folder
        for folder in (
            Path(__file__).parent / "golden" / "rvc",
            Path(__file__).parents[2] / "shared" / "golden" / "rvc",
        )
        if (folder / "functions" / "retrieval.npz").exists()
    ),
    None,
)


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    """Vectors around few centres, as speech features lie; one generator makes vectors and queries alike."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(12, dim)) * 0.5
    return (centres[rng.integers(0, 12, count)] + 0.2 * rng.normal(size=(count, dim))).astype(np.float32)


def written(index: faiss.Index, path: Path) -> RetrievalIndex:
    faiss.write_index(index, str(path))
    return read_index(path)


def assert_same_as_faiss(mine: RetrievalIndex, index: faiss.Index, queries: np.ndarray, k: int = 8) -> None:
    distances, ids = mine.search(queries, k)
    their_distances, their_ids = index.search(queries, k)
    np.testing.assert_array_equal(ids, their_ids)
    found = their_ids >= 0
    np.testing.assert_allclose(distances[found], their_distances[found], rtol=2e-5, atol=1e-4)
    assert (distances[~found] == MISSING_DISTANCE).all()


@pytest.mark.parametrize("factory, nprobe", [("IVF20,Flat", 1), ("IVF20,Flat", 5), ("IVF1,Flat", 1), ("Flat", 1)])
@pytest.mark.parametrize("dim", [256, 768])
def test_search_finds_the_same_neighbours_as_faiss(tmp_path: Path, factory: str, nprobe: int, dim: int) -> None:
    vectors = clustered(1500, dim, 0)
    index = faiss.index_factory(dim, factory)
    index.train(vectors)
    index.add(vectors)
    if factory != "Flat":
        index.nprobe = nprobe
    mine = written(index, tmp_path / "a.index")
    assert (mine.dim, mine.count, mine.nprobe) == (dim, 1500, nprobe)
    assert_same_as_faiss(mine, index, clustered(300, dim, 1))


def test_cells_chosen_by_inner_product(tmp_path: Path) -> None:
    vectors = clustered(600, 32, 0)
    centres = np.ascontiguousarray(vectors[:8])
    quantizer = faiss.IndexFlatIP(32)
    index = faiss.IndexIVFFlat(quantizer, 32, 8, faiss.METRIC_L2)
    quantizer.add(centres)
    index.is_trained = True
    index.add(vectors)
    index.nprobe = 2
    assert_same_as_faiss(written(index, tmp_path / "ip.index"), index, clustered(100, 32, 1))


def test_few_filled_cells_are_stored_sparsely_and_read(tmp_path: Path) -> None:
    vectors = clustered(400, 16, 0)
    index = faiss.index_factory(16, "IVF64,Flat")
    index.train(clustered(4000, 16, 5))
    index.add(vectors[:5])
    mine = written(index, tmp_path / "sparse.index")
    assert b"sprs" in (tmp_path / "sparse.index").read_bytes()
    assert_same_as_faiss(mine, index, clustered(60, 16, 1))


def test_direct_maps_are_stepped_over(tmp_path: Path) -> None:
    for kind in (faiss.DirectMap.Array, faiss.DirectMap.Hashtable):
        index = faiss.index_factory(16, "IVF4,Flat")
        vectors = clustered(300, 16, 0)
        index.train(vectors)
        index.add(vectors)
        index.set_direct_map_type(kind)
        assert_same_as_faiss(written(index, tmp_path / "map.index"), index, clustered(20, 16, 1))


def test_large_table_with_an_offset_is_still_searched_exactly(tmp_path: Path) -> None:
    """Far from the origin a float32 expansion |q|^2 - 2qv + |v|^2 loses the neighbours."""
    vectors = clustered(9000, 24, 0) + np.float32(200)
    queries = clustered(40, 24, 1) + np.float32(200)
    index = faiss.IndexFlatL2(24)
    index.add(vectors)
    mine = written(index, tmp_path / "far.index")
    exact = np.square(queries[:, None].astype(np.float64) - vectors[None]).sum(axis=2)
    distances, ids = mine.search(queries)
    np.testing.assert_array_equal(ids, np.argsort(exact, axis=1, kind="stable")[:, :8])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :8], rtol=1e-5)


def test_ids_are_those_of_the_file_not_the_order_of_storage(tmp_path: Path) -> None:
    vectors = clustered(200, 16, 0)
    index = faiss.index_factory(16, "IVF4,Flat")
    index.train(vectors)
    index.add(vectors)
    mine = written(index, tmp_path / "a.index")
    distances, ids = mine.search(vectors, 1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(200))
    assert distances.max() < 1e-6
    np.testing.assert_array_equal(mine.content.vectors[np.argsort(mine.content.ids)], vectors)


@pytest.mark.skipif(GOLDEN is None, reason="no golden vectors here")
def test_golden_search_and_blend() -> None:
    case = np.load(GOLDEN / "functions" / "retrieval.npz", allow_pickle=False)
    index = read_index(GOLDEN / "functions" / "small_ivf4.index")
    distances, ids = index.search(case["in.feats"])
    np.testing.assert_array_equal(ids, case["search.id"])
    np.testing.assert_allclose(distances, case["search.distance"], rtol=1e-5, atol=1e-6)
    blends = [key for key in case.files if re.fullmatch(r"phone\.rate[\d.]+\.(protect0\.5|nopitch)", key)]
    assert blends, "the small set kept in the project may hold fewer rates, but not none"
    for key in blends:
        rate = float(re.findall(r"rate([\d.]+)\.", key)[0])
        blended = np.repeat(index.blend(case["in.feats"], rate), 2, axis=0)
        np.testing.assert_allclose(blended, case[key][0], rtol=1e-5, atol=1e-6)
    assert np.isfinite(index.blend(case["in.feats_exact_hit"], 0.75)).all()


@pytest.mark.skipif(GOLDEN is None, reason="no golden vectors here")
def test_golden_pipeline_indexes_have_their_recorded_shape() -> None:
    found = sorted((GOLDEN / "pipeline").glob("*.index"))
    assert found
    for path in found:
        header = read_header(path)
        dim = 256 if path.stem.endswith("v1") else 768
        assert (header.dim, header.count, header.cells, header.nprobe) == (dim, 240, 6, 1)


def small_index(tmp_path: Path, count: int = 300, dim: int = 16) -> tuple[RetrievalIndex, np.ndarray]:
    vectors = clustered(count, dim, 0)
    index = faiss.index_factory(dim, "IVF6,Flat")
    index.train(vectors)
    index.add(vectors)
    return written(index, tmp_path / "small.index"), vectors


def test_blend_rate_is_a_straight_line_between_frame_and_retrieved(tmp_path: Path) -> None:
    index, _ = small_index(tmp_path)
    queries = clustered(50, 16, 1)
    full = index.blend(queries, 1.0)
    np.testing.assert_array_equal(index.blend(queries, 0.0), queries)
    np.testing.assert_allclose(index.blend(queries, 0.25), 0.25 * full + 0.75 * queries, atol=1e-6)
    assert full.dtype == np.float32 and not np.allclose(full, queries)


def test_exact_hit_returns_the_stored_vector(tmp_path: Path) -> None:
    index, vectors = small_index(tmp_path)
    np.testing.assert_allclose(index.blend(vectors, 1.0), vectors, atol=1e-5)


def test_blend_does_not_change_its_input(tmp_path: Path) -> None:
    index, _ = small_index(tmp_path)
    queries = clustered(5, 16, 1)
    before = queries.copy()
    for rate in (0.0, 0.5):
        index.blend(queries, rate)[:] = 7
    np.testing.assert_array_equal(queries, before)


def test_frame_whose_cell_is_empty_stays_as_it_is(tmp_path: Path) -> None:
    vectors = clustered(300, 16, 0)
    index = faiss.index_factory(16, "IVF6,Flat")
    index.train(vectors)
    centres = index.quantizer.reconstruct_n(0, 6)
    index.add(centres[:1])
    mine = written(index, tmp_path / "empty.index")
    queries = centres[3:5] + np.float32(0.01)
    assert (mine.search(queries)[1] == -1).all()
    np.testing.assert_array_equal(mine.blend(queries, 0.9), queries)


def test_wild_and_broken_frames_never_spread(tmp_path: Path) -> None:
    index, _ = small_index(tmp_path)
    queries = clustered(6, 16, 1)
    queries[1], queries[3], queries[4, 2] = 1e30, np.nan, np.inf
    blended = index.blend(queries, 0.5)
    assert np.isfinite(blended[[0, 1, 2, 5]]).all()
    np.testing.assert_array_equal(blended[[0, 2]], index.blend(queries[[0, 2]], 0.5))
    assert (index.search(queries)[1][[3, 4]] == -1).all()
    assert index.blend(np.empty((0, 16), np.float32), 0.5).shape == (0, 16)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rate_out_of_range(tmp_path: Path, rate: float) -> None:
    index, _ = small_index(tmp_path)
    with pytest.raises(IndexFileError, match="between 0 and 1"):
        index.blend(clustered(2, 16, 1), rate)


def test_wrong_width_names_both(tmp_path: Path) -> None:
    index, _ = small_index(tmp_path)
    index.require_dim(16, "singer")
    with pytest.raises(IndexFileError, match=r"16 numbers.*singer works with 768"):
        index.require_dim(768, "singer")
    for shape in ((3, 17), (16,), (1, 2, 16)):
        with pytest.raises(IndexFileError, match="do not fit"):
            index.search(np.zeros(shape, np.float32))


@pytest.mark.parametrize("count, cells", [(1, 1), (38, 1), (77, 1), (78, 2), (1500, 38), (200_000, 5128)])
def test_cell_count(count: int, cells: int) -> None:
    assert cell_count(count) == cells


@pytest.mark.parametrize("count", [1, 30, 500])
def test_build_reads_back_whole(tmp_path: Path, count: int) -> None:
    features = clustered(count, 256, 0)
    path = tmp_path / standard_name("sängerin", "v1", count)
    built = build_index([features[: count // 2], features[count // 2 :]], path, version="v1", seed=3)
    index = read_index(path)
    assert path.name == f"added_IVF{built.cells}_Flat_nprobe_1_sängerin_v1.index"
    assert (index.count, index.dim, index.cells, index.nprobe) == (count, 256, built.cells, 1)
    by_row = lambda table: table[np.lexsort(table.T)]  # noqa: E731
    np.testing.assert_array_equal(by_row(index.content.vectors), by_row(features))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert_same_as_faiss(index, faiss.read_index(str(path)), clustered(20, 256, 1))


def test_same_seed_same_file_and_input_kept(tmp_path: Path) -> None:
    features = clustered(500, 256, 0)
    before = features.copy()
    files = []
    for seed in (1, 1, 2):
        build_index(features, tmp_path / "x.index", version="v1", seed=seed)
        files.append((tmp_path / "x.index").read_bytes())
    assert files[0] == files[1] != files[2]
    np.testing.assert_array_equal(features, before)


def test_large_sets_are_reduced_to_centres(tmp_path: Path) -> None:
    features = clustered(1200, 256, 0)
    built = build_index(features, tmp_path / "r.index", version="v1", reduce_above=1000, reduce_to=100)
    assert (built.frames, built.vectors, built.cells) == (1200, 100, 2)
    index = read_index(tmp_path / "r.index")
    reach = np.sqrt(index.search(features, 1)[0])
    spread = np.linalg.norm(features - features.mean(axis=0), axis=1)
    assert reach.mean() < 0.7 * spread.mean()


@pytest.mark.parametrize(
    "features, match",
    [
        (np.zeros((5, 100), np.float32), "cannot go into"),
        (np.zeros((0, 256), np.float32), "not one frame"),
        ([], "not one frame"),
        (np.full((5, 256), np.nan, np.float32), "not a number"),
        (np.zeros(256, np.float32), "cannot go into"),
    ],
)
def test_build_refuses(tmp_path: Path, features: np.ndarray, match: str) -> None:
    with pytest.raises(IndexFileError, match=match):
        build_index(features, tmp_path / "x.index", version="v1")
    assert not list(tmp_path.iterdir())


def test_build_refuses_version_and_place(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match="v1, v2"):
        build_index(clustered(5, 256, 0), tmp_path / "x.index", version="v3")
    with pytest.raises(OutputError):
        build_index(clustered(5, 256, 0), tmp_path / "missing" / "x.index", version="v1")


@pytest.fixture(scope="module")
def one_index(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / "x.index"
    build_index(clustered(50, 256, 0), path, version="v1")
    return path.read_bytes()


def place(folder: Path, names: list[str], data: bytes) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "voice, files, chosen",
    [
        ("bob.pth", ["bob.index", "added_IVF1_Flat_nprobe_1_bob_v1.index"], "bob.index"),
        ("bob_e90_s4500.pth", ["added_IVF1_Flat_nprobe_1_bob_v1.index"], "added_IVF1_Flat_nprobe_1_bob_v1.index"),
        ("bob_200e_9000s.pth", ["bob.index"], "bob.index"),
        ("Bob_40k.pth", ["ADDED_IVF1_Flat_nprobe_1_BOB_v1.INDEX"], "ADDED_IVF1_Flat_nprobe_1_BOB_v1.INDEX"),
        ("bob.pth", ["bob_IVF1_Flat_nprobe_1_bob_v1.index"], "bob_IVF1_Flat_nprobe_1_bob_v1.index"),
        ("bob.pth", ["bob_added_IVF1_Flat_nprobe_1_bob_v1.index"], "bob_added_IVF1_Flat_nprobe_1_bob_v1.index"),
        ("bob.pth", ["my_bob_best.index", "bobby.index", "kabob.index"], "my_bob_best.index"),
        ("bob.pth", ["trained_IVF1_Flat_nprobe_1_bob_v1.index", "bobby.index"], None),
        ("untrained_bob.pth", ["untrained_bob.index"], "untrained_bob.index"),
        ("flat.pth", ["added_IVF1_Flat_nprobe_1_bob_v1.index"], None),
        ("1.pth", ["added_IVF1_Flat_nprobe_1_bob_v1.index"], None),
        ("ann.pth", ["bob.index"], None),
        ("J\u00fcrgen.pth", ["added_IVF1_Flat_nprobe_1_Ju\u0308rgen_v1.index"], "any"),
        ("a.b.pth", ["a.b.index", "a.index"], "a.b.index"),
        ("a+(b.pth", ["x_a+(b_y.index"], "x_a+(b_y.index"),
    ],
)
def test_find_by_name(tmp_path: Path, one_index: bytes, voice: str, files: list[str], chosen: str | None) -> None:
    place(tmp_path / "indices" / "deep", files, one_index)
    place(tmp_path / "weights", [voice], b"voice")
    found = find_index(tmp_path / "weights" / voice, [tmp_path / "indices", tmp_path / "weights"], 256)
    if chosen is None:
        assert found.path is None and "no index" in str(found)
    else:
        assert found.path is not None and chosen in ("any", found.path.name) and found.reason in str(found)


def test_ties_are_handed_back_unless_one_lies_beside_the_voice(tmp_path: Path, one_index: bytes) -> None:
    place(tmp_path, ["one/bob.index", "two/bob.index", "weights/bob.pth"], one_index)
    with pytest.raises(IndexFileError, match=r"2 indexes fit .*one.*two"):
        find_index(tmp_path / "weights" / "bob.pth", [tmp_path], 256)
    place(tmp_path, ["weights/bob.index"], one_index)
    found = find_index(tmp_path / "weights" / "bob.pth", [tmp_path], 256)
    assert found.path == tmp_path / "weights" / "bob.index" and "beside" in found.reason


def test_one_file_under_two_names_is_no_tie(tmp_path: Path, one_index: bytes) -> None:
    place(tmp_path, ["logs/bob/bob.index", "weights/bob.pth"], one_index)
    (tmp_path / "indices").mkdir()
    (tmp_path / "indices" / "bob.index").hardlink_to(tmp_path / "logs" / "bob" / "bob.index")
    (tmp_path / "indices" / "bob2.index").symlink_to(tmp_path / "nowhere")
    folders = [tmp_path / "indices", tmp_path / "logs", tmp_path / "logs", tmp_path / "missing"]
    assert find_index(tmp_path / "weights" / "bob.pth", folders, 256).path is not None


def test_other_width_and_damaged_files_are_passed_over(tmp_path: Path, one_index: bytes) -> None:
    place(tmp_path, ["bob.index"], b"<html>not found</html>")
    place(tmp_path, ["added_IVF1_Flat_nprobe_1_bob_v1.index"], one_index)
    found = find_index(tmp_path / "bob.pth", [], 256)
    assert found.path == tmp_path / "added_IVF1_Flat_nprobe_1_bob_v1.index" and "web page" in found.reason
    none = find_index(tmp_path / "bob.pth", [], 768)
    assert none.path is None and "vectors of 256, the voice needs 768" in none.reason


def test_unpacked_archive_with_one_voice_and_one_index(tmp_path: Path, one_index: bytes) -> None:
    place(tmp_path, ["zip/model.pth", "zip/added_IVF1_Flat_nprobe_1_someone_v1.index"], one_index)
    found = find_index(tmp_path / "zip" / "model.pth", [], 256)
    assert found.path is not None and "only index" in found.reason
    assert find_index(tmp_path / "zip" / "model.pth", [tmp_path / "zip"], 256).path == found.path
    place(tmp_path, ["zip/other.pth"], b"voice")
    assert find_index(tmp_path / "zip" / "model.pth", [], 256).path is None


def test_a_folder_of_downloads_is_not_searched_in_depth(tmp_path: Path, one_index: bytes) -> None:
    place(tmp_path, ["model.pth", "project/deep/model.index"], one_index)
    assert find_index(tmp_path / "model.pth", [tmp_path], 256).path is None
    assert find_index(tmp_path / "project" / "other" / "model.pth", [tmp_path], 256).path is not None
    assert find_index(tmp_path / "gone" / "model.pth", [tmp_path / "gone"], 256).path is None


@pytest.mark.skipif(GOLDEN is None, reason="no golden vectors here")
def test_golden_nan_rows_are_the_exact_hits() -> None:
    """The recorded NaN rows of the reference are exactly the frames that equal a stored vector."""
    case = np.load(GOLDEN / "functions" / "retrieval.npz", allow_pickle=False)
    hits = read_index(GOLDEN / "functions" / "small_ivf4.index").search(case["in.feats_exact_hit"], 1)[0][:, 0] < 1e-8
    np.testing.assert_array_equal(np.repeat(hits, 2), case["exact_hit.is_nan_row"])
