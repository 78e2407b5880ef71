"""The public API: what its docstrings say, its errors, and the page made of them."""

import doctest
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import api_page
import pictures
from genenc_core import api
from genenc_core.run import records

MODEL = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "device": "cpu", "batch_size": 2}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images and their labels in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = pictures.write_folder(tmp_path / "photos", 6)
    rows = [f"{path.name},snout,{10 + at},12" for at, path in enumerate(sorted(folder.iterdir()))]
    (tmp_path / "labels.csv").write_text("\n".join(["image,point,x,y", *rows]) + "\n")
    return folder


@pytest.mark.slow
def test_the_examples_of_the_docstrings(photos: Path) -> None:
    failed, tried = doctest.testmod(api)
    assert tried > 10
    assert failed == 0


@pytest.mark.parametrize("name", api.__all__)
def test_public_names_are_documented(name: str) -> None:
    found = getattr(api, name)
    assert inspect.getdoc(found)
    for method, value in vars(found).items() if inspect.isclass(found) and found.__module__ == api.__name__ else ():
        assert method.startswith("_") or inspect.getdoc(value), method


def test_the_reference_page_is_made_from_the_docstrings() -> None:
    assert api_page.PAGE.read_text() == api_page.page(), "run: python tests/support/api_page.py"


@pytest.mark.slow
def test_importing_it_does_not_import_torch() -> None:
    code = "import sys; from genenc_core import api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_arrays_in_memory_are_those_that_a_run_stores(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.iterdir())
    stored = api.extract(str(photos), out=str(tmp_path / "run"), points="labels.csv", **MODEL).arrays()
    images = [str(files[0]), np.asarray(Image.open(files[1])), Image.open(files[2]), *files[3:]]
    points = np.stack([np.array([[10.0 + at, 12.0]]) for at in range(6)])
    found = api.encode(images, points=points, **MODEL)
    assert sorted(found) == ["features", "probes"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, stored[name].values)


@pytest.mark.slow
def test_a_pillow_image_is_turned_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "phone.png", exif=exif)
    found = api.encode([tmp_path / "phone.png", Image.open(tmp_path / "phone.png")], fit="stretch", **MODEL)["features"]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], api.encode([noise], fit="stretch", **MODEL)["features"][0])


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "raw profile.png"])
def test_a_pillow_image_is_not_turned_by_other_metadata(tmp_path: Path, kind: str) -> None:
    """An orientation in XMP, or in a PNG's text, turns no file that is read by path."""
    paths = [with_other_orientation(tmp_path / f"{own}.{kind}", own) for own in range(9)]
    found = api.encode([*paths, *map(Image.open, paths)], fit="stretch", **MODEL)["features"]
    np.testing.assert_array_equal(found[:9], found[9:])


def with_other_orientation(path: Path, own: int) -> Path:
    """Write an image with this EXIF orientation, none for 0, and another one in XMP or a PNG's text."""
    exif, other, info = Image.Exif(), Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], other[0x0112] = own, 6
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    if "raw" in path.name:
        data = other.tobytes()
        info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    more = {".png": {"pnginfo": info}, ".tif": {"tiffinfo": {700: XMP}}}.get(path.suffix, {"xmp": XMP})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8))
    image.save(path, lossless=True, quality=100, **more, **({"exif": exif} if own else {}))
    return path


@pytest.mark.slow
def test_a_run_stays_where_it_was_made(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, opened = api.extract("photos", out="run", **MODEL), api.Run.open("run")
    lazy, values = made.arrays(), made.arrays().features.values
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    pictures.write_folder(tmp_path / "other" / "photos", 6, seed=9)
    other = api.extract("photos", out="run", **MODEL).arrays().features.values
    assert not np.array_equal(other, values)
    for found in (lazy, made.arrays(), opened.arrays()):
        np.testing.assert_array_equal(found.features.values, values)


@pytest.mark.parametrize("option", [{"engine": "dask"}, {"engine_address": "tcp://x:1"}, {"engine_workers": 2}])
def test_an_engine_that_is_not_used_is_refused(photos: Path, tmp_path: Path, option: dict[str, object]) -> None:
    said = "--engine dask works through Prefect: run the flow" if "engine" in option else "is for --engine dask or ray"
    for call in (
        lambda: api.encode(["photos/img_000.png"], **MODEL, **option),
        lambda: api.update("set", "photos", **MODEL, **option),
    ):
        with pytest.raises(api.InputError, match=said):
            call()
    assert not (tmp_path / "set").exists()


def test_paths_that_are_given_twice_or_are_not_text(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "j\\x41.png", "a b.png"]
    folder = pictures.write_folder(tmp_path / "made", 3)
    paths = [path.rename(tmp_path / name) for path, name in zip(sorted(folder.iterdir()), names, strict=True)]
    points = np.full((4, 1, 2), 8.0)
    found = api.encode([*paths, paths[0]], points=points, **MODEL)
    assert np.isfinite(found["probes"]).all()
    for name, values in found.items():
        np.testing.assert_array_equal(values[0], values[3], err_msg=name)
        assert not np.array_equal(values[0], values[1]), name


@pytest.mark.slow
def test_points_that_are_missing_are_nan(photos: Path) -> None:
    points = np.full((2, 2, 2), 8.0)
    points[0, 1] = np.nan
    points[:, 0] = np.nan
    found = api.encode(sorted(photos.iterdir())[:2], points=points, **MODEL)["probes"]
    assert found.shape == (2, 2, 6)
    assert np.isnan(found[:, 0]).all()
    assert np.isnan(found[0, 1]).all()
    assert np.isfinite(found[1, 1]).all()


@pytest.mark.slow
def test_a_run_is_opened_continued_verified_and_repaired(photos: Path, tmp_path: Path) -> None:
    (photos / "img_002.png").write_bytes(b"")
    made = api.Run.create(str(photos), out=str(tmp_path / "run"), shard_rows=2, max_failures="0", **MODEL)
    assert made.plan() == [0, 1, 2]
    with pytest.raises(api.Incomplete, match="1 of 3 shards not done: 1") as raised:
        made.encode()
    assert raised.value.result.status.committed == 2
    run = api.Run.open(made.place)
    assert run.plan("failed") == [1]
    result = run.encode("failed", max_failures="1")
    assert (result.asked, result.status.unreadable) == (1, 1)
    (victim, *_) = sorted((tmp_path / "run" / "features.zarr" / "features").glob("c*"))
    victim.write_bytes(b"x")
    assert [problem.shard for problem in run.verify().problems] == [0]
    assert api.verify(run.place).problems == run.verify().problems
    assert run.repair().requeued == (0,)
    assert run.encode(max_failures="1").status.complete
    assert run.verify(content=True).ok
    assert run.parameters.model == "tiny_models:conv"
    assert repr(run) == f"Run.open({run.place!r})"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fitt": "pad"}, "unknown option fitt; did you mean 'fit'"),
        ({"fit": "padd"}, "fit 'padd' is not valid: give 'stretch', 'crop' or 'pad'"),
        ({"batch_size": "many"}, "batch_size 'many' is not valid: give auto or a number of images of at least 1"),
        ({"limit": True}, "limit True is not valid: it cannot be true"),
    ],
)
def test_wrong_options_are_named(photos: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(api.InputError) as raised:
        api.Run.create(str(photos), out="run", **{**MODEL, **options})
    assert words in str(raised.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 5, 3)), r"float64 \[4, 5, 3\]: give uint8 RGB"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8 \[4, 5, 4\]"),
        ("photos/none.png", "none.png"),
        ("photos/text.png", r"image 1 .*text.png.* cannot be read"),
    ],
)
def test_an_image_that_cannot_be_encoded_is_named(photos: Path, image: object, words: str) -> None:
    (photos / "text.png").write_text("no image")
    with pytest.raises(api.InputError, match=words):
        api.encode([photos / "img_000.png", image], **MODEL)


def test_arguments_of_another_type_are_named(photos: Path) -> None:
    frame, out = np.zeros((48, 64, 3), np.uint8), {"out": "elsewhere"}
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: api.encode([None], **MODEL), "an image is of type NoneType: give a path"),
        (lambda: api.encode([b"x"], **MODEL), "an image is of type bytes"),
        (lambda: api.encode("photos/img_000.png", **MODEL), "images is of type str: give a list of paths"),
        (lambda: api.encode(Image.fromarray(frame), **MODEL), "images is of type Image"),
        (lambda: api.encode([frame], points="p.csv", **MODEL), r"points of type str .* give float \[1, K, 2\]"),
        (lambda: api.encode([frame], points=[[[np.inf, 1]]], **MODEL), "give NaN for missing points"),
        (lambda: api.encode([frame], **out, **MODEL), "out 'elsewhere' is no option here: encode returns arrays"),
        (lambda: api.inspect("photos", **out), "nothing is written: save `contact_sheet`"),
        (lambda: api.update("faces", "photos", **out, **MODEL), "the dataset is 'faces': leave it out"),
        (lambda: api.update(None), "the place None is of type NoneType: give a folder"),
        (lambda: api.Run.open(5), "the place 5 is of type int"),
        (lambda: api.Dataset.open(None), "the place None"),
        (lambda: api.Dataset.open("faces", version=1.0), "version 1.0 is of type float: give a number or a tag"),
        (lambda: api.Dataset.open("faces", version=True), "version True is of type bool"),
        (lambda: api.encode([frame, frame], limit=1, **MODEL), "limit 1 is no option here: give fewer images"),
        (lambda: api.verify(None), "the place None"),
        (lambda: api.Run(None).plan([0]), r"shards \[0\] is of type list: give pending"),
        (lambda: api.Run(None).encode(batch_size="x"), "batch_size 'x' is not valid"),
        (lambda: api.registry().create("resnet18", image_size=64), "image_size 64 is not .height, width"),
    ]
    for call, said in calls:
        with pytest.raises(api.InputError, match=said):
            call()
    assert not {"elsewhere", "faces"} & {path.name for path in Path().iterdir()}


@pytest.mark.parametrize("shape", [(2, 1), (1, 1, 2), (2, 1, 3)])
def test_points_of_a_wrong_shape_are_refused(photos: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(api.InputError, match=r"expected \[2, K, 2\]"):
        api.encode(sorted(photos.iterdir())[:2], points=np.zeros(shape), **MODEL)


def test_specs_are_registered_and_created_by_id(photos: Path, tmp_path: Path) -> None:
    (made,) = api.export("tiny_models:conv", "exported", weights="random:0", image_size="32")
    known = api.registry("exported")
    assert known.registered() == [made.spec.model_id]
    encoder = known.create(made.spec.model_id, device="cpu", trust=True)
    images = torch.rand(2, 3, 32, 32)
    (expected,) = known.create("tiny_models:conv", weights="random:0", image_size=(32, 32), device="cpu")(
        images
    ).values()
    (found,) = encoder(images).values()
    torch.testing.assert_close(found, expected)
    (Path("exported") / "broken.json").write_text("{}")
    with pytest.raises(api.InputError, match=r"broken\.json"):
        api.registry("exported")


def test_a_run_travels_to_another_process(photos: Path, tmp_path: Path) -> None:
    import pickle

    run = api.extract(str(photos), out=str(tmp_path / "run"), **MODEL)
    result = pickle.loads(pickle.dumps(run.encode()))
    assert isinstance(result, records.Result)
    assert (result.asked, result.run.root, result.status) == (0, run.place, run.status())
