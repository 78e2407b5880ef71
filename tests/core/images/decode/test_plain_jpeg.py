"""JPEGs at libjpeg's reductions: enough pixels, where the affine says, and never another image."""

import io
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import pictures
from genenc_core import spec
from genenc_core.images.decode import decode, decoded, geometry, jpeg, load_image, resize
from genenc_core.images.decode.limits import Limits

SCALED = spec.Preprocessing(height=64, width=64, fit="crop", decode="scaled")


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def load(data: bytes, tmp_path: Path, preprocessing: spec.Preprocessing) -> load_image.LoadedImage:
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    reader = load_image.Reader(geometry.Fitter(preprocessing), Limits())
    return reader.decode(reader.read(load_image.Request(0, str(path), len(data))))


def spots(width: int, height: int, at: list[tuple[float, float]], *, sigma: float) -> Image.Image:
    """Draw round white spots on black, centred at (x, y) in pixels from the top left edge."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    drawn = sum(np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * sigma**2)) for left, top in at)
    return Image.fromarray(np.round(255 * np.minimum(drawn, 1)).astype(np.uint8)).convert("RGB")


def centroid(pixels: torch.Tensor, near: tuple[float, float], reach: float) -> tuple[float, float]:
    """Return the (x, y) centre of mass of the light within `reach` of a place."""
    light = pixels[0].double().clamp(min=24) - 24
    x, y = torch.arange(light.shape[1]) + 0.5, torch.arange(light.shape[0])[:, None] + 0.5
    light = light * ((x - near[0]).abs() < reach) * ((y - near[1]).abs() < reach)
    return float((light * x).sum() / light.sum()), float((light * y).sum() / light.sum())


@pytest.mark.parametrize(
    ("size", "needed", "reduction"),
    [
        ((768, 1024), (256, 341), 2),
        ((1536, 2048), (256, 341), 4),
        ((3000, 4000), (256, 341), 8),
        ((375, 500), (256, 341), 1),
        ((512, 512), (256, 256), 2),
        ((511, 512), (256, 256), 1),
        ((8000, 500), (224, 224), 2),
        ((9000, 9000), (1, 1), 8),
        ((1, 1), (1, 1), 1),
    ],
)
def test_largest_reduction_that_covers(size: tuple[int, int], needed: tuple[int, int], reduction: int) -> None:
    assert jpeg.largest_reduction(*size, needed) == reduction


@pytest.mark.parametrize("reduction", jpeg.REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_a_reduced_image_is_the_mean_of_its_blocks(reduction: int, options: dict[str, object]) -> None:
    data = saved(Image.fromarray(pictures.texture(203, 101, 0)), **options)
    whole = decode.decode_image(data).pixels.float()
    found = jpeg.decode(data, reduction=reduction)
    assert found is not None
    assert tuple(found.shape) == (3, -(-101 // reduction), -(-203 // reduction))
    rows, columns = 101 // reduction, 203 // reduction
    blocks = whole[:, : rows * reduction, : columns * reduction].unflatten(2, (columns, reduction)).mean(3)
    blocks = blocks.unflatten(1, (rows, reduction)).mean(2)
    difference = (found[:, :rows, :columns].float() - blocks).abs()
    assert difference.mean() < 1
    assert difference.max() < 12


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(
    ("width", "height", "orientation"), [(1001, 763, 1), (1003, 1021, 6), (483, 389, 1), (263, 259, 8), (137, 131, 3)]
)
def test_points_land_where_pixels_do(tmp_path: Path, fit: spec.Fit, width: int, height: int, orientation: int) -> None:
    """Spots near every edge of images whose sides no reduction divides, turned upright on the way."""
    preprocessing = spec.Preprocessing(height=64, width=64, fit=fit, decode="scaled")
    upright = (height, width) if orientation >= 5 else (width, height)
    places = [(upright[0] * x, upright[1] * y) for x in (0.3, 0.7) for y in (0.3, 0.7)]
    sigma = max(upright) / 40
    image = spots(*upright, places, sigma=sigma)
    turn = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = turn[orientation]
    loaded = load(saved(image if turned is None else image.transpose(turned), exif=exif), tmp_path, preprocessing)
    assert (loaded.width, loaded.height, loaded.orientation) == (*upright, orientation)
    assert loaded.pixels is not None
    assert loaded.affine is not None
    plan = geometry.plan_fit(loaded.height, loaded.width, preprocessing)
    assert jpeg.largest_reduction(loaded.height, loaded.width, plan.resized) > 1
    affine = loaded.affine
    for x, y in places:
        wanted = x * affine.scale_x + affine.offset_x, y * affine.scale_y + affine.offset_y
        found = centroid(loaded.pixels, wanted, 4 * sigma * affine.scale_x + 2)
        assert found == pytest.approx(wanted, abs=0.06)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_incomplete_pixels_beyond_the_source_count(orientation: int) -> None:
    """1001 x 997 at 1/8 is 126 x 125 pixels of 8: 7 columns and 3 rows too many, at the end as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.new("RGB", (1001, 997)), exif=exif)
    image = decode.decode_image(
        data, hint=decoded.ResizeHint(target=lambda *_: resize.Target((64, 64), (64, 64)), reduce=True)
    )
    assert image.reduction == 8
    _pixels, affine = geometry.Fitter(spec.Preprocessing(height=64, width=64)).fit(image)
    columns, rows = (1008, 1000) if orientation < 5 else (1000, 1008)
    assert (affine.scale_x, affine.scale_y) == (64 / columns, 64 / rows)
    height, width = image.size
    at_right, at_bottom = orientation in (1, 4, 5, 8), orientation in (1, 2, 5, 6)
    assert affine.offset_x == (0 if at_right else (columns - width) * affine.scale_x)
    assert affine.offset_y == (0 if at_bottom else (rows - height) * affine.scale_y)


@pytest.mark.parametrize("kind", ["small", "png", "cmyk"])
def test_irreducible_image_is_whole(tmp_path: Path, encode: Callable[..., bytes], kind: str, photo: np.ndarray) -> None:
    image = Image.fromarray(photo).resize((120, 90) if kind == "small" else (480, 360))
    data = {"small": saved(image), "png": encode(image, "PNG"), "cmyk": saved(image.convert("CMYK"))}[kind]
    found, whole = (load(data, tmp_path, SCALED.model_copy(update={"decode": way})) for way in ("scaled", "full"))
    assert found.pixels is not None
    assert whole.pixels is not None
    assert torch.equal(found.pixels, whole.pixels)
    assert found.affine == whole.affine


def test_pixels_are_near_those_of_the_whole_image(tmp_path: Path) -> None:
    """At 1/2 and resized by another 1.5, a photograph's pixels move by about one of 255, points not at all."""
    data = saved(Image.fromarray(pictures.texture(800, 600, 3)))
    preprocessing = spec.Preprocessing(height=200, width=200, fit="crop", decode="scaled")
    found, whole = (
        load(data, tmp_path, preprocessing.model_copy(update={"decode": way})) for way in ("scaled", "full")
    )
    assert found.pixels is not None
    assert whole.pixels is not None
    difference = (found.pixels.float() - whole.pixels.float()).abs()
    assert 0 < difference.mean() < 1.5
    assert found.affine == whole.affine


@pytest.mark.parametrize("grey", [True, False])
def test_broken_files_have_the_same_reasons(tmp_path: Path, grey: bool) -> None:
    image = Image.fromarray(pictures.texture(400, 400, 1))
    data = saved(image.convert("L") if grey else image)
    for cut in (len(data) // 2, 300, 30):
        found, whole = (
            load(data[:cut], tmp_path, SCALED.model_copy(update={"decode": way})) for way in ("scaled", "full")
        )
        assert found.failure
        assert found.failure == whole.failure


def test_without_torchvisions_codecs_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision is where it was built without libjpeg."""
    data = saved(Image.fromarray(pictures.texture(400, 300, 1)))
    monkeypatch.setattr(torch.ops, "image", types.SimpleNamespace())
    found = decode.decode_image(data).pixels
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(data))))


def test_odd_metadata_of_a_reduced_file_make_no_word() -> None:
    data = saved(Image.fromarray(pictures.texture(400, 300, 1)), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0")
    jfif = data.index(b"\xff\xe0")  # has the resolution, which Pillow else looks for in the Exif
    data = data[:jfif] + data[jfif + 18 :]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (
            decode.decode_image(
                data, hint=decoded.ResizeHint(target=lambda *_: resize.Target((64, 64), (64, 64)), reduce=True)
            ).reduction
            == 4
        )
    assert not caught


def test_grey_is_replicated(tmp_path: Path) -> None:
    loaded = load(saved(Image.fromarray(pictures.texture(400, 300, 1)).convert("L")), tmp_path, SCALED)
    assert loaded.pixels is not None
    assert torch.equal(loaded.pixels[0], loaded.pixels[2])


@pytest.mark.parametrize("way", ["scaled", "full"])
def test_file_without_its_end_decodes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: spec.Decoding) -> None:
    """Pillow alone says what is missing."""
    data = saved(Image.fromarray(pictures.texture(400, 300, 1)))
    preprocessing = SCALED.model_copy(update={"decode": way})
    asked: list[object] = []
    monkeypatch.setattr(jpeg, "_whole", asked.append)
    monkeypatch.setattr(jpeg, "_reduced", lambda *given: asked.append(given))
    for cut in (1, 2, 100, len(data) // 2):
        assert "truncated" in str(load(data[:-cut], tmp_path, preprocessing).failure)
    assert not asked
    assert load(data + b"junk behind the end", tmp_path, preprocessing).failure is None
    assert asked


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"mode": "L"}], ids=str)
def test_a_file_that_is_cut_is_refused_though_its_thumbnail_has_an_end(options: dict[str, object]) -> None:
    """libjpeg takes the end of its data for the end of the image, and what is missing is grey."""
    image = Image.fromarray(pictures.texture(203, 101, 3)).convert(str(options.pop("mode", "RGB")))
    thumbnail = saved(image.resize((8, 8)))
    whole = saved(image, **options)
    data = whole[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + whole[2:]
    assert jpeg.decode(data) is not None
    assert jpeg.decode(data + b"junk behind the end") is not None
    start = data.rindex(b"\xff\xda")
    for cut in {2, 3, 40, *range(2, len(data) - start, 97)}:
        assert jpeg.decode(data[:-cut]) is None, cut


def test_cut_file_is_not_filled_with_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.effect_noise((256, 192), 60).convert("RGB"))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert jpeg._reduced(data, 2) is not None
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert jpeg._reduced(data[: len(data) // 2], 2) is None
