"""Neighbours are those of brute force in NumPy, whatever the blocks; what has no vector is left out and counted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genenc_core import api, errors
from genenc_core.dataset.rows import Images
from genenc_core.features import search, vectors
from genenc_core.features.parameters import SearchParameters
from genenc_core.store.backends.objects import open_objects
from genenc_core.stored.arrays import Array
from genenc_core.stored.rows import Stored

Call = Callable[..., api.Run]


class InMemory(Stored):
    """Rows that are not stored anywhere."""

    def __init__(self, values: np.ndarray, status: np.ndarray, *, chunk_rows: int = 1) -> None:
        self.place, self.identity = "memory", {"products": ["v=x"]}
        self.points = tuple(f"p{at}" for at in range(values.shape[1])) if values.ndim == 3 else ()
        self._values = {"v": values, "status": status}
        dims = ("point", "channel") if values.ndim == 3 else ("channel",)
        names = [f"i{at}" for at in range(len(values))]
        table = pa.table({"image_id": pa.array(names, pa.large_string())})
        self.images = Images(table, np.empty((len(values), 0, 2)))
        self.arrays = {  # type: ignore[misc]
            "v": Array("v", values.dtype, values.shape[1:], dims, chunk_rows, {}, str(values.dtype)),
            "status": Array("status", status.dtype, (), (), 1, {}, "uint8"),
        }

    def take(self, name: str, positions: np.ndarray) -> np.ndarray:
        return self._values[name][positions]


def brute_force(values: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Return the distances of all vectors at once, float64; NaN of those that have none."""
    values, query = values.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(values - query, axis=-1)
    lengths = np.linalg.norm(values, axis=-1) * np.linalg.norm(query)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (values @ query) / lengths


@st.composite
def drawn(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors, some of them equal, zero or not finite, and the states of their rows."""
    rows, channels = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    points = draw(st.integers(0, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = random.normal(size=(draw(st.integers(1, 6)), channels)).astype(draw(st.sampled_from(["f4", "f2"])))
    shape = (rows, points) if points else (rows,)
    values = kinds[random.integers(0, len(kinds), shape)]
    values[random.random(shape) < 0.1] = 0
    values[random.random(shape) < 0.1, 0] = np.nan
    return values, random.choice(np.array([0, 1, 1, 1, 2], np.uint8), rows)


@settings(max_examples=300, deadline=None)
@given(data=drawn(), metric=st.sampled_from(["cosine", "l2"]), top=st.integers(1, 50), memory=st.integers(1, 400))
def test_it_is_brute_force(data: tuple[np.ndarray, np.ndarray], metric: str, top: int, memory: int) -> None:
    values, status = data
    query = np.random.default_rng(0).normal(size=values.shape[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MEBIBYTE", 1)
        patch.setattr(search, "_PIECE_VALUES", memory)
        options: dict[str, Any] = {"point": "p0", "any_point": True} if values.ndim == 3 else {}
        asked = SearchParameters(source="memory", row="#0", metric=metric, top=top, memory=memory, **options)
        found = search.nearest(InMemory(values, status), "v", query, asked, asked="")
    distance = brute_force(values, query, metric).reshape(-1)
    ok = np.repeat(status == 1, values[0].size // values.shape[-1])
    usable = np.flatnonzero(ok & np.isfinite(distance))
    assert found.searched == len(usable)
    finite = ok & np.isfinite(values).all(axis=-1).reshape(-1)
    assert found.left_out.get("zero", 0) == (int((finite & ~np.isfinite(distance)).sum()))
    assert found.left_out.get("not_finite", 0) == int((ok & ~finite).sum())
    assert found.left_out.get("unreadable", 0) == int((status == 2).sum())
    assert found.left_out.get("not_written", 0) == int((status == 0).sum())
    # Equal vectors have equal distances: in the order of rows. Others may be equal but for rounding.
    rounded = np.round(distance[usable], 9)
    order = usable[np.argsort(rounded, kind="stable")][:top]
    per_row = values[0].size // values.shape[-1]
    at = found.rows * per_row + [int(each.point[1:] or 0) if each.point else 0 for each in found.found]
    np.testing.assert_allclose(found.distances, distance[order], atol=1e-7)
    assert at.tolist() == order.tolist()
    assert found.block_bytes <= max(memory, values[:1].nbytes)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_equal_vectors_are_in_the_order_of_rows_and_at_distance_0(metric: str) -> None:
    """Also in blocks of other lengths, and of channels that do not fill a processor's registers."""
    random = np.random.default_rng(1)
    for channels in (1, 7, 64, 771):
        values = random.normal(size=(101, channels)).astype(np.float32)
        values[[3, 50, 99, 100]] = values[77]
        rows = InMemory(values, np.ones(101, np.uint8))
        for memory in (1, 5000, 10**6):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(search, "MEBIBYTE", 1)
                patch.setattr(search, "_PIECE_VALUES", memory)
                asked = SearchParameters(source="m", row="#77", metric=metric, top=5, memory=memory)
                found = search.nearest(rows, "v", values[77], asked, asked="")
            if channels > 1:
                assert found.rows.tolist()[:5] == [3, 50, 77, 99, 100]
            assert found.distances[0] == 0


def test_blocks_are_whole_chunks_where_they_fit() -> None:
    rows = InMemory(np.zeros((100, 4), np.float32), np.ones(100, np.uint8), chunk_rows=8)
    own = vectors.Vectors(rows, "v")
    assert [own.block_rows(memory) for memory in (1, 16, 100, 128, 300)] == [1, 1, 6, 8, 16]
    assert [block.start for block in own.blocks(300)] == list(range(0, 100, 16))


@pytest.mark.slow
def test_a_row_is_found_with_its_own_image(
    extract: Call, photos: Path, labels: Path, tmp_path: Path, unchanged: Callable[[Path], Callable[[], None]]
) -> None:
    """Whatever batch it was in: of 3, or alone at the end of a shard of 4."""
    extract("run", points=str(labels))
    check = unchanged(tmp_path / "run")
    copy = tmp_path / "query.png"
    for row in (0, 3, 7, 10):
        shutil.copy(photos / f"img_{row:03d}.png", copy)
        for metric in ("cosine", "l2"):
            found = api.search(tmp_path / "run", like=copy, metric=metric, top=2, trust=True)
            assert (found.found[0].row, found.found[0].distance) == (row, 0)
            assert found.found[1].distance > 0
            assert found.searched == 11
    check()


@pytest.mark.slow
def test_a_pixel_of_an_image_is_found_at_its_point(extract: Call, photos: Path, labels: Path, tmp_path: Path) -> None:
    run = extract("run", points=str(labels))
    arrays = run.arrays()
    x, y = (float(arrays[name][6, 1]) for name in ("point_x", "point_y"))
    image = photos / "img_006.png"
    found = api.search(tmp_path / "run", like=image, at=f"{x},{y}", point="tail", top=3, trust=True)
    assert (found.image_ids[0], found.found[0].point) == ("img_006.png", "tail")
    assert found.distances[0] == pytest.approx(0, abs=1e-12)
    assert found.left_out == {"not_finite": 2}  # a label that is missing, and an image without labels
    everywhere = api.search(tmp_path / "run", row="img_006.png", point="tail", any_point=True, top=40)
    assert {each.point for each in everywhere.found} == {"nose", "tail"}
    assert (6, "tail") not in [(each.row, each.point) for each in everywhere.found]
    expected = arrays.probes.values.reshape(22, -1)
    usable = [at for at in range(22) if np.isfinite(expected[at]).all() and at != 13]
    distance = brute_force(expected[usable], expected[13], "cosine")
    at = [each.row * 2 + ("nose", "tail").index(each.point) for each in everywhere.found]
    assert sorted(at) == usable
    np.testing.assert_allclose(everywhere.distances, np.sort(distance), atol=1e-9)


@pytest.mark.slow
def test_versions_are_searched_and_unreadable_rows_counted(grown: Path, photos: Path) -> None:
    for version in (1, 2, 3):
        opened = api.Dataset.open(grown, version)
        arrays = opened.arrays()
        values, names = arrays.features.values, arrays.image_id.values.tolist()
        ok = arrays.status.values == 1
        asked = "img_005.png"
        found = api.search(grown, row=asked, version=version, top=50)
        distance = brute_force(values, values[names.index(asked)], "cosine")
        usable = [at for at in np.flatnonzero(ok).tolist() if names[at] != asked]
        assert found.rows.tolist() == sorted(usable, key=lambda at: (round(distance[at], 12), at))
        assert found.image_ids == [names[at] for at in found.rows]
        assert found.left_out == ({"unreadable": 1} if version > 1 else {})
        assert found.version == version
    found = api.search(grown, like=photos / "renamed.png", top=1, trust=True)
    assert (found.image_ids, found.distances.tolist()) == (["renamed.png"], [0.0])


@pytest.mark.slow
def test_on_s3(extract: Call, photos: Path, bucket: str, tmp_path: Path) -> None:
    extract("run")
    objects, own = open_objects(bucket), open_objects(tmp_path / "run")
    for key, _ in own.walk(""):
        objects.write_new(key, own.read(key, most=None))
    here, there = (api.search(place, like=photos / "img_004.png", trust=True) for place in (tmp_path / "run", bucket))
    assert here.found == there.found


@pytest.mark.slow
def test_a_row_is_not_its_own_neighbour(extract: Call, labels: Path, tmp_path: Path) -> None:
    extract("plain")
    extract("labelled", points=str(labels))
    for place in ("plain", "labelled"):
        found = api.search(tmp_path / place, row="#4", top=11)
        assert sorted(found.rows.tolist()) == [row for row in range(11) if row != 4]
        assert found.searched == 10


@pytest.mark.slow
def test_a_vector_of_ones_own(extract: Call, tmp_path: Path) -> None:
    run = extract("run")
    values = run.arrays().features.values
    found = api.search(tmp_path / "run", vector=values[2:5].mean(axis=0), metric="l2", top=11)
    np.testing.assert_allclose(found.distances, np.sort(np.linalg.norm(values - values[2:5].mean(axis=0), axis=1)))
    with pytest.raises(errors.InputError, match="the vector has 3 values, those of 'features' have"):
        api.search(tmp_path / "run", vector=np.ones(3))
    with pytest.raises(errors.InputError, match="all zeros, which has no direction"):
        api.search(tmp_path / "run", vector=np.zeros(values.shape[1]))


@pytest.mark.slow
def test_what_is_wrong_is_named(extract: Call, photos: Path, labels: Path, tmp_path: Path) -> None:
    (photos / "img_003.png").write_bytes(b"no image")
    extract("run", points=str(labels), max_failures="100%")
    place = tmp_path / "run"
    for options, words in (
        ({}, "one of --like IMAGE and --row"),
        ({"row": "img_0"}, "has no image 'img_0'"),
        ({"row": "#11"}, "rows #0 to #10"),
        ({"row": "img_003.png"}, "its row is unreadable"),
        ({"row": "img_010.png", "point": "nose"}, "its vector is not finite"),
        ({"row": "#1", "point": "ear"}, "no point 'ear': it has nose, tail"),
        ({"row": "#1", "product": "features", "point": "nose"}, "one vector for each image"),
        ({"row": "#1", "product": "probes"}, "add --point NAME"),
        ({"row": "#1", "product": "feature"}, "did you mean 'features'"),
        ({"row": "#1", "version": "2"}, "single run"),
        ({"like": str(tmp_path / "no.png")}, "is no file"),
        ({"like": str(photos / "img_003.png"), "trust": True}, "cannot be read"),
        ({"like": str(photos / "img_001.png"), "point": "nose"}, "needs --at X,Y"),
        ({"like": str(photos / "img_001.png"), "at": "3;4", "point": "nose"}, "is no pixel"),
        ({"like": str(photos / "img_001.png"), "at": "3,400", "point": "nose", "trust": True}, "outside image"),
        ({"row": "#1", "top": 0}, "top 0 is not valid"),
    ):
        with pytest.raises(errors.InputError, match=words):
            api.search(place, **options)


@pytest.mark.slow
def test_damage_is_no_neighbour(extract: Call, tmp_path: Path) -> None:
    extract("run")
    (tmp_path / "run" / "features.zarr" / "features" / "c.1.0").unlink()
    with pytest.raises(errors.StoreError, match=r"'features/c\.1\.0' of .* is missing"):
        api.search(tmp_path / "run", row="#0")
    shutil.copy(
        tmp_path / "run" / "features.zarr" / "features" / "c.0.0",
        tmp_path / "run" / "features.zarr" / "features" / "c.1.0",
    )
    with (tmp_path / "run" / "features.zarr" / "features" / "c.1.0").open("r+b") as file:
        file.write(b"\0\1\2\3")
    with pytest.raises(errors.StoreError, match="is damaged"):
        api.search(tmp_path / "run", row="#0")
