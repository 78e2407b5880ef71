"""How containers are named on the command line, and their images in the manifest and by labels."""

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
import zarr
from PIL import Image
from pyarrow import parquet

import containers
import sleap_files
from genenc_core import errors
from genenc_core.images.containers import container, kinds
from genenc_core.images.labels import reading
from genenc_core.images.sources import image_source, manifest, members

FRAMES = containers.frames(3)


def ids(images: str, out: Path, **more: str) -> list[str]:
    """Return the image_ids of a source."""
    found = manifest.write_manifest(out / "listed.manifest", image_source.open_source(images, **more))
    return found.read(0, found.rows).image_ids


def archives(folder: Path, *names: str) -> None:
    for name in names:
        containers.write_tar(folder, FRAMES[:1]).rename(folder / name)


def test_a_range_of_archives(tmp_path: Path) -> None:
    archives(tmp_path, "a-08.tar", "a-09.tar", "a-10.tar")
    named = f"{tmp_path}/a-{{08..10}}.tar"
    assert ids(named, tmp_path) == ["a-08.tar/n/000.png", "a-09.tar/n/000.png", "a-10.tar/n/000.png"]
    with pytest.raises(errors.InputError, match=r"names 4 files, and '.*a-11.tar' does not exist"):
        ids(f"{tmp_path}/a-{{08..11}}.tar", tmp_path)
    with pytest.raises(errors.InputError, match="names 99999999 files"):
        ids(f"{tmp_path}/a-{{1..99999999}}.tar", tmp_path)
    (tmp_path / "x").mkdir()
    archives(tmp_path / "x", "b.tar")
    assert ids(f"{tmp_path}/*/*.tar", tmp_path) == ["x/b.tar/n/000.png"]
    assert ids(f"{tmp_path}/**/*.tar", tmp_path)[-1] == "x/b.tar/n/000.png"


def test_other_members_of_archives_are_counted(tmp_path: Path) -> None:
    more = {"n/000.cls": b"7", "n/000.json": b"{}", "n/._000.png": b"", "n/.hidden.png": b"x"}
    path = containers.write_tar(tmp_path, FRAMES, more=more)
    found = manifest.write_manifest(tmp_path / "listed.manifest", image_source.open_source(str(path)))
    assert found.rows == len(FRAMES)
    assert {kind: count for kind, (count, _) in found.left_out.items()} == {".cls": 1, ".json": 1, "hidden .png": 1}


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    path = containers.write_tar(tmp_path, FRAMES)
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"link{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert len(ids(str(path), tmp_path)) == len(FRAMES)


def test_a_name_twice_or_compression_is_refused(tmp_path: Path) -> None:
    path = containers.write_tar(tmp_path, FRAMES, more={"./n/000.png": b"other"})
    with pytest.raises(errors.InputError, match=r"'n/000.png' twice"):
        ids(str(path), tmp_path)
    path.write_bytes(gzip.compress(containers.write_tar(tmp_path, FRAMES).read_bytes()))
    with pytest.raises(errors.InputError, match="compressed tar"):
        ids(str(path), tmp_path)


def test_an_array_inside_is_named_by_its_path(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    import h5py

    with h5py.File(tmp_path / "two.h5", "w") as file:
        for name in ("a/left", "a/right"):
            file[name] = np.stack(FRAMES)
        file["linked"] = h5py.ExternalLink("/etc/passwd", "/")
        file["other"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        file["a"].attrs["x"] = 1
        file["frames of another"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/frames")
        file["empty"] = h5py.Empty("f")
        file[".hidden"] = np.stack(FRAMES)
        file["a/time"] = np.array(0, np.int64)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["frames"] = np.stack(FRAMES)
    assert ids(f"{tmp_path}/two.h5/a/right", tmp_path)[0] == "two.h5/a/right#0"
    with pytest.raises(errors.InputError, match=r"several datasets.*two.h5/NAME.*a/left \[3, 24, 32, 3\] uint8"):
        ids(f"{tmp_path}/two.h5", tmp_path)
    assert ids(f"{tmp_path}/two.h5/.hidden", tmp_path)[0] == "two.h5/.hidden#0"
    with pytest.raises(errors.InputError, match="in other files, which are not followed"):
        ids(f"{tmp_path}/two.h5/other/frames", tmp_path)
    for name in ("none", "linked", "a", "empty", "frames of another"):
        with pytest.raises(errors.InputError, match="dataset"):
            ids(f"{tmp_path}/two.h5/{name}", tmp_path)
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("x/y", shape=(3, 8, 8), dtype="uint8")
    assert ids(f"{tmp_path}/g.zarr/x/y", tmp_path) == [f"g.zarr/x/y#{at}" for at in range(3)]
    with pytest.raises(errors.InputError, match=r"Zarr group: name an array in it, as g.zarr/NAME; it has x"):
        ids(f"{tmp_path}/g.zarr", tmp_path)


def test_the_column_of_images_is_chosen(tmp_path: Path) -> None:
    cells = [containers.png(frame) for frame in FRAMES]
    parquet.write_table(pa.table({"left": cells, "right": cells, "n": [1, 2, 3]}), tmp_path / "t.parquet")
    assert ids(f"{tmp_path}/t.parquet", tmp_path, image_column="right")[0] == "t.parquet#0"
    assert ids(f"{tmp_path}/*.parquet", tmp_path, image_column="left")[2] == "t.parquet#2"
    for images in (f"{tmp_path}/t.parquet", f"{tmp_path}/*.parquet"):
        with pytest.raises(errors.InputError, match="none"):
            ids(images, tmp_path, image_column="none")
    with pytest.raises(errors.InputError, match=r"several columns of images \(left, right\).*--image-column"):
        ids(f"{tmp_path}/*.parquet", tmp_path)
    archive = containers.write_tar(tmp_path, FRAMES)
    with pytest.raises(errors.InputError, match="an image column"):
        ids(str(archive), tmp_path, image_column="left")
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
    parquet.write_table(pa.table({"image": ["a.png"], "thumbnail": cells[:1]}), tmp_path / "list.parquet")
    assert ids(f"{tmp_path}/list.parquet", tmp_path) == ["a.png"]


def test_the_planes_of_ome_zarr(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (2, 1, 3, 24, 32), np.uint16)
    for version, key in ((3, "ome"), (2, None)):
        group = zarr.open_group(str(tmp_path / f"v{version}.zarr"), mode="w", zarr_format=2 if version == 2 else 3)
        group.create_array("0", data=values, chunks=(1, 1, 1, 24, 32))
        axes = [{"name": name} for name in "tczyx"]
        scales = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
        group.attrs.update({key: scales} if key else scales)
        assert ids(f"{tmp_path}/v{version}.zarr", tmp_path) == [f"v{version}.zarr#{at}" for at in range(6)]
    group = zarr.open_group(str(tmp_path / "yx.zarr"), mode="w")
    group.create_array("0", data=values[0, 0, 0])
    group.attrs.update({"ome": {"multiscales": [{"axes": axes[-2:], "datasets": [{"path": "0"}]}]}})
    assert ids(f"{tmp_path}/yx.zarr", tmp_path) == ["yx.zarr#0"]
    content = kinds.open_container(f"{tmp_path}/yx.zarr").read("0")
    assert bytes(content.values) == values[0, 0, 0].tobytes()
    group.attrs.update({"ome": {"multiscales": [[]]}})
    with pytest.raises(errors.InputError, match="damaged OME-Zarr"):
        ids(f"{tmp_path}/yx.zarr", tmp_path)
    group = zarr.open_group(str(tmp_path / "c.zarr"), mode="w")
    group.create_array("0", data=values.reshape(2, 3, 1, 24, 32))
    group.attrs.update({"ome": {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}})
    with pytest.raises(errors.InputError, match="an OME-Zarr image of 3 channels"):
        ids(f"{tmp_path}/c.zarr", tmp_path)


def test_frames_of_a_folder_and_of_tiffs(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "b.tif", np.stack(FRAMES), photometric="rgb")
    np.save(tmp_path / "a.npy", np.stack(FRAMES))
    Image.fromarray(FRAMES[0]).save(tmp_path / "c.png")
    source = image_source.open_source(str(tmp_path), frames="0,2")
    found = manifest.write_manifest(tmp_path / "listed.manifest", source)
    assert found.read(0, found.rows).image_ids == ["a.npy#0", "a.npy#2", "b.tif#0", "b.tif#2"]
    assert found.left_out[".png"] == (1, ("c.png",))
    assert ids(str(tmp_path), tmp_path) == ["b.tif", "c.png"]
    assert ids(f"{tmp_path}/*.tif", tmp_path) == ["b.tif"]
    assert ids(f"{tmp_path}/*.tif", tmp_path, frames="all") == ["b.tif#0", "b.tif#1", "b.tif#2"]
    for images in (f"{tmp_path}/c.png", f"{tmp_path}/*.png"):
        with pytest.raises(errors.InputError, match="--frames all needs videos"):
            ids(images, tmp_path, frames="all")


def test_a_zarr_folder_of_another_name(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "stack"), shape=(3, 8, 8), dtype="uint8")
    with pytest.raises(errors.InputError, match=r"rename it to end in \.zarr"):
        ids(f"{tmp_path}/stack", tmp_path)


def test_labels_of_members(tmp_path: Path) -> None:
    archive, stack = containers.write_tar(tmp_path, FRAMES), containers.write_npy(tmp_path, FRAMES)
    predictions = tmp_path / "stackDLC_resnet50_projectshuffle1_100.csv"
    header = "scorer,DLC,DLC,DLC\nbodyparts,nose,nose,nose\ncoords,x,y,likelihood\n"
    predictions.write_text(header + "0,1,2,0.9\n2,3,4,0.2\n")
    tidy = tmp_path / "tidy.csv"
    tidy.write_text("image,point,x,y\nn/002.png,nose,5,6\n")
    frame = tmp_path / "frame.csv"
    frame.write_text("image,point,x,y\nstack.npy#1,nose,7,8\n")
    nan = float("nan")
    for images, points, wanted in (
        (stack, predictions, [[1, 2], [nan, nan], [3, 4]]),
        (stack, frame, [[nan, nan], [7, 8], [nan, nan]]),
        (archive, tidy, [[nan, nan], [nan, nan], [5, 6]]),
    ):
        found = manifest.write_manifest(
            tmp_path / "listed.manifest", image_source.open_source(str(images)), points=reading.read_points(str(points))
        )
        np.testing.assert_array_equal(found.read(0, 3).points[:, 0], wanted)
        assert found.content_digest() == found.digest
    predictions.rename(tmp_path / "predictions.csv")
    with pytest.raises(errors.InputError, match="frame 0 of a video, but the file's name does not say of which"):
        reading.read_points(str(tmp_path / "predictions.csv"))


def predicted(path: Path, x: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"scorer,DLC,DLC,DLC\nbodyparts,nose,nose,nose\ncoords,x,y,likelihood\n0,{x},2,0.9\n")
    return path


@pytest.mark.parametrize("labels", ["{}", "predictions/{}"], ids=["beside the videos", "in folders of the same names"])
def test_videos_of_one_name_are_told_apart_by_the_folders_of_their_predictions(tmp_path: Path, labels: str) -> None:
    for at, folder in enumerate(("m1/day", "m2/day")):
        (tmp_path / folder).mkdir(parents=True)
        containers.write_npy(tmp_path / folder, FRAMES)
        predicted(tmp_path / labels.format(folder) / "stackDLC_x.csv", at)
    everything = f"{tmp_path}/{labels.format('*/day')}/*DLC_*.csv"

    def placed(images: str, points: str) -> dict[str, float]:
        found = manifest.write_manifest(
            tmp_path / "listed.manifest", image_source.open_source(images), points=reading.read_points(points)
        )
        rows = found.read(0, found.rows)
        return {name: x for name, x in zip(rows.image_ids, rows.points[:, 0, 0].tolist(), strict=True) if x == x}

    every = f"{tmp_path}/m?/day/*.npy"
    assert placed(every, everything) == {"m1/day/stack.npy#0": 0, "m2/day/stack.npy#0": 1}
    assert placed(every, everything.replace("*/day", "m2/day")) == {"m2/day/stack.npy#0": 1}
    assert placed(f"{tmp_path}/m2/day/stack.npy", everything) == {"stack.npy#0": 1}
    # The only one of its name needs no folder.
    assert placed(f"{tmp_path}/m1/day/stack.npy", str(predicted(tmp_path / "x/y/stackDLC_x.csv", 7))) == {
        "stack.npy#0": 7
    }
    with pytest.raises(errors.InputError, match="matches several images equally well"):
        placed(every, str(predicted(tmp_path / "x/y/stackDLC_x.csv", 7)))
    both = f"{tmp_path}/x/*/stackDLC_x.csv"
    predicted(tmp_path / "x/z/stackDLC_x.csv", 8)
    with pytest.raises(errors.InputError, match="both match"):
        placed(f"{tmp_path}/m1/day/stack.npy", both)


def test_videos_of_a_sleap_project_are_told_apart_by_the_folders_that_it_names(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    for folder in ("m1/day", "m2/day"):
        (tmp_path / folder).mkdir(parents=True)
        containers.write_npy(tmp_path / folder, FRAMES)
    videos = [sleap_files.video(f"D:\\lab\\{name}\\day\\stack.npy") for name in ("m2", "m1")]
    frames = {(at, at): [sleap_files.Instance([(at, 0), None])] for at in (0, 1)}
    path = sleap_files.write_slp(tmp_path / "a.slp", frames, videos=videos)
    found = manifest.write_manifest(
        tmp_path / "listed.manifest",
        image_source.open_source(f"{tmp_path}/m?/day/*.npy"),
        points=reading.read_points(path),
    )
    rows = found.read(0, found.rows)
    places = dict(zip(rows.image_ids, rows.points[:, 0, 0].tolist(), strict=True))
    assert {name: x for name, x in places.items() if x == x} == {"m2/day/stack.npy#0": 0.5, "m1/day/stack.npy#1": 1.5}


def test_a_damaged_header_does_not_end_an_archive(tmp_path: Path) -> None:
    path = containers.write_tar(tmp_path, FRAMES)
    whole = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1].offset
    for at, byte in ((second, whole[second] ^ 1), (second + 150, whole[second + 150] ^ 4)):
        path.write_bytes(bytes([*whole[:at], byte, *whole[at + 1 :]]))
        with pytest.raises(errors.InputError, match=f"what follows byte {second} is neither a file nor its end"):
            ids(str(path), tmp_path)
    path.write_bytes(whole[:second] + bytes(512) + whole[second + 512 :])
    with pytest.raises(errors.InputError, match="damaged tar"):
        ids(str(path), tmp_path)
    path.write_bytes(bytes(whole + whole))
    with pytest.raises(errors.InputError, match="damaged tar"):
        ids(str(path), tmp_path)


def test_damaged_headers_of_npy(tmp_path: Path) -> None:
    path = containers.write_npy(tmp_path, FRAMES)
    whole = path.read_bytes()
    for text in (b"{'descr': '|u1', 'fortran_order': False, 'shape': (3, 24, 32, 3), ", b"(" * 117, b"{'descr': '|O'}"):
        path.write_bytes(whole[:10] + text.ljust(117) + b"\n" + whole[128:])
        with pytest.raises(errors.InputError, match="damaged or unsupported npy"):
            ids(str(path), tmp_path)
    for array, words in (
        (np.asfortranarray(np.stack(FRAMES)), "Fortran order"),
        (np.stack(FRAMES).astype(np.int32), "int32 have no known range"),
        (np.zeros((0, 8, 8), np.uint8), "not a stack of images"),
        (np.zeros((2, 5, 8, 8), np.uint8), r"shape \[2, 5, 8, 8\]"),
        (np.uint8(3), "not a stack of images"),
    ):
        np.save(path, array)
        with pytest.raises(errors.InputError, match=words):
            ids(str(path), tmp_path)


def test_parts_that_were_never_written_are_warned_of(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "part.zarr"), shape=(4, 8, 8), chunks=(1, 8, 8), dtype="uint8")
    array[:2] = 7
    with pytest.warns(container.NeverWritten, match="2 of 4 frames were never written"):
        assert len(ids(f"{tmp_path}/part.zarr", tmp_path)) == 4
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file.create_dataset("frames", (4, 8, 8), np.uint8, chunks=(1, 8, 8))[:3] = 7
    with pytest.warns(container.NeverWritten, match="1 of 4 chunks were never written"):
        ids(f"{tmp_path}/part.h5", tmp_path)
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file.create_dataset("frames", (4, 8, 8), np.uint8)
    with pytest.warns(container.NeverWritten, match="4 of 4 frames were never written"):
        ids(f"{tmp_path}/none.h5", tmp_path)


def test_a_folder_with_files_that_are_no_stacks(tmp_path: Path) -> None:
    containers.write_npy(tmp_path, FRAMES)
    np.save(tmp_path / "times.npy", np.arange(3.0))
    array = zarr.create_array(str(tmp_path / "z.zarr"), shape=(2, 8, 8), dtype="uint8")
    array[:] = 7
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.warns(members.ContainerLeftOut, match="times.npy.*not a stack of images"):
        found = manifest.write_manifest(
            tmp_path.parent / f"{tmp_path.name}.manifest", image_source.open_source(str(tmp_path), frames="0:2")
        )
    assert found.read(0, found.rows).image_ids == ["stack.npy#0", "stack.npy#1", "z.zarr#0", "z.zarr#1"]
    assert found.left_out == {".npy": (1, ("times.npy",))}
    for pattern, wanted in (("**/*.npy", "stack.npy"), ("**/*.zarr", "z.zarr")):
        (tmp_path / "times.npy").unlink(missing_ok=True)
        named = ids(f"{tmp_path}/{pattern}", tmp_path.parent)
        assert [name.partition("#")[0] for name in named] == [wanted] * (3 if wanted == "stack.npy" else 2)
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(errors.InputError, match="no images found"):
        ids(f"{tmp_path}/*.tar", tmp_path)
    with pytest.raises(errors.InputError, match="names no files: 3 comes after 1"):
        ids(f"{tmp_path}/a{{3..1}}.tar", tmp_path)


def test_a_broken_chain_of_pages(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    for big in (False, True):
        with tifffile.TiffWriter(path, bigtiff=big) as file:
            for frame in FRAMES:
                file.write(frame, photometric="rgb", metadata=None)
        whole = path.read_bytes()
        with tifffile.TiffFile(path) as opened:
            offsets = [page.offset for page in opened.pages]
        width = 8 if big else 4
        last = whole.rindex(offsets[2].to_bytes(width, "little"), 0, offsets[2])
        for offset, words in ((offsets[1], "its pages form a loop"), (len(whole) + 9, "some of its pages are missing")):
            path.write_bytes(whole[:last] + offset.to_bytes(width, "little") + whole[last + width :])
            with pytest.raises(errors.InputError, match=words):
                ids(str(path), tmp_path, frames="all")
    tifffile.imwrite(path, np.zeros((5, 24, 32), np.uint8), imagej=True)
    with tifffile.TiffFile(path) as opened:
        behind = len(opened.pages) == 1
    if behind:
        with pytest.raises(errors.InputError, match="lie behind its pages"):
            ids(str(path), tmp_path, frames="all")
