"""An inspection says what images, labels and a run over them are, and changes nothing."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import containers
import pictures
from genenc_core import api, errors
from genenc_core.encoding import cancellation
from genenc_core.images.sources import folders, image_source
from genenc_core.inspection import images, inspect, sheet
from genenc_core.inspection.parameters import OF_MODEL, InspectParameters

PALETTE = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("P")
MODEL = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "device": "cpu", "trust": True}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return a folder of images of several kinds, some broken."""
    folder = pictures.write_folder(tmp_path / "photos", 3)
    noise = np.random.default_rng(0).integers(0, 2**16, (30, 50), np.uint16)
    tifffile.imwrite(folder / "deep.tif", noise)
    Image.fromarray(noise).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20)).save(folder / "phone.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes((folder / "phone.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("no image")
    return folder


def inspected(folder: Path, **given: Any) -> inspect.Inspection:
    return inspect.inspect(InspectParameters.model_validate({"images": str(folder), "decode_workers": 1, **given}))


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_folder_of_several_kinds(mixed: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    found = inspected(mixed)
    assert (found.images, found.looked_at, found.missing) == (7, 7, 0)
    assert found.formats == {"PNG": 4, "TIFF": 1, "JPEG": 1}
    assert found.pixels == {"8-bit RGB": 4, "16-bit grey": 2}
    assert found.sizes["50 x 30"] == 2
    assert found.sizes["20 x 60"] == 1  # upright
    assert found.turned == 1
    assert list(found.unreadable) == ["broken.jpg"]
    assert found.left_out == {".txt": 1}
    assert (found.labels, found.cost, found.exit_code) == (None, None, 3)
    assert found.contact_sheet is not None
    assert tree(tmp_path) == before
    said = "\n".join(inspect.lines(found))
    for words in (
        "7 images",
        "4 PNG",
        "2 16-bit grey",
        "1 turned upright",
        "1 of 7 cannot be read",
        "1 .txt",
        "no model",
    ):
        assert words in said


def test_labels_are_placed_as_a_run_places_them(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (64, 32), "white").save(folder / f"{name}.png")
    labels = tmp_path / "labels.csv"
    rows = ["a.png,eye,32,16", "a.png,ear,2,16", "a.png,nose,99,16", "b.png,eye,,", "gone.png,eye,1,1"]
    labels.write_text("\n".join(["image,point,x,y", *rows]) + "\n")
    found = inspected(folder, points=str(labels), points_scale="1", fit="crop", **MODEL)
    run = api.extract(str(folder), out=str(tmp_path / "run"), points=str(labels), points_scale="1", fit="crop", **MODEL)
    assert found.labels is not None
    assert found.labels.names == ("eye", "ear", "nose")
    stored = run.arrays().point_status.values.ravel().tolist()
    states = {"ok": 1, "outside_view": 2, "no_such_point": 4, "outside_image": 5}
    assert {name: count for name, count in found.labels.states.items() if count} == {
        name: stored.count(state) for name, state in states.items() if state in stored
    }
    assert found.labels.states["outside_view"] == 1
    assert (found.labels.absent, found.labels.images_without) == (1, 0)
    sheet = np.asarray(found.contact_sheet)
    assert (sheet == (230, 25, 75)).all(axis=2).any()  # the first point's mark


def test_labels_that_a_run_would_refuse_are_shown(tmp_path: Path) -> None:
    folder, labels = pictures.write_folder(tmp_path / "photos", 6), tmp_path / "labels.csv"
    rows = [f"{path.name},eye,0.{5 + at % 4},0.4" for at, path in enumerate(sorted(folder.iterdir()))]
    labels.write_text("\n".join(["image,point,x,y", *rows]) + "\n")
    found = inspected(folder, points=str(labels))
    assert "look normalised" in found.refused
    assert found.exit_code == errors.InputError.exit_code
    assert "these labels would be refused" in "\n".join(inspect.lines(found))
    assert found.contact_sheet is not None


def test_the_cost_is_of_all_images(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 12)
    found = inspected(folder, sample=8, **MODEL)
    assert found.cost is not None
    assert (found.images, found.looked_at, found.cost.measured) == (12, 8, 4)
    assert found.cost.images_per_second > 0
    assert found.cost.seconds == pytest.approx(found.cost.start_seconds + 12 / found.cost.images_per_second)
    assert found.cost.disk_bytes > 12 * 6 * 4
    assert json.loads(json.dumps(found.as_json()))["cost"]["measured"] == 4


def test_a_sample_is_spread_evenly(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 11)
    (folder / "img_010.png").write_bytes(b"")
    found = inspected(folder, sample=3)
    assert (found.looked_at, list(found.unreadable)) == (3, ["img_010.png"])


def test_files_of_a_list_that_are_missing(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 1)
    (tmp_path / "list.csv").write_text("path\nphotos/img_000.png\nphotos/gone.png\n")
    found = inspected(tmp_path / "list.csv")
    assert (found.missing, list(found.unreadable), found.exit_code) == (1, ["photos/gone.png"], 3)
    assert folder.is_dir()


def test_one_image_and_no_readable_image(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 1)
    one = inspected(folder, **MODEL)
    assert one.cost is None  # nothing to measure after the first
    (folder / "img_000.png").write_bytes(b"")
    none = inspected(folder, **MODEL)
    assert (none.contact_sheet, none.cost, len(none.unreadable)) == (None, None, 1)


@pytest.mark.parametrize("out", ["s3://bucket/look", "run"])
def test_a_place_that_is_not_for_an_inspection_is_refused(tmp_path: Path, out: str) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 1)
    place = out if out.startswith("s3") else str(tmp_path / out)
    if out == "run":
        api.Run.create(str(folder), out=place, **MODEL)
    with pytest.raises(errors.InputError, match="is no place for an inspection"):
        inspect.write(inspected(folder), place)


def test_a_sheet_among_the_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.write_folder(tmp_path / "photos", 1)
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    for place, out in (
        ("photos", "photos"),
        ("photos", "photos/a/look"),
        ("photos", "link/look"),
        (".", "look"),
        ("photos/*.png", "photos"),
        ("photos/**/*.png", "photos/look"),
        ("photos/**", "photos/look"),
    ):
        with pytest.raises(errors.InputError, match=r"is inside the .* whose next run would take contact_sheet.png"):
            inspected(Path(place), out=out)
    for place, out in (
        ("photos", "look"),
        ("photos", "photos/.look"),
        ("photos/*.png", "photos/look"),
        ("photos/*.jpg", "photos"),
        ("photos/img_000.png", "photos"),
    ):
        source = image_source.open_source(place)
        assert not folders.would_list(source, Path(out).resolve() / "contact_sheet.png"), (place, out)
    with pytest.raises(errors.InputError, match="is no place for an inspection"):
        inspected(Path("photos"), out="s3://bucket/look")


def test_options_of_a_model_need_one(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 1)
    for given, said in (
        ({"weights": "nofile.pt"}, "--weights 'nofile.pt' has no effect without a model: add --model"),
        ({"products": ("a=none",)}, "--product 'a=none' has no effect"),
        ({"maps": True}, "--maps has no effect"),
        ({"canvas": "128x256"}, "--canvas '128x256' has no effect"),
        ({"precision": "bfloat16"}, "--precision 'bfloat16' has no effect"),
    ):
        with pytest.raises(errors.InputError, match=said):
            inspected(folder, **given)
    defaults = {name: InspectParameters.model_fields[name].default for name in OF_MODEL}
    assert inspected(folder, **defaults, trust=True).images == 1  # Prefect's form gives all of them


def test_a_folder_of_a_run_is_no_place(tmp_path: Path) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 1)
    run = api.Run.create(str(folder), out=str(tmp_path / "run"), **MODEL)
    for name in ("provenance", "model/a"):
        with pytest.raises(errors.InputError, match="is inside the run"):
            inspected(folder, out=f"{run.place}/{name}")


def test_a_stop_ends_it(tmp_path: Path) -> None:
    control = cancellation.Control()
    control.stop()
    with cancellation.use(control), pytest.raises(errors.Stopped):
        inspected(pictures.write_folder(tmp_path / "photos", 3))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": "gone"}, "does not exist"),
        ({"points": "gone.csv"}, "file does not exist"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"image_size": "x"}, "size"),
        ({"min_likelihood": 0.5}, "needs --points"),
    ],
)
def test_wrong_input_is_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    folder = pictures.write_folder(tmp_path / "photos", 1)
    with pytest.raises(errors.InputError, match=said):
        inspected(folder, **given)


@pytest.mark.parametrize(
    ("save", "form", "kind"),
    [
        (lambda path: Image.new("L", (4, 4)).save(path, "PNG", bits=4), "PNG", "grey"),
        (
            lambda path: PALETTE.save(path, "PNG"),
            "PNG",
            "8-bit palette",
        ),
        (lambda path: Image.new("RGBA", (4, 4)).save(path, "WEBP", lossless=True), "WEBP", "8-bit RGB"),
        (lambda path: Image.new("CMYK", (4, 4)).save(path, "JPEG"), "JPEG", "8-bit CMYK"),
        (lambda path: tifffile.imwrite(path, np.zeros((4, 4), np.float32)), "TIFF", "32-bit float grey"),
        (
            lambda path: tifffile.imwrite(path, np.zeros((6, 7, 5), np.uint8), photometric="rgb"),
            "TIFF",
            "with 2 more",
        ),
        (lambda path: tifffile.imwrite(path, np.zeros((4, 4), np.uint16), bigtiff=True), "TIFF", "16-bit grey"),
        (lambda path: path.write_bytes(b"no image"), "unknown", "unknown"),
    ],
)
def test_the_kind_of_a_file(tmp_path: Path, save: Any, form: str, kind: str) -> None:
    save(tmp_path / "file")
    found = images.describe_file(io.BytesIO((tmp_path / "file").read_bytes()))
    assert found[0] == form
    assert kind in found[1]


def test_the_kind_of_a_file_whose_pixels_are_converted(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    files = {
        "pgm16": (b"P5 4 4 65535\n" + bytes(32), ("PNM", "16-bit grey")),
        "pgm": (b"P5 4 4 255\n" + bytes(16), ("PNM", "8-bit grey")),
        "ppm16": (b"P6 4 4 1023\n" + bytes(96), ("PNM", "16-bit RGB")),
        "pbm": (b"P4 8 4\n" + bytes(4), ("PNM", "1-bit")),
        "comment": (b"P5 # a comment of more than 32 bytes\n4 4 65535\n" + bytes(32), ("PNM", "16-bit grey")),
    }
    for name, (content, said) in files.items():
        (tmp_path / name).write_bytes(content)
        assert images.describe_file(io.BytesIO((tmp_path / name).read_bytes())) == said, name
    for photometric, said in (
        ("ycbcr", "8-bit YCbCr"),
        ("cielab", "8-bit Lab"),
        ("minisblack", "with 2 more channels"),
    ):
        tifffile.imwrite(tmp_path / "t.tif", rgb, photometric=photometric, planarconfig="contig")
        assert images.describe_file(io.BytesIO((tmp_path / "t.tif").read_bytes()))[1].endswith(said)
    for depth in (8, 10, 12):
        values = (rgb.astype(np.uint16) << (depth - 8)).astype(np.uint8 if depth == 8 else np.uint16)
        avif = imagecodecs.avif_encode(values, bitspersample=depth)
        assert images.describe_file(io.BytesIO(avif)) == ("AVIF", f"{depth}-bit RGB")
    heif = pytest.importorskip("pillow_heif")
    for depth, kind in ((8, "8-bit RGB"), (10, "10-bit RGB")):
        data = (rgb.astype(np.uint16) * 257).tobytes() if depth > 8 else rgb.tobytes()
        encoded = heif.encode(
            "RGB;16" if depth > 8 else "RGB", (64, 48), data, tmp_path / "h.heic", save_nclx_profile=False
        )
        assert encoded is None
        assert images.describe_file(io.BytesIO((tmp_path / "h.heic").read_bytes())) == ("HEIC", kind)


def test_the_command_writes_the_sheet_where_it_is_asked_to(mixed: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "genenc_flows.entry",
        "inspect",
        str(mixed),
        "--out",
        str(tmp_path / "look"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], len(said["unreadable"])) == (7, 1)
    assert said["written"] == [str(tmp_path / "look" / name) for name in ("inspection.json", "contact_sheet.png")]
    with Image.open(tmp_path / "look" / "contact_sheet.png") as sheet:
        assert sheet.width >= 480


def test_images_inside_files(tmp_path: Path) -> None:
    shown = containers.frames()
    for path, form in (
        (containers.write_tar(tmp_path, shown), "PNG in tar"),
        (containers.write_npy(tmp_path, shown), "frame of npy"),
        (containers.write_zarr(tmp_path, shown), "frame of zarr"),
    ):
        found = inspect.inspect(InspectParameters(images=str(path)))
        files = [path] if path.is_file() else [each for each in path.rglob("c/*/*/*/*") if each.is_file()]
        assert (found.images, found.formats) == (len(shown), {form: len(shown)})
        assert 0 <= found.bytes - sum(each.stat().st_size for each in files) < 10_000


def test_channels_are_shown_and_the_sheet_says_which(tmp_path: Path) -> None:
    pictures.write_channels(tmp_path / "bands", 3, channels=6)
    found = inspect.inspect(
        InspectParameters(images=str(tmp_path / "bands"), channels="3,2,1,0", value_range="0,10000", image_size="48x64")
    )
    assert found.pixels == {"uint16, 6 channels": 3}
    assert "channels 3, 2, 1, 0 (from 0), 0 to 10000 as 0 to 1" in found.preprocessing
    assert not found.unreadable
    assert found.contact_sheet is not None
    drawn = np.asarray(found.contact_sheet)
    tile = drawn[-200:, :].reshape(-1, 3)
    assert len(np.unique(tile, axis=0)) > 100
    assert sheet.what_is_shown((3, 2, 1)) == "shown: channels 3 red, 2 green, 1 blue; stretched"


def test_the_sheet_stretches_each_channel_over_all_images() -> None:
    values = np.random.default_rng(0).random((2, 5, 16, 16)).astype(np.float32)
    values[:, 0] = values[:, 0] * 0.01 + 0.2
    shown = sheet.in_colours({7: values[0], 9: values[1]})
    assert shown[7].dtype == np.uint8
    assert shown[7].shape == (3, 16, 16)
    low, high = np.percentile(values[:, 0], (2, 98))
    expected = np.rint(np.clip((values[1, 0] - low) / (high - low), 0, 1) * 255)
    assert np.abs(shown[9][0].astype(float) - expected).max() <= 1
    assert np.array_equal(sheet.in_colours({0: values[0, :1]})[0][2], sheet.in_colours({0: values[0, :1]})[0][0])
    assert not sheet.in_colours({0: values[0, :2]})[0][2].any()


def test_a_range_without_a_model_needs_channels(tmp_path: Path) -> None:
    pictures.write_channels(tmp_path / "bands", 1, channels=6)
    with pytest.raises(errors.InputError, match="--value-range 0,10000 needs --channels, or a model"):
        inspect.inspect(InspectParameters(images=str(tmp_path / "bands"), value_range="0,10000"))
