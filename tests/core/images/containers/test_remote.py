"""Images in a bucket."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr

import containers
import s3_server
from genenc_core import errors, spec
from genenc_core.images.load.loader import ImageLoader
from genenc_core.images.sources import image_source, manifest
from genenc_core.run import driver, parameters, status
from genenc_core.system import s3 as access

FRAMES = containers.frames(6)
PREPROCESSING = spec.Preprocessing(height=FRAMES[0].shape[0], width=FRAMES[0].shape[1])
NAMES = ("a/0.png", "a/1.png", "a/b/2.PNG", "a/é 3.png", "b/4.png", "c.png")


@pytest.fixture
def prefix(s3: s3_server.Server) -> Iterator[str]:
    """A prefix of a bucket with images and other objects."""
    key = f"images/{uuid.uuid4().hex[:12]}"
    store = access.open_store(s3.bucket, key)
    for name, frame in zip(NAMES, FRAMES, strict=True):
        obstore.put(store, name, containers.png(frame))
    for name in ("a/notes.txt", "a/.hidden.png"):
        obstore.put(store, name, b"x")
    yield f"s3://{s3.bucket}/{key}"
    obstore.delete(store, [item["path"] for page in obstore.list(store) for item in page])


def put(prefix: str, name: str, data: bytes | None) -> None:
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    store = access.open_store(bucket, key)
    if data is None:
        obstore.delete(store, name)
    else:
        obstore.put(store, name, data)


def listed(images: str, out: Path) -> manifest.Manifest:
    return manifest.write_manifest(out / "listed.manifest", image_source.open_source(images))


def load(found: manifest.Manifest) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    pixels: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    with ImageLoader(found, PREPROCESSING, workers=1, batch=4) as loader:
        for batch in loader.iter_batches(0, found.rows):
            images = (image for part in batch.parts for image in part)
            pixels |= {row: np.array(image.numpy()) for row, image in zip(batch.rows.tolist(), images, strict=True)}
            reasons |= {each.row: each.reason for each in batch.unreadable}
            batch.release()
    return pixels, reasons


def test_a_prefix_and_globs(prefix: str, tmp_path: Path) -> None:
    found = listed(prefix, tmp_path)
    assert found.read(0, found.rows).image_ids == list(NAMES)
    assert found.read(0, 1).paths == [prefix]
    assert {kind: count for kind, (count, _) in found.left_out.items()} == {".txt": 1, "hidden .png": 1}
    pixels, reasons = load(found)
    assert reasons == {}
    for row, frame in enumerate(FRAMES):
        np.testing.assert_array_equal(pixels[row].transpose(1, 2, 0), frame)
    for pattern, wanted in (
        ("a/*.png", ["0.png", "1.png", "é 3.png"]),
        ("**/*.PNG", ["a/b/2.PNG"]),
        ("a/[!0-9]*.png", ["é 3.png"]),
        ("?/?.png", ["a/0.png", "a/1.png", "b/4.png"]),
        ("*", ["c.png"]),
    ):
        some = listed(f"{prefix}/{pattern}", tmp_path)
        assert some.read(0, some.rows).image_ids == wanted
        assert len(load(some)[0]) == len(wanted)


def test_objects_that_change_or_go(prefix: str, tmp_path: Path) -> None:
    found = listed(prefix, tmp_path)
    other = bytearray(containers.png(FRAMES[0]))
    other[-1] ^= 1
    put(prefix, "a/0.png", bytes(other))  # same size, perhaps in the same second
    put(prefix, "a/1.png", containers.png(FRAMES[0][:8]))
    put(prefix, "c.png", None)
    pixels, reasons = load(found)
    assert {*pixels} == {2, 3, 4}
    assert "since planned" in reasons[0]
    assert "changed since planned" in reasons[1]
    assert "there is no such object" in reasons[5]


def test_no_images_no_bucket_and_no_answer(
    prefix: str, s3: s3_server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.InputError, match=r"no images found in 's3://.*/none'"):
        listed(f"{prefix}/none", tmp_path)
    with pytest.raises(errors.InputError, match="there is no such bucket"):
        listed("s3://no-such-bucket-here/images", tmp_path)
    with pytest.raises(errors.InputError, match="holds credentials"):
        image_source.open_source(f"s3://key:secret@{s3.bucket}/images")
    found = listed(prefix, tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(OSError, match="AWS_SECRET_ACCESS_KEY"):
        load(found)
    with pytest.raises(errors.InputError, match="AWS_SECRET_ACCESS_KEY"):
        listed(prefix, tmp_path)


def test_a_run_has_the_vectors_of_the_files(prefix: str, tmp_path: Path) -> None:
    for name, frame in zip(NAMES, FRAMES, strict=True):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(containers.png(frame))
    (tmp_path / "points.csv").write_text("image,point,x,y\na/b/2.PNG,nose,5,6\n")
    arrays = []
    for images, out in ((prefix, "remote"), (str(tmp_path / "photos"), "local")):
        given = {
            "model": "tiny_models:conv",
            "weights": "random:0",
            "image_size": "32",
            "device": "cpu",
            "shard_rows": 4,
        }
        given |= {"images": images, "points": str(tmp_path / "points.csv"), "out": str(tmp_path / out)}
        done = driver.extract(parameters.ExtractParameters.model_validate(given))
        assert status.verify_run(done.run, content=True).ok
        group = zarr.open_group(str(tmp_path / out / "features.zarr"), mode="r")
        names = ("features", "probes", "image_id", "status", "point_status")
        arrays.append({name: np.asarray(group[name]) for name in names})
    for name, values in arrays[0].items():
        np.testing.assert_array_equal(values, arrays[1][name])
    recorded = b"".join(path.read_bytes() for path in (tmp_path / "remote").rglob("*") if path.is_file())
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in recorded
