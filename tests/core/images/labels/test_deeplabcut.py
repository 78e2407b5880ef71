"""DeepLabCut's files and projects: CSV and HDF5 say the same, several animals are told apart, damage is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from genenc_core import errors
from genenc_core.images.labels import reading

NAN = float("nan")
IMAGES = [("labeled-data", "v", "img1.png"), ("labeled-data", "v", "img2.png")]
COLUMNS = [
    (scorer, animal, part, axis)
    for scorer in ("me",)
    for animal, parts in (("m2", ("nose", "ear")), ("m1", ("nose", "ear")), ("single", ("corner",)))
    for part in parts
    for axis in ("x", "y")
]
VALUES = np.array([[1, 2, 3, 4, 5, 6, NAN, NAN, 9.5, 10], np.arange(11, 21)])
LEVELS = ("scorer", "individuals", "bodyparts", "coords")


def write_csv(path: Path, *, images: list[str] | None = None, scorer: str = "me") -> Path:
    names = images or ["/".join(parts) for parts in IMAGES]
    lines = [",".join([level, *(column[at] for column in COLUMNS)]) for at, level in enumerate(LEVELS)]
    lines[0] = lines[0].replace(",me", f",{scorer}")
    lines += [
        ",".join([name, *("" if np.isnan(value) else str(value) for value in row)])
        for name, row in zip(names, VALUES, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_hdf5(path: Path, form: str, *, columns: list[tuple[str, ...]] = COLUMNS, extra: object = None) -> Path:
    """Write a file as pandas 2 does."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        group = file.create_group("df_with_missing")
        group.attrs["pandas_type"] = np.bytes_(b"frame_table" if form == "table" else b"frame")
        if form == "table":
            _write_table(group, columns, extra)
        else:
            _write_fixed(group, columns, flat=form == "fixed, one index")
    return path


def _write_table(group: object, columns: list[tuple[str, ...]], extra: object) -> None:
    kind = np.dtype([("index", "S40"), ("values_block_0", "<f8", (len(columns),))])
    rows = np.zeros(len(IMAGES), kind)
    rows["index"], rows["values_block_0"] = ["/".join(parts).encode() for parts in IMAGES], VALUES
    group.create_dataset("table", data=rows)  # type: ignore[attr-defined]
    group["table"].attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(columns, 0))  # type: ignore[index]
    attributes = group.attrs  # type: ignore[attr-defined]
    attributes["non_index_axes"] = np.bytes_(pickle.dumps([(1, columns)] if extra is None else extra, 0))
    attributes["info"] = np.bytes_(pickle.dumps({1: {"names": list(LEVELS)}, "index": {}}, 0))


def _write_fixed(group: object, columns: list[tuple[str, ...]], *, flat: bool) -> None:
    def axis(name: str, entries: list[tuple[str, ...]], names: tuple[str | None, ...]) -> None:
        group.attrs[f"{name}_nlevels"] = len(names)  # type: ignore[attr-defined]
        for at, level in enumerate(names):
            texts = sorted({entry[at] for entry in entries})
            made = group.create_dataset(f"{name}_level{at}", data=np.array([text.encode() for text in texts]))  # type: ignore[attr-defined]
            made.attrs["name"] = np.bytes_(b"N." if level is None else level.encode())
            codes = np.array([texts.index(entry[at]) for entry in entries], np.int8)
            group.create_dataset(f"{name}_label{at}", data=codes)  # type: ignore[attr-defined]

    group.attrs["nblocks"] = 1  # type: ignore[attr-defined]
    axis("axis0", columns, LEVELS)
    axis("block0_items", columns[::-1], LEVELS)
    group.create_dataset("block0_values", data=VALUES[:, ::-1])  # type: ignore[attr-defined]
    if flat:
        group.create_dataset("axis1", data=np.array(["/".join(parts).encode() for parts in IMAGES]))  # type: ignore[attr-defined]
    else:
        axis("axis1", list(IMAGES), (None, None, None))


def test_several_animals(tmp_path: Path) -> None:
    table = reading.read_points(write_csv(tmp_path / "CollectedData_me.csv"))
    assert table.names == ("m2.nose", "m2.ear", "m1.nose", "m1.ear", "single.corner")
    assert table.individuals == ("m2", "m2", "m1", "m1", "single")
    np.testing.assert_array_equal(table.xy, VALUES.reshape(2, 5, 2))


@pytest.mark.parametrize("form", ["table", "fixed", "fixed, one index"])
def test_hdf5_says_what_the_csv_says(tmp_path: Path, form: str) -> None:
    own = reading.read_points(write_hdf5(tmp_path / "CollectedData_me.h5", form))
    other = reading.read_points(write_csv(tmp_path / "CollectedData_me.csv"))
    assert (own.names, own.images, own.individuals) == (other.names, other.images, other.individuals)
    np.testing.assert_array_equal(own.xy, other.xy)


class _Runs:
    """Pickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


def test_hdf5_runs_no_code_that_it_names(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "p.h5", "table", extra=[(1, _Runs(tmp_path / "ran"))])
    with pytest.raises(errors.InputError, match=r"which could run code.*Pass the CSV beside it"):
        reading.read_points(path)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_other_hdf5_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    whole = write_hdf5(tmp_path / "p.h5", "table").read_bytes()
    for cut in (0, 10, 100, len(whole) // 2, len(whole) - 500):
        (tmp_path / "cut.h5").write_bytes(whole[:cut])
        with pytest.raises(errors.InputError, match="is HDF5, but not readable as labels of DeepLabCut"):
            reading.read_points(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["places"], file["names"] = np.zeros((1, 2, 3, 4)), [b"nose", b"ear", b"tail"]
    with pytest.raises(errors.InputError, match=r"holds 0 data frames of pandas, beside names, places.*SLEAP"):
        reading.read_points(tmp_path / "other.h5")


@pytest.mark.parametrize("attribute", ["info", "non_index_axes"])
def test_hdf5_with_other_attributes_is_refused(tmp_path: Path, attribute: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = write_hdf5(tmp_path / "p.h5", "table")
    for value in ([["x"]], 7, {}, "x"):
        with h5py.File(path, "r+") as file:
            file["df_with_missing"].attrs[attribute] = np.bytes_(pickle.dumps(value, 0))
        with pytest.raises(errors.InputError, match="not readable as labels of DeepLabCut"):
            reading.read_points(path)


def test_hdf5_with_other_columns_is_refused(tmp_path: Path) -> None:
    columns = [(*column[:3], "z") for column in COLUMNS]
    with pytest.raises(errors.InputError, match="column 1 has the coords 'z'"):
        reading.read_points(write_hdf5(tmp_path / "p.h5", "table", columns=columns))


def project(folder: Path, videos: tuple[str, ...] = ("v1", "v2")) -> Path:
    for video in videos:
        images = [f"labeled-data/{video}/img{at}.png" for at in (1, 2)]
        write_csv(folder / "labeled-data" / video / "CollectedData_me.csv", images=images)
    (folder / "labeled-data" / "v3").mkdir()
    (folder / "config.yaml").write_text("scorer: me\n")
    return folder


def test_a_whole_project_is_read(tmp_path: Path) -> None:
    table = reading.read_points(project(tmp_path))
    assert table.images == tuple(f"labeled-data/{video}/img{at}.png" for video in ("v1", "v2") for at in (1, 2))
    np.testing.assert_array_equal(table.xy, np.concatenate([VALUES.reshape(2, 5, 2)] * 2))
    assert reading.read_points(tmp_path / "labeled-data").images == table.images
    assert reading.read_points(tmp_path / "labeled-data/*/Collected*.csv").images == table.images


def test_of_several_scorers_the_projects_own_counts(tmp_path: Path) -> None:
    folder = project(tmp_path, ("v1",))
    write_csv(folder / "labeled-data/v1/CollectedData_other.csv", scorer="other")
    assert reading.read_points(folder).images[0] == "labeled-data/v1/img1.png"
    (folder / "config.yaml").write_text("scorer: [\n")
    with pytest.raises(errors.InputError, match="2 scorers, 'me', 'other': name one as `scorer` in the project's"):
        reading.read_points(folder)


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labeled-data" / "v").mkdir(parents=True)
    with pytest.raises(errors.InputError, match=r"neither a DeepLabCut project .* nor a folder of LabelMe's"):
        reading.read_points(tmp_path)


def test_the_csv_counts_beside_its_hdf5(tmp_path: Path) -> None:
    folder = project(tmp_path, ("v1",))
    (folder / "labeled-data/v1/CollectedData_me.h5").write_bytes(b"damaged")
    assert len(reading.read_points(folder).images) == 2
