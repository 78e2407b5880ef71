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
from genenc_core.images import decode, decoded, geometry, plain_jpeg, reading, resizing
from genenc_core.images.limits import Limits

SCALED = spec.Preprocessing(height=64, width=64, fit="crop", decode="scaled")


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def load(data: bytes, tmp_path: Path, preprocessing: spec.Preprocessing) -> reading.LoadedImage:
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    return reading.Reader(geometry.Fitter(preprocessing), Limits()).load(reading.Request(0, str(path), len(data)))


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
def test_the_largest_reduction_that_still_covers(
    size: tuple[int, int], needed: tuple[int, int], reduction: int
) -> None:
    assert plain_jpeg.largest_reduction(*size, needed) == reduction


@pytest.mark.parametrize("reduction", plain_jpeg.REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_a_reduced_image_is_the_mean_of_its_blocks(reduction: int, options: dict[str, object]) -> None:
    data = saved(Image.fromarray(pictures.texture(203, 101, 0)), **options)
    whole = decode.decode_image(data).pixels.float()
    found = plain_jpeg.decode(data, reduction=reduction)
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
def test_points_land_where_the_pixels_do(
    tmp_path: Path, fit: spec.Fit, width: int, height: int, orientation: int
) -> None:
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
    assert plain_jpeg.largest_reduction(loaded.height, loaded.width, plan.resized) > 1
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
        data, goal=decoded.Goal(target=lambda *_: resizing.Target((64, 64), (64, 64)), reduce=True)
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
def test_what_cannot_be_reduced_is_decoded_whole(
    tmp_path: Path, encode: Callable[..., bytes], kind: str, photo: np.ndarray
) -> None:
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
                data, goal=decoded.Goal(target=lambda *_: resizing.Target((64, 64), (64, 64)), reduce=True)
            ).reduction
            == 4
        )
    assert not caught


def test_grey_is_replicated(tmp_path: Path) -> None:
    loaded = load(saved(Image.fromarray(pictures.texture(400, 300, 1)).convert("L")), tmp_path, SCALED)
    assert loaded.pixels is not None
    assert torch.equal(loaded.pixels[0], loaded.pixels[2])


@pytest.mark.parametrize("way", ["scaled", "full"])
def test_a_file_without_its_end_costs_one_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: spec.DecodeScale
) -> None:
    """torchvision would decode all that there is of it before it refuses; Pillow alone tells what is missing."""
    data = saved(Image.fromarray(pictures.texture(400, 300, 1)))
    preprocessing = SCALED.model_copy(update={"decode": way})
    asked: list[object] = []
    monkeypatch.setattr(plain_jpeg, "_whole", asked.append)
    monkeypatch.setattr(plain_jpeg, "_prepared", [lambda begun, *_: asked.append(begun) or begun + 1])
    monkeypatch.setattr(plain_jpeg, "_reduced", lambda *given: asked.append(given))
    for cut in (1, 2, 100, len(data) // 2):
        assert "truncated" in str(load(data[:-cut], tmp_path, preprocessing).failure)
    assert not asked
    assert load(data + b"junk behind the end", tmp_path, preprocessing).failure is None
    assert asked


def at_once(
    data: bytes | bytearray, size: tuple[int, int], target: resizing.Target, interpolation: resizing.Interpolation
) -> torch.Tensor | None:
    source = plain_jpeg.source(data, size, target, interpolation)
    return None if source is None else plain_jpeg.decode_resized([source])[0]


@pytest.fixture
def prepared() -> None:
    plain_jpeg.prepare()


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "resized"), [((101, 203), (64, 128)), ((64, 48), (224, 168)), ((9, 700), (1, 99)), ((33, 17), (33, 16))]
)
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"mode": "L"}], ids=str)
def test_decoded_and_resized_at_once_is_bit_for_bit_the_two_steps(
    size: tuple[int, int], resized: tuple[int, int], interpolation: resizing.Interpolation, options: dict[str, object]
) -> None:
    image = Image.fromarray(pictures.texture(size[1], size[0], 3)).convert(str(options.pop("mode", "RGB")))
    data = bytearray(saved(image, **options))
    whole = plain_jpeg.decode(data)
    assert whole is not None
    for used in (resized, ((resized[0] + 1) // 2, (2 * resized[1] + 2) // 3)):
        target = resizing.Target(resized, used)
        steps = resizing.resize(whole, target, interpolation=interpolation, antialias=True)
        made = at_once(data, size, target, interpolation)
        assert made is not None, "torch has TorchScript and torchvision its codecs"
        assert torch.equal(made, steps)


@pytest.mark.usefixtures("prepared")
def test_what_cannot_be_resized_at_once_is_left_to_the_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that lies, a damaged file, bytes that torch cannot share, and no TorchScript: never an exception."""
    data = bytearray(saved(Image.fromarray(pictures.texture(60, 40, 3))))
    size, target = (40, 60), resizing.Target((20, 30), (20, 20))
    assert at_once(data, size, target, "bilinear") is not None
    assert at_once(data, (41, 60), target, "bilinear") is None
    assert at_once(data, size, resizing.Target(size, size), "bilinear") is None
    assert at_once(bytes(data), size, target, "bilinear") is None
    assert at_once(bytearray(b"\xff\xd8\xff\xd9"), size, target, "bilinear") is None
    for script in (lambda _: (_ for _ in ()).throw(RuntimeError("gone")), lambda function: function):
        monkeypatch.setattr(plain_jpeg, "_prepared", [])
        assert at_once(data, size, target, "bilinear") is None, "nobody has prepared it"
        monkeypatch.setattr(torch.jit, "script", script)
        plain_jpeg.prepare()
        assert at_once(data, (41, 60), target, "bilinear") is None
    assert at_once(data, size, target, "bilinear") is None


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("broken", [set(), {0}, {4}, {1, 2}, {0, 2, 4}, {0, 1, 2, 3, 4}], ids=str)
def test_several_at_once_are_each_as_alone_and_a_broken_one_costs_no_other(broken: set[int]) -> None:
    """A damaged file and a header that lies are missing, wherever they are; nothing is decoded twice for them."""
    files = [bytearray(saved(Image.fromarray(pictures.texture(60 + at, 40, at)))) for at in range(5)]
    target = resizing.Target((20, 30), (20, 20))
    sources = []
    for at, data in enumerate(files):
        lies, damaged = at in broken and at % 2, at in broken and not at % 2
        given = bytearray(b"\xff\xd8\xff\xd9") if damaged else data
        sources.append(plain_jpeg.source(given, (40, 60 + at + bool(lies)), target, "bilinear"))
    made = plain_jpeg.decode_resized([source for source in sources if source is not None])
    assert [at for at, pixels in enumerate(made) if pixels is None] == sorted(broken)
    for at in set(range(5)) - broken:
        alone, found = at_once(files[at], (40, 60 + at), target, "bilinear"), made[at]
        assert alone is not None
        assert found is not None
        assert torch.equal(found, alone)


@pytest.mark.usefixtures("prepared")
def test_only_small_images_are_decoded_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "SMALL_PIXELS", 60 * 40)
    goal = geometry.Fitter(spec.Preprocessing(height=16, width=16, fit="crop")).goal
    turned = Image.Exif()
    turned[0x0112] = 6

    def small(width: int, max_pixels: int = 10**6, **options: object) -> bool:
        data = bytearray(saved(Image.fromarray(pictures.texture(width, 40, 1)), **options))
        return decode.small_jpeg(data, max_pixels=max_pixels, goal=goal) is not None

    assert small(60)
    assert small(60, 60 * 40)
    assert not small(61)
    assert not small(60, 60 * 40 - 1), "its pixels are above the user's limit"
    assert not small(60, progressive=True)
    assert not small(60, exif=turned)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_an_image_loads_the_same_at_once_and_in_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: spec.Fit
) -> None:
    """Of every shape, turned and not: pixels, size and affine."""
    preprocessing = spec.Preprocessing(height=48, width=64, fit=fit, interpolation="bicubic")
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = [Image.fromarray(pictures.texture(*size, 5)) for size in ((500, 375), (20, 90), (64, 48), (300, 300))]
    files = [saved(image) for image in drawn] + [saved(drawn[0], exif=exif), saved(drawn[0], progressive=True)]
    loaded_at_once = [load(data, tmp_path, preprocessing) for data in files]
    monkeypatch.setattr(plain_jpeg, "source", lambda *_: None)
    for data, loaded in zip(files, loaded_at_once, strict=True):
        steps = load(data, tmp_path, preprocessing)
        assert loaded.pixels is not None
        assert steps.pixels is not None
        assert torch.equal(loaded.pixels, steps.pixels)
        assert (loaded.affine, loaded.height, loaded.width, loaded.orientation) == (
            steps.affine,
            steps.height,
            steps.width,
            steps.orientation,
        )


def test_a_cut_file_is_not_filled_with_grey_where_a_models_code_asks_pillow_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = saved(Image.effect_noise((256, 192), 60).convert("RGB"))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert plain_jpeg._reduced(data, 2) is not None
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert plain_jpeg._reduced(data[: len(data) // 2], 2) is None
