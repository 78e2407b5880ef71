"""A version reads as one xarray Dataset: current rows of all parts, lazily, and only the parts that it was made of."""

import contextlib
import pickle
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import s3_server
import synthetic_dataset
from genenc_core import api, errors
from genenc_core.dataset import reading, rows, update
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import Root
from synthetic_dataset import Made

Update = Callable[..., update.Updated]
LENGTHS = (21, 1, 8, 30)
GONE: dict[int, Sequence[int]] = {1: (0, 3, 4, 5, 20), 3: tuple(range(8)), 4: (*range(7, 25), 29)}
"""Rows that are no longer current, by part: a whole part, whole shards and single ones of another."""
ROWS = sum(LENGTHS) - sum(map(len, GONE.values()))


def arrays(folder: DatasetFolder, version: int | str | None = None) -> xarray.Dataset:
    return api.Dataset.open(folder.root, version).arrays()


def changed(kind: str, gone: dict[int, Sequence[int]]) -> pa.Table:
    """Return a change of rows, given by part."""
    pairs = np.array([(part, row) for part, found in gone.items() for row in found], np.int64).reshape(-1, 2)
    return rows.changed(pairs[:, 0], pairs[:, 1], kind)


def withdrawn(gone: dict[int, Sequence[int]]) -> pa.Table:
    return changed(rows.WITHDRAWN, gone)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A dataset whose version 1 has all rows, and version 2 those that are not in `GONE`; not to be changed."""
    found = synthetic_dataset.make(tmp_path_factory.mktemp("made") / "dataset", LENGTHS)
    synthetic_dataset.change(found, withdrawn(GONE))
    return found


@pytest.fixture
def own(tmp_path: Path) -> Made:
    """A small dataset to change."""
    return synthetic_dataset.make(tmp_path / "dataset", (5, 12))


@pytest.fixture(params=[None, 1])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of the usual size, or of single stored objects."""
    if request.param:
        monkeypatch.setattr(reading, "_PIECE_BYTES", request.param)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the files that are read from local folders."""
    seen: list[str] = []
    opened = local.LocalObjects.open

    def observed(self: local.LocalObjects, key: str, **options: Any) -> Any:
        seen.append(key)
        return opened(self, key, **options)

    monkeypatch.setattr(local.LocalObjects, "open", observed)
    return seen


def below_parts(seen: list[str]) -> list[str]:
    return [key for key in seen if key.startswith("parts/")]


def positions(length: int) -> st.SearchStrategy[Any]:
    """Whatever an axis can be indexed with."""
    one = st.integers(-length, length - 1)
    many = st.lists(one, max_size=2 * length).map(lambda found: np.array(found, np.int64))
    mask = st.lists(st.booleans(), min_size=length, max_size=length).map(np.array)
    # xarray fails at some empty slices of a negative step.
    slices = st.slices(length).filter(lambda found: len(range(*found.indices(length))) > 0)
    return one | slices | many | mask


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(), version=st.sampled_from([1, 2]), name=st.sampled_from(["features", "maps", "image_id", "status"])
)
def test_every_kind_of_indexing_is_that_of_numpy(
    made: Made, piece_bytes: None, data: st.DataObject, version: int, name: str
) -> None:
    expected = made.current(name, {} if version == 1 else GONE)
    found = arrays(made.folder, version)[name]
    assert found.shape == expected.shape
    for axis, length in enumerate(expected.shape):
        at = data.draw(positions(length), label=f"axis {axis}")
        dim = found.dims[-(expected.ndim - axis)]
        found = found.isel({dim: at})
        expected = expected[(*[slice(None)] * axis, at)] if np.ndim(at) or isinstance(at, slice) else expected
        if not (np.ndim(at) or isinstance(at, slice)):
            expected = np.take(expected, [at], axis=axis)
    np.testing.assert_array_equal(found.values, expected.reshape(found.shape))


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.integers(-ROWS, ROWS - 1), st.integers(-5, 4)), min_size=1))
def test_pairs_of_positions_are_those_of_numpy(made: Made, pairs: list[tuple[int, int]]) -> None:
    row, channel = np.array(pairs).T
    at = {"image": xarray.DataArray(row, dims="pair"), "features_channel": xarray.DataArray(channel, dims="pair")}
    found = arrays(made.folder).features.isel(at)
    assert found.dims == ("pair",)
    np.testing.assert_array_equal(found.values, made.current("features", GONE)[row, channel])


def test_a_row_that_is_not_there_is_an_index_error(made: Made) -> None:
    for at in (ROWS, [0, ROWS], [ROWS + 3, 1]):
        with pytest.raises(IndexError, match=f"no row {np.max(at)} in .*, which has {ROWS}"):
            arrays(made.folder).features[at].load()


def test_all_arrays_are_those_of_the_parts(made: Made, piece_bytes: None) -> None:
    found = arrays(made.folder).load()
    names = set(made.blocks[0])
    assert names <= set(found.variables)
    for name in names:
        np.testing.assert_array_equal(found[name].values, made.current(name, GONE))


def test_images_and_points_are_selected_by_name(made: Made) -> None:
    found = arrays(made.folder)
    names = made.current("image_id", GONE).tolist()
    np.testing.assert_array_equal(
        found.features.sel(image_id="p4-3.png").values, made.current("features", GONE)[names.index("p4-3.png")]
    )
    asked = ["p4-28.png", "p1-1.png", "p4-28.png"]
    at = [names.index(name) for name in asked]
    selected = found.sel(image_id=asked, point="tail")
    np.testing.assert_array_equal(selected.point_x.values, made.current("point_x", GONE)[at, 1])
    assert selected.image_id.values.tolist() == asked
    np.testing.assert_array_equal(
        selected.sel(image_id="p1-1.png").maps.values, made.current("maps", GONE)[names.index("p1-1.png")]
    )
    assert found.sel(point=["tail", "snout"]).point.values.tolist() == ["tail", "snout"]
    with pytest.raises(KeyError, match=r"p1-0|image_id"):
        found.sel(image_id="p1-0.png")  # withdrawn
    assert arrays(made.folder, 1).sel(image_id="p1-0.png").status == made.blocks[0]["status"][0]


@pytest.mark.slow
def test_names_index_like_any_coordinate(made: Made) -> None:
    found = arrays(made.folder)
    names = made.current("image_id", GONE).tolist()
    first, last = found.isel(image=slice(0, 6)), found.isel(image=slice(4, None))
    both = xarray.concat([first, last.isel(image=slice(2, None))], "image")
    assert both.image_id.values.tolist() == names
    np.testing.assert_array_equal(both.sel(image_id=names[-1]).features, made.current("features", GONE)[-1])
    left, right = xarray.align(first, last, join="inner")
    assert left.image_id.values.tolist() == right.image_id.values.tolist() == names[4:6]
    np.testing.assert_array_equal(left.features, right.features)
    sums = found.features + found.features.isel(image=slice(None, None, -1)).sel(image_id=names)
    np.testing.assert_array_equal(sums.values, 2 * made.current("features", GONE))
    renamed = found.rename(image_id="name", image="row")
    assert renamed.sel(name=names[3]).status.item() == made.current("status", GONE)[3]
    assert list(found.indexes["image_id"]) == names
    copied = found.copy(deep=True)
    assert copied.sel(image_id=names[3]).status.item() == made.current("status", GONE)[3]
    assert "image_id" not in found.isel(image=2).xindexes


@pytest.mark.slow
def test_a_version_reads_the_same_for_ever_and_its_renamed_rows_have_their_new_names(
    updated: Update, photos: Path, add: Callable[..., Path], tmp_path: Path
) -> None:
    folder = updated().folder
    first = arrays(folder, 1).load()
    assert first.image_id.values.tolist() == sorted(path.name for path in photos.iterdir())
    (photos / "img_000.png").unlink()
    (photos / "img_001.png").rename(photos / "renamed.png")
    (photos / "img_002.png").unlink()
    add("img_002.png", seed=70)
    add("new.png", seed=71)
    (photos / "bad.png").write_bytes(b"no image")
    updated(by="content")
    (photos / "bad.png").unlink()
    add("bad.png", seed=72)
    updated()
    shutil.rmtree(photos)
    second, third = arrays(folder, 2), arrays(folder)
    kept = ["renamed.png", "img_003.png", "img_004.png", "img_005.png"]
    assert second.image_id.values.tolist() == [*kept, "bad.png", "img_002.png", "new.png"]
    assert third.image_id.values.tolist() == [*kept, "img_002.png", "new.png", "bad.png"]
    assert third.path.values.tolist() == third.image_id.values.tolist()
    assert second.status.values.tolist() == [1, 1, 1, 1, 2, 1, 1]
    assert np.isnan(second.features.sel(image_id="bad.png")).all()
    assert np.isfinite(third.features).all()
    old = first.sel(image_id=["img_001.png", "img_003.png", "img_004.png", "img_005.png"]).features.values
    np.testing.assert_array_equal(third.features.sel(image_id=kept), old)
    assert (third.features.sel(image_id="img_002.png") != first.features.sel(image_id="img_002.png")).any()
    assert arrays(folder, 1).identical(first)


@pytest.mark.slow
def test_arrays_are_described_as_those_of_a_run(updated: Update, photos: Path, tmp_path: Path) -> None:
    labels = "\n".join(["image,point,x,y", *(f"{path.name},snout,10,12" for path in sorted(photos.iterdir()))])
    (tmp_path / "labels.csv").write_text(labels + "\n")
    folder = updated(points=str(tmp_path / "labels.csv")).folder
    run = api.Run.open(Path(folder.root) / "parts" / "p000001")
    of_run, of_version, as_dataset = run.arrays(), arrays(folder), api.Dataset.open(run.place).arrays()
    assert {"probes", "point_status", "image_affine", "status"} <= set(of_version)
    for found in (of_version, as_dataset):
        assert set(found.coords) == set(of_run.coords)
        assert set(found.data_vars) == set(of_run.data_vars)
        for name, array in of_run.variables.items():
            assert (found[name].dims, found[name].dtype) == (array.dims, array.dtype), name
            assert found[name].attrs == array.attrs
            np.testing.assert_array_equal(found[name].values, array.values)
        assert found.attrs["title"] == of_run.attrs["title"]
        assert found.probes.sel(image_id="img_004.png", point="snout").shape == (6,)


@pytest.mark.slow
def test_opening_reads_no_part_however_many_there_are(tmp_path: Path, reads: list[str]) -> None:
    counts = []
    for parts in (1, 60):
        folder = synthetic_dataset.copies(tmp_path / str(parts), parts=parts, rows_each=16, shard_rows=8)
        reads.clear()
        found = arrays(folder)
        repr(found)
        found = found.isel(image=slice(5, None))
        assert found.sizes["image"] == parts * 16 - 5
        assert not below_parts(reads)
        counts.append(len(reads))
    assert counts[0] == counts[1] < 6


def test_a_row_takes_two_object_reads_and_its_part_one_more(made: Made, reads: list[str]) -> None:
    found = arrays(made.folder)
    reads.clear()
    _ = found.features.isel(image=-1).values
    data = "parts/p000004/features.zarr/features/c.3.0"
    assert reads == ["parts/p000004/_txn/store.json", data, data]
    reads.clear()
    _ = found.features.isel(image=-2).values
    assert reads == [data, data]
    reads.clear()
    _ = found.maps.isel(image=slice(0, 4)).values  # of two chunks of one object, all there are: read whole
    assert reads == ["parts/p000001/_txn/store.json", "parts/p000001/features.zarr/maps/c.0.0.0.0"]
    reads.clear()
    arrays(made.folder).sel(image_id="p4-3.png")
    assert sum(key.endswith("image_id/c.0") for key in reads) == len(below_parts(reads)) / 2 == len(LENGTHS) - 1


def test_no_chunk_is_read_that_holds_no_row_that_is_asked_for(tmp_path: Path, reads: list[str]) -> None:
    whole = synthetic_dataset.make(tmp_path / "dataset", (40,), not_stored=[1, 3])
    gone = (*range(8, 16), *range(24, 32))
    synthetic_dataset.change(whole, changed(rows.NOT_ENCODED, {1: gone}))
    reads.clear()
    found = arrays(whole.folder)
    expected = np.delete(whole.blocks[0]["features"], gone, axis=0)
    np.testing.assert_array_equal(found.features.values, expected)
    np.testing.assert_array_equal(found.features[[7, 8]].values, expected[[7, 8]])
    touched = {key.rpartition("/")[2] for key in reads if "/features/" in key}
    assert touched == {"c.0.0", "c.2.0", "c.4.0"}


def test_a_version_without_rows_opens(own: Made) -> None:
    synthetic_dataset.publish(own.folder, [], own.folder.version().templates)
    found = arrays(own.folder)
    assert (found.features.shape, found.features.dtype) == ((0, 5), np.float32)
    assert found.maps.values.shape == (0, 3, 2, 4)
    assert found.image_id.values.tolist() == []


@pytest.mark.slow
def test_what_is_opened_travels_and_is_shared_by_threads(made: Made) -> None:
    found = arrays(made.folder)
    expected = made.current("maps", GONE)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(lambda at: found.maps[at].values, at) for at in range(ROWS)]
        futures += [
            pool.submit(lambda name: found.maps.sel(image_id=name).values, name) for name in found.image_id.values
        ]
        for at, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(), expected[at % ROWS])
    travelled = pickle.loads(pickle.dumps(arrays(made.folder)))
    assert travelled.sel(image_id="p4-3.png").identical(found.sel(image_id="p4-3.png"))
    assert travelled.load().identical(found.load())
    assert len(pickle.dumps(arrays(made.folder))) < 40_000


def test_dask_chunks_it(made: Made) -> None:
    pytest.importorskip("dask")
    found = arrays(made.folder).chunk(image=7)
    np.testing.assert_array_equal(found.features.max("image").values, made.current("features", GONE).max(0))
    assert found.sel(image_id="p4-3.png").image_id.values == "p4-3.png"


@pytest.mark.parametrize("victim", ["parts", "parts/p000002", "parts/p000002/_txn", "parts/p000002/features.zarr"])
def test_no_symbolic_link_below_the_dataset_is_followed(own: Made, victim: str, tmp_path: Path) -> None:
    place = Path(own.folder.root) / victim
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    found = arrays(own.folder)
    with pytest.raises(errors.StoreError, match="a symbolic link"):
        found.features[-1].load()


def test_an_object_that_is_a_link_is_not_read(own: Made, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own.folder.root)  # the dataset's own place may be one
    found = api.Dataset.open(tmp_path / "link").arrays()
    np.testing.assert_array_equal(found.features[-1], own.blocks[1]["features"][-1])
    victim = Path(own.folder.root) / "parts/p000002/features.zarr/features/c.0.0"
    shutil.move(victim, tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.StoreError, match=r"a symbolic link.*c\.0\.0|c\.0\.0.*a symbolic link"):
        found.features[5].load()


@contextlib.contextmanager
def only_the_second_part_fails(folder: DatasetFolder, words: str) -> Iterator[None]:
    found = arrays(folder)
    yield
    with pytest.raises(errors.StoreError, match=words):
        found.features.load()
    with pytest.raises(errors.StoreError, match=words):
        arrays(folder).sel(image_id="p1-1.png")  # all names are looked through
    assert arrays(folder).features[:5].values.shape == (5, 5)


def test_a_part_that_is_missing_is_named_when_it_is_touched(own: Made) -> None:
    with only_the_second_part_fails(own.folder, r"parts/p000002' is missing: restore it"):
        shutil.rmtree(Path(own.folder.root) / "parts" / "p000002")


def test_a_part_that_is_another_one_is_not_read(own: Made) -> None:
    with only_the_second_part_fails(own.folder, r"parts/p000002' is not the one that version 1 was made with"):
        shutil.rmtree(Path(own.folder.root) / "parts" / "p000002")
        shutil.copytree(Path(own.folder.root) / "parts" / "p000001", Path(own.folder.root) / "parts" / "p000002")


def test_an_object_that_is_missing_or_damaged_is_no_row_of_fill_values(own: Made) -> None:
    victim = Path(own.folder.root) / "parts/p000002/features.zarr/features/c.1.0"
    whole = victim.read_bytes()
    found = arrays(own.folder)
    for damaged in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], whole[:10], b""):
        victim.write_bytes(damaged)
        for at in (slice(13, 14), slice(13, 17)):
            with pytest.raises(
                errors.StoreError, match=r"'features' of the part .*p000002' is damaged .*genenc verify"
            ):
                found.features[at].load()
    victim.unlink()
    with pytest.raises(errors.StoreError, match=r"p000002.*c\.1\.0' is missing"):
        found.features[-1].load()
    np.testing.assert_array_equal(found.features[:13], own.current("features")[:13])


def test_parts_whose_arrays_differ_are_refused(own: Made) -> None:
    version = own.folder.version()
    template = version.templates[0]
    other = {**template, "features": {**template["features"], "data_type": "float64"}}
    parts = [version.parts[0], version.parts[1].model_copy(update={"template": 1})]
    synthetic_dataset.publish(own.folder, parts, [template, other])
    with pytest.raises(errors.StoreError, match="do not have the same arrays"):
        arrays(own.folder)
    broken = {**template, "features": {**template["features"], "data_type": "none"}}
    synthetic_dataset.publish(own.folder, version.parts, [broken])
    with pytest.raises(errors.StoreError, match=r"v000003\.json' is damaged"):
        arrays(own.folder)
    without = {name: document for name, document in template.items() if name != "image_id"}
    chunks = [{name: part.chunks[name] for name in without} for part in version.parts]
    parts = [part.model_copy(update={"chunks": each}) for part, each in zip(version.parts, chunks, strict=True)]
    synthetic_dataset.publish(own.folder, parts, [without])
    with pytest.raises(errors.StoreError, match=r"v000004\.json' is damaged"):
        arrays(own.folder)
    assert arrays(own.folder, 1).sizes["image"] == 17


@pytest.mark.slow
def test_sizes_of_chunks_that_cannot_be_are_refused(own: Made) -> None:
    version = own.folder.version()
    for number, sizes in enumerate([(0, 0), (8, 3), (8, 16), (10**18, 10**18)], 2):
        part = version.parts[0].model_copy(update={"chunks": {**version.parts[0].chunks, "features": sizes}})
        synthetic_dataset.publish(own.folder, [part, version.parts[1]], version.templates)
        found = arrays(own.folder, number)
        with pytest.raises(errors.StoreError, match="damaged"):
            found.features.load()


def test_what_cannot_be_opened_is_said(own: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(api.InputError, match="no version 7"):
        api.Dataset.open(own.folder.root, 7)
    with pytest.raises(api.InputError, match="no tag 'paper'"):
        api.Dataset.open(own.folder.root, "paper")
    with pytest.raises(api.InputError, match=r"single run, which has no version 'v1'"):
        api.Dataset.open(Path(own.folder.root) / "parts" / "p000001", "v1")
    with pytest.raises(api.InputError, match="is not a dataset"):
        api.Dataset.open(tmp_path)
    opened = api.Dataset.open(own.folder.root, "v1")
    assert (opened.version, opened.place) == (1, own.folder.root)
    assert repr(opened) == f"Dataset.open({own.folder.root!r}, version=1)"
    assert pickle.loads(pickle.dumps(opened)).arrays().sizes["image"] == 17
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(api.InputError, match="xarray is not installed"):
        opened.arrays()
    Path(own.folder.root, own.folder.version().key).unlink()
    with pytest.raises(api.InputError, match="has no version yet"):
        api.Dataset.open(own.folder.root)


@pytest.fixture
def on_s3(request: pytest.FixtureRequest) -> Root:
    """A place on S3."""
    server: s3_server.Server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/tests/{uuid.uuid4().hex[:12]}/dataset"


@pytest.mark.slow
def test_a_dataset_on_s3_reads_the_same(made: Made, on_s3: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    from genenc_core.store.backends import s3_objects

    there = synthetic_dataset.put(made.folder, on_s3)
    asked: list[str] = []

    class Counted:
        """obstore, and what is asked of it."""

        def __getattr__(self, name: str) -> Any:
            found = getattr(__import__("obstore"), name)

            def call(store: Any, key: Any, *arguments: Any, **options: Any) -> Any:
                asked.append(f"{name} {key}")
                return found(store, key, *arguments, **options)

            return call

    found = pickle.loads(pickle.dumps(arrays(there)))
    monkeypatch.setattr(s3_objects, "obstore", Counted())
    _ = found.features.isel(image=-1).values
    data = "parts/p000004/features.zarr/features/c.3.0"
    assert asked == ["get parts/p000004/_txn/store.json", f"get {data}", f"get_range {data}"]
    asked.clear()
    _ = found.features.isel(image=-2).values
    assert len(asked) == 2
    monkeypatch.undo()
    assert found.drop_attrs().identical(arrays(made.folder).drop_attrs())
    there.objects.remove("parts/p000004/features.zarr/features/c.3.0")
    with pytest.raises(errors.StoreError, match=r"c\.3\.0' is missing"):
        arrays(there).features[-1].load()
    there.objects.remove_tree("parts/p000001")
    with pytest.raises(errors.StoreError, match="p000001' is missing"):
        arrays(there).features.load()
    np.testing.assert_array_equal(arrays(there, 1).features[21:30], made.current("features")[21:30])
